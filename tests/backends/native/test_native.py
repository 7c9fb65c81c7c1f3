"""Compiled passes: the same bits however tokens are cut into passes, and clear errors where they cannot be had."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlm_backends.native import NativeBackend, library
from pvlm_backends.native.blocks import Blocks
from pvlm_backends.native.linear import PanelLinear
from pvlm_backends.raw.cache import KeyValueCache, Part, Rows
from pvlm_backends.raw.session import TorchSession
from pvlm_protocols.backend import Backend, BackendError, LoadOptions, Prompt, Session
from tests.backends.families.qwen2_5_vl.checkpoint import qwen_checkpoint
from tests.backends.families.qwen3_vl.checkpoint import qwen3_checkpoint
from tests.backends.raw.test_linear import check, exact
from tests.support.checkpoints import random_frames
from tests.support.native import NATIVE, NOT_NATIVE

LOAD = Callable[[str, str], Backend]
pytestmark = pytest.mark.skipif(not NATIVE, reason=NOT_NATIVE)
TOKENS = [11, 7, 29, 300, 17, 5, 42, 600, 11, 12, 13, 400, 3, 90, 8, 77, 301, 6, 44, 9]
CAPACITY = len(TOKENS)
SIDES = {"target": 112, "draft": 112, "tied": 70, "untied": 70, "ungrouped": 70, "qwen": 84, "qwen3": 96}
"""Checkpoints, and the sides of frames that suit them."""


@pytest.fixture(scope="module")
def folders(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made = {"qwen": qwen_checkpoint, "qwen3": qwen3_checkpoint}
    folder = tmp_path_factory.mktemp("native")
    return cache(lambda name: made[name](folder / name) if name in made else checkpoints(name))


@pytest.fixture(scope="module")
def sessions(folders: Callable[[str], Path]) -> dict[str, Session]:
    """Each with its prompt, of odd length, in its cache."""
    return {name: prefilled(folders(name), side) for name, side in SIDES.items()}


def prefilled(folder: Path, side: int, threads: int | None = None) -> Session:
    backend = NativeBackend.load(LoadOptions(str(folder), threads=threads))
    session = backend.open(Prompt("What happens first?", random_frames(3, side, side)), CAPACITY)
    session.prefill()
    return session


def cut(session: Session, sizes: list[int]) -> torch.Tensor:
    """The tokens in passes of such sizes, the last one as long as it must be."""
    session.truncate(0)
    rows = []
    for size in [*sizes, CAPACITY]:
        if tokens := TOKENS[session.length : session.length + size]:
            rows.append(session.extend(tokens))
    return torch.cat(rows)


@given(name=st.sampled_from(list(SIDES)), sizes=st.lists(st.integers(1, CAPACITY), max_size=CAPACITY))
def test_a_token_s_logits_are_the_same_bits_in_any_pass(
    sessions: dict[str, Session], name: str, sizes: list[int]
) -> None:
    session = sessions[name]
    assert torch.equal(cut(session, sizes), cut(session, [1] * CAPACITY))


def test_what_was_rejected_leaves_no_trace(sessions: dict[str, Session]) -> None:
    session = sessions["target"]
    expected = cut(session, [1] * CAPACITY)
    session.truncate(4)
    session.extend([1, 2, 3, 4, 5, 6])
    session.truncate(4)
    assert torch.equal(session.extend(TOKENS[4:9]), expected[4:9])


@given(name=st.sampled_from(list(SIDES)), data=st.data())
def test_rows_in_segments_give_the_same_bits(sessions: dict[str, Session], name: str, data: st.DataObject) -> None:
    """The cache cut in two or three at any row, as where sessions share the beginning."""
    session = sessions[name]
    assert isinstance(session, TorchSession)
    expected = cut(session, [4])[4:]
    session.truncate(4)
    decoder, rows = session._decoder, session._prompt_rows + 4
    *shared, own = session._segments
    filled = [*shared, Rows(own.cache, own.count + 4)]
    whole = torch.cat([part.cache._buffers[0][..., : part.count, :] for part in filled], dim=-2)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=1, max_size=2)))
    with torch.inference_mode():
        pieces = []
        for first, last in zip([0, *cuts], [*cuts, rows], strict=True):
            piece = KeyValueCache(decoder.config, last - first + CAPACITY, decoder.dtype, decoder.layer_devices)
            piece._buffers[0][..., : last - first, :] = whole[..., first:last, :]
            pieces.append(Rows(piece, last - first))
        rotation, part = session._part(CAPACITY - 4)
        found = decoder.extend(torch.tensor(TOKENS[4:]), rotation, [Part(tuple(pieces), part.tokens)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("checkpoint", ["target", "untied", "qwen3"])
def test_many_threads_give_the_same_bits(
    sessions: dict[str, Session], folders: Callable[[str], Path], checkpoint: str
) -> None:
    expected = cut(sessions[checkpoint], [1, 3])
    before = torch.get_num_threads()
    try:
        session = prefilled(folders(checkpoint), SIDES[checkpoint], threads=3)
        # The prompt's rows are torch's, which may round otherwise with other threads: take them over.
        ours, theirs = (one._segments for one in (session, sessions[checkpoint]))  # type: ignore[attr-defined]
        with torch.inference_mode():
            for mine, other in zip(ours, theirs, strict=True):
                mine.cache._buffers[0].copy_(other.cache._buffers[0])
        found = cut(session, [1, 3])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 150)),
    halves=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_products(shape: tuple[int, int, int], halves: bool, biased: bool, seed: int) -> None:
    """Of any shape: panels that are not full, blocks of tokens of all sizes, weights that are widened or not."""
    n, inner, outer = shape[0], 8 * shape[1], shape[2]
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(inner, outer, generator=source)
    weight = weight.half().float() if halves else weight
    x = torch.randn(n, inner, generator=source)
    bias = torch.randn(outer, generator=source) if biased else None
    product = PanelLinear(weight, bias, Blocks())
    assert product.bytes == -(-outer // 16) * 16 * inner * (2 if halves else 4)
    out = torch.full((n + 1, outer), -7.0)
    check(product.write(x, out[:n]), exact(x, weight) + (0 if bias is None else bias), inner)
    assert (out[n] == -7).all(), "wrote beyond the end"
    for row in range(n):
        assert torch.equal(product.write(x[row : row + 1], torch.empty(1, outer))[0], out[row])
    total = torch.ones(n, outer)
    product.add_to(total, x)
    check(total, exact(x, weight) + 1, inner)


@pytest.mark.parametrize(
    ("options", "named"), [({"dtype": "bfloat16"}, "bfloat16"), ({"device": "cpu:0,cpu:1"}, "cpu:1")]
)
def test_what_it_does_not_do_is_refused(
    checkpoints: Callable[[str], Path], options: dict[str, str], named: str
) -> None:
    with pytest.raises(BackendError, match=f"float32 on the CPU, not in .*{named}.* take the backend 'torch'"):
        NativeBackend.load(LoadOptions(str(checkpoints("tied")), **options))  # type: ignore[arg-type]


def compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!{shutil.which('sh')}\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It copies the library that the machine's compiler has built."""
    folder = tmp_path_factory.mktemp("compiler")
    library.kernels.cache_clear()
    built = Path(library.kernels()._name)
    copied = f'{shutil.which("cp")} "{built}" "$2"'
    return compiler(folder / "quick", f'while [ $# -gt 0 ]; do [ "$1" = -o ] && {copied}; shift; done; exit 0')


@pytest.fixture
def not_yet_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.kernels.cache_clear()
    yield tmp_path / "pvlm"
    library.kernels.cache_clear()


def test_it_is_built_once(not_yet_built: Path) -> None:
    library.kernels()
    (built,) = not_yet_built.iterdir()
    first = built.stat()
    library.kernels.cache_clear()
    library.kernels()
    assert [path.stat() for path in not_yet_built.iterdir()] == [first]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """And not what another one builds at the same time."""
    (tmp_path / "building-left" / "kernels.o").mkdir(parents=True)
    with library._building(tmp_path) as first, library._building(tmp_path) as second:
        assert set(tmp_path.iterdir()) == {first, second}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_what_was_cut_short_is_built_again(
    quick_compiler: Path, not_yet_built: Path, monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    """To load it would end the process."""
    monkeypatch.setenv("CC", str(quick_compiler))
    library.kernels()
    (built,) = not_yet_built.iterdir()
    whole = built.read_bytes()
    built.unlink()  # it is in use: written to, it would take this process with it
    built.write_bytes(whole[: int(left * len(whole))])
    library.kernels.cache_clear()
    library.kernels()
    assert built.stat().st_size == len(whole)


def test_what_cannot_be_loaded(not_yet_built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(tmp_path / "junk", 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo junk > "$2"; shift; done')
    monkeypatch.setenv("CC", str(tmp_path / "junk"))
    with pytest.raises(BackendError, match=f"cannot be loaded from {not_yet_built}.*take the backend 'torch'"):
        library.kernels()


def test_without_a_home(not_yet_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(library.Path, "home", staticmethod(Path("~nobody-of-this-name").expanduser))
    with pytest.raises(BackendError, match="no place to keep its kernels.*XDG_CACHE_HOME"):
        library.kernels()


def test_without_a_compiler(not_yet_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(not_yet_built))
    with pytest.raises(BackendError, match=r"finds no C compiler \(cc, gcc, clang\).* take the backend 'torch'"):
        library.kernels()
    monkeypatch.setenv("CC", "no-such-compiler -O0")
    with pytest.raises(BackendError, match="no-such-compiler"):
        library.kernels()


@pytest.mark.parametrize(("named", "said"), [("cc '-O2", 'CC is "cc \'-O2"'), ("{}/cc", "cannot be run")])
def test_with_a_compiler_that_is_none(
    not_yet_built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, said: str
) -> None:
    (tmp_path / "cc").write_text("#!/no/such/interpreter")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", named.format(tmp_path))
    with pytest.raises(BackendError, match=said):
        library.kernels()


def test_with_a_compiler_that_fails(not_yet_built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(tmp_path / "broken", "echo 'ld: cannot find -lomp' >&2; exit 1")
    monkeypatch.setenv("CC", str(tmp_path / "broken"))
    with pytest.raises(BackendError, match="do not compile: .*broken.*install its OpenMP library.*take the backend"):
        library.kernels()


@pytest.mark.parametrize("broken", ["cc", "gcc", ""])
def test_where_only_clang_works(
    quick_compiler: Path, not_yet_built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    """A compiler stands in for clang: no other is installed, or the others fail."""
    programs = tmp_path / "bin"
    programs.mkdir()
    if broken:
        compiler(programs / broken, "echo 'cannot find -lgomp' >&2; exit 1")
    shutil.copy(quick_compiler, programs / "clang")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(programs))
    library.kernels()
    assert len(list(not_yet_built.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "^$"),
        ({"dtype": "bfloat16"}, "float32 on the CPU, not in torch.bfloat16"),
        ({"device": "meta"}, "float32 on the CPU, not in .* on meta"),
    ],
)
def test_it_says_beforehand_whether_it_can_run_a_model(
    checkpoints: Callable[[str], Path], options: dict[str, str], why: str
) -> None:
    reason = NativeBackend.unavailable(LoadOptions(str(checkpoints("tied")), **options))  # type: ignore[arg-type]
    assert re.search(why, reason)


def test_it_cannot_run_odd_dimensions(bundled_copy: Path) -> None:
    settings = json.loads((bundled_copy / "config.json").read_text())
    settings["text_config"]["intermediate_size"] = 342
    (bundled_copy / "config.json").write_text(json.dumps(settings))
    assert "intermediate_size is 342" in NativeBackend.unavailable(LoadOptions(str(bundled_copy)))


def test_where_nothing_can_be_written(not_yet_built: Path) -> None:
    not_yet_built.write_text("in the way")
    with pytest.raises(BackendError, match=f"cannot be kept in {not_yet_built}.*XDG_CACHE_HOME"):
        library.kernels()


def test_on_another_processor(not_yet_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    with pytest.raises(BackendError, match="x86-64 processor with AVX2.*aarch64"):
        library.kernels()
