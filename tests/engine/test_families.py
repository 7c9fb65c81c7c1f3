"""Real model families through the public API: small checkpoints from disk, draft and target that fit or nearly fit."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import structlog
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from pvlm import Answer, Engine, ModelMismatch, OptionError, PromptError, VideoError
from pvlm.cli import main
from pvlm.cli.console import figures_table
from pvlm.trace import Trace
from pvlm_backends.families import load_processor
from shapes.clips import read_clip, write_clip
from tests.backends.families.llava_onevision.checkpoint import llava_checkpoint
from tests.backends.families.llava_onevision.reference import LlavaReference
from tests.backends.families.qwen2_5_vl.checkpoint import qwen_checkpoint
from tests.backends.families.qwen2_5_vl.reference import QwenReference
from tests.backends.families.qwen3_vl.checkpoint import qwen3_checkpoint
from tests.backends.families.qwen3_vl.reference import Qwen3Reference
from tests.support.checkpoints import edit_settings
from tests.support.native import NATIVE, NOT_NATIVE

pytestmark = pytest.mark.anyio
QUESTION = "What happens first in the video?"
MAX_TOKENS = 32
INPROC: dict[str, Any] = {"transport": "inproc", "threads": 1, "draft_threads": 1}
METHODS = ["ar", "sd", "parallel"]
_NATIVE = pytest.mark.skipif(not NATIVE, reason=NOT_NATIVE)

MADE: dict[str, Callable[[Path], Path]] = {
    "qwen": lambda folder: qwen_checkpoint(folder, released=True, tied=False),
    "qwen as saved": lambda folder: qwen_checkpoint(folder),
    "qwen draft": lambda folder: qwen_checkpoint(folder, layers=2, seed=1),
    "qwen padded": lambda folder: qwen_checkpoint(folder, vocab_size=704),
    "qwen3": lambda folder: qwen3_checkpoint(folder, released=True),
    "qwen3 2B": lambda folder: qwen3_checkpoint(folder, size="2B", released=True, seed=1),
    "qwen3 8B": lambda folder: qwen3_checkpoint(folder, size="8B", released=True),
    "qwen3 32B": lambda folder: qwen3_checkpoint(folder, size="32B", released=True, max_shard_size="300KB"),
    "qwen3 padded": lambda folder: qwen3_checkpoint(folder, vocab_size=704),
    "llava": lambda folder: llava_checkpoint(folder, released=True, tied=False),
    "llava padded": lambda folder: llava_checkpoint(folder, vocab_size=832),
    "llava unpadded": lambda folder: llava_checkpoint(folder, vocab_size=616),
}
REFERENCES: dict[str, type[QwenReference | Qwen3Reference | LlavaReference]] = {
    "qwen": QwenReference,
    "qwen3": Qwen3Reference,
    "llava": LlavaReference,
}


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A checkpoint's folder by name; each is made once."""
    return cache(lambda name: str(MADE[name](tmp_path_factory.mktemp("families") / "checkpoint")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds at four frames a second, wider than high."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    frames = np.kron(np.random.default_rng(0).integers(0, 256, (12, 9, 13, 3)), np.ones((1, 16, 16, 1)))
    write_clip(path, frames.astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def frames(clip: Path) -> NDArray[np.uint8]:
    """What is taken of the clip by default: two frames a second. Faster to ask about than the file."""
    return read_clip(clip)[::2]


def resized(model: str, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(load_processor(model).resize(frames))


async def ask(target: str, draft: str | None, video: Any, **options: Any) -> Answer:
    settings = {key: options.pop(key) for key in ("backend", "draft_backend", "prune") if key in options}
    async with Engine.create(target=target, draft=draft, **INPROC, **settings) as engine:
        return await engine.answer(video, QUESTION, **{"max_tokens": MAX_TOKENS, **options})


# ---- Qwen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "draft", "side", "backend"),
    [
        *[("qwen", "qwen draft", 28, backend) for backend in ("torch", "hf")],
        *[("qwen as saved", "qwen draft", 28, backend) for backend in ("torch", "hf")],
        *[("qwen3 8B", "qwen3 2B", 32, backend) for backend in ("torch", "hf")],
        pytest.param("qwen3 8B", "qwen3 2B", 32, "native", marks=_NATIVE),
        ("qwen3 32B", "qwen3 2B", 32, "auto"),
    ],
)
async def test_every_method_says_what_generate_says(
    find: Callable[[str], str],
    clip: Path,
    frames: NDArray[np.uint8],
    checkpoint: str,
    draft: str,
    side: int,
    backend: str,
) -> None:
    """From a file: two frames a second, so a pair of frames is a second."""
    target = find(checkpoint)
    frames = resized(target, frames)
    reference = REFERENCES[checkpoint.split()[0]](Path(target))
    assert isinstance(reference, QwenReference)
    end = load_processor(target).end_token_ids
    expected = reference.generate(QUESTION, frames, MAX_TOKENS, end, second_per_grid=1.0)
    other_times = reference.generate(QUESTION, frames, MAX_TOKENS, end, second_per_grid=8.0)
    assert expected != other_times, "this prompt cannot show a mistake in the positions"
    async with Engine.create(target=target, draft=find(draft), backend=backend, **INPROC) as engine:
        for method in METHODS:
            source = clip if method == "parallel" else frames
            answer = await engine.answer(source, QUESTION, max_tokens=MAX_TOKENS, method=method)
            assert answer.tokens == expected, method
            assert answer.stats.draft_lost == ""
            assert answer.stats.frame_indices == ((0, 2, 4, 6, 8, 10) if source is clip else tuple(range(6)))
            assert answer.stats.video_tokens == 3 * frames[0, ..., 0].size // side**2


@pytest.mark.parametrize("backend", ["torch", "hf"])
async def test_a_draft_that_sees_most_of_the_video_is_of_use(
    find: Callable[[str], str], frames: NDArray[np.uint8], backend: str
) -> None:
    """The target itself as its draft: seeing everything it is always right, and without a tenth still often."""
    target = find("qwen")
    alone = await ask(target, None, frames)
    whole = await ask(target, target, frames, backend=backend, method="sd", prune="none")
    most = await ask(target, target, frames, backend=backend, method="sd", prune="uv", prune_ratio=0.1)
    assert alone.tokens == whole.tokens == most.tokens
    assert whole.stats.acceptance_rate == 1.0
    assert 0.85 < most.stats.kept_video_tokens / most.stats.video_tokens < 0.95
    assert most.stats.acceptance_rate is not None
    assert most.stats.acceptance_rate > 0.3
    assert most.stats.draft_lost == ""


@pytest.mark.parametrize("backend", ["torch", "hf"])
async def test_the_draft_has_a_device_of_its_own(
    find: Callable[[str], str], frames: NDArray[np.uint8], backend: str
) -> None:
    """The target's layers over two, the draft on one; torch takes both CPUs for the same."""
    target, draft = find("qwen"), find("qwen draft")
    alone = await ask(target, None, frames)
    devices = {"device": "cpu:0,cpu:1", "draft_device": "cpu:1"}
    async with Engine.create(target=target, draft=draft, backend=backend, **devices, **INPROC) as engine:
        assert {role: info.device for role, info in engine.models.items()} == {
            "target": devices["device"],
            "draft": devices["draft_device"],
        }
        answer = await engine.answer(frames, QUESTION, max_tokens=MAX_TOKENS, method="sd")
    assert answer.tokens == alone.tokens
    assert answer.stats.drafted_tokens > 0
    assert answer.stats.draft_lost == ""


async def test_two_answers_at_once_do_not_disturb_each_other(
    find: Callable[[str], str], frames: NDArray[np.uint8]
) -> None:
    """transformers keeps a prompt's ``rope_deltas`` on the model."""
    videos = [frames[:2], frames[:, :64], frames[::2, :, :96]]
    async with Engine.create(target=find("qwen"), draft=find("qwen draft"), backend="hf", **INPROC) as engine:
        alone = [await engine.answer(video, QUESTION, max_tokens=MAX_TOKENS, method="ar") for video in videos]
        together: dict[int, Answer] = {}

        async def answer(number: int) -> None:
            together[number] = await engine.answer(videos[number], QUESTION, max_tokens=MAX_TOKENS)

        async with anyio.create_task_group() as tasks:
            for number in range(len(videos)):
                tasks.start_soon(answer, number)
    assert [together[number].tokens for number in range(len(videos))] == [one.tokens for one in alone]
    assert len({one.tokens for one in alone}) == len(videos)


# ---- pairs that do not quite fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        ("qwen", "qwen padded"),
        ("qwen padded", "qwen"),
        ("qwen3", "qwen3 padded"),
        ("llava", "llava padded"),
        ("llava padded", "llava unpadded"),
    ],
)
async def test_vocabularies_that_are_padded_differently(
    find: Callable[[str], str], frames: NDArray[np.uint8], target: str, draft: str
) -> None:
    """Random models draw ids of the padding as gladly as others, which real ones do not."""
    options: list[dict[str, Any]] = [{}, {"temperature": 2.0, "seed": 7}]
    async with Engine.create(target=find(target), draft=find(draft), **INPROC) as engine:
        sizes = {role: info.vocab_size for role, info in engine.models.items()}
        assert sizes["target"] != sizes["draft"]
        for option in options:
            answers = [
                await engine.answer(frames, QUESTION, max_tokens=MAX_TOKENS, ignore_eos=True, method=method, **option)
                for method in METHODS
            ]
            assert len({answer.tokens for answer in answers}) == 1
            assert [answer.stats.draft_lost for answer in answers] == ["", "", ""]
            assert answers[1].stats.drafted_tokens > 0
    if sizes["target"] > sizes["draft"]:
        assert max(answers[0].tokens) >= sizes["draft"], "no id that the draft does not have"


@pytest.mark.parametrize(("target", "draft"), [("qwen", "llava"), ("llava", "qwen"), ("qwen3", "qwen padded")])
async def test_a_draft_of_another_family(
    find: Callable[[str], str], frames: NDArray[np.uint8], target: str, draft: str
) -> None:
    """The tokenizers differ in their placeholders alone. Each side resizes frames and builds its prompt for itself."""
    alone = await ask(find(target), None, frames)
    async with Engine.create(target=find(target), draft=find(draft), prune="none", **INPROC) as engine:
        for method in ("sd", "parallel"):
            answer = await engine.answer(frames, QUESTION, max_tokens=MAX_TOKENS, method=method)
            assert answer.tokens == alone.tokens
            assert answer.stats.draft_lost == ""
            assert answer.stats.drafted_tokens > 0 or method == "parallel"  # where the target waits for no draft
        pruned = await engine.answer(frames, QUESTION, max_tokens=MAX_TOKENS, method="sd", prune="uniform")
    assert pruned.tokens == alone.tokens
    assert (
        f"the prune mask is for {alone.stats.video_tokens} video tokens, but the draft has" in pruned.stats.draft_lost
    )
    assert "--prune none" in pruned.stats.draft_lost
    shown = Console(width=300)
    with shown.capture() as text:
        shown.print(figures_table(pruned.stats))
    assert pruned.stats.draft_lost in text.get()


@pytest.fixture
def rewritten(find: Callable[[str], str], tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], str]:
    """A copy of the target whose tokenizer.json is changed by a function."""
    shutil.copytree(find("qwen"), tmp_path / "draft")
    original = json.loads((tmp_path / "draft" / "tokenizer.json").read_text())

    def rewrite(change: Callable[[dict[str, Any]], object]) -> str:
        tokenizer = copy.deepcopy(original)
        change(tokenizer)
        (tmp_path / "draft" / "tokenizer.json").write_text(json.dumps(tokenizer, sort_keys=True))
        return str(tmp_path / "draft")

    return rewrite


async def test_tokenizers_that_differ_in_meaning(
    find: Callable[[str], str], rewritten: Callable[[Callable[[dict[str, Any]], object]], str]
) -> None:
    target, frames = find("qwen"), np.zeros((2, 56, 56, 3), np.uint8)
    names: list[str] = []

    def reverse(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        names[:] = sorted(vocabulary, key=vocabulary.get)[300:308]
        vocabulary.update(zip(names, range(307, 299, -1), strict=True))  # eight ids in the opposite order

    with pytest.raises(ModelMismatch) as refused:
        await ask(target, rewritten(reverse), frames)
    shown = [f"{300 + place}: {names[place]!r} / {names[7 - place]!r}" for place in range(5)]
    assert "; ".join(shown) + " and 3 more" in str(refused.value)

    spaced = rewritten(lambda tokenizer: tokenizer["pre_tokenizer"].update(add_prefix_space=True))
    with pytest.raises(ModelMismatch, match=r"rules for splitting text.*\"What happens first .* from token 0 on"):
        await ask(target, spaced, frames)


async def test_tokenizers_that_are_only_written_differently(
    find: Callable[[str], str], rewritten: Callable[[Callable[[dict[str, Any]], object]], str]
) -> None:
    """As transformers 5 saves one again, and by a rule that the fingerprint does not know to be without effect."""

    def resave(tokenizer: dict[str, Any]) -> None:
        tokenizer["pre_tokenizer"]["trim_offsets"] = False
        tokenizer["model"].update(ignore_merges=True, continuing_subword_prefix="")

    def normalize(tokenizer: dict[str, Any]) -> None:
        tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "\ue123 nowhere"}, "content": ""}

    target = find("qwen")
    own = load_processor(target).tokenizer_fingerprint
    for change, same in ((resave, True), (normalize, False)):
        draft = rewritten(change)
        assert (load_processor(draft).tokenizer_fingerprint == own) is same
        answer = await ask(target, draft, np.zeros((2, 56, 56, 3), np.uint8), method="sd", max_tokens=8)
        assert answer.stats.draft_lost == ""
        assert answer.stats.accepted_tokens > 0


# ---- questions about none, one and several pictures ---------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen", "llava"])
async def test_a_question_about_no_video(find: Callable[[str], str], family: str) -> None:
    target = find(family)
    end = load_processor(target).end_token_ids
    expected = REFERENCES[family](Path(target)).generate(QUESTION, None, MAX_TOKENS, end)
    async with Engine.create(target=target, draft=target, **INPROC) as engine:
        for method in METHODS:
            answer = await engine.answer(None, QUESTION, max_tokens=MAX_TOKENS, method=method)
            assert answer.tokens == expected
            assert (answer.stats.video_tokens, answer.stats.frame_indices) == (0, ())
            assert answer.stats.draft_lost == ""
        with pytest.raises(OptionError, match="num_frames=4 needs a video"):
            await engine.answer(None, QUESTION, num_frames=4)


@pytest.mark.parametrize("family", ["qwen", "llava"])
async def test_pictures_are_frames(find: Callable[[str], str], frames: NDArray[np.uint8], family: str) -> None:
    """One picture, or several of one size, are a video's frames; of other sizes they are refused."""
    pictures = [Image.fromarray(frame) for frame in frames[:3]]
    async with Engine.create(target=find(family), draft=None, **INPROC) as engine:
        for count in (1, 3):
            answer = await engine.answer(pictures[:count], QUESTION, max_tokens=8)
            assert answer.tokens == (await engine.answer(frames[:count], QUESTION, max_tokens=8)).tokens
        with pytest.raises(VideoError, match="images must be of one size, but image 1 is 10x10"):
            await engine.answer([pictures[0], Image.new("RGB", (10, 10))], QUESTION)


@pytest.mark.parametrize("backend", ["torch", "hf"])
async def test_a_video_beyond_the_positions_is_refused_before_the_tower_runs(
    find: Callable[[str], str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    names = {
        "torch": "pvlm_backends.families.qwen2_5_vl.tower.QwenVisionTower.encode",
        "hf": "transformers.Qwen2_5_VLForConditionalGeneration.get_video_features",
    }
    monkeypatch.setattr(names[backend], lambda *given, **named: ran.append(given))
    frames = np.zeros((120, 168, 168, 3), np.uint8)
    with pytest.raises(PromptError) as refused:
        await ask(find("qwen"), None, frames, backend=backend)
    assert not ran
    for number in ("2160 of its", "33 are reserved", "2048", "fewer frames"):
        assert number in str(refused.value)


async def test_frames_that_are_too_long_are_refused(find: Callable[[str], str]) -> None:
    with pytest.raises(PromptError, match="1000x4 are more than 200 times"):
        await ask(find("qwen"), None, np.zeros((2, 4, 1000, 3), np.uint8))


def test_settings_that_are_not_applied_reach_the_command_line(
    find: Callable[[str], str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    shutil.copytree(find("llava"), target)
    edit_settings(target / "generation_config.json", repetition_penalty=1.1, no_repeat_ngram_size=3)
    arguments = ["answer", str(clip), QUESTION, "--target", str(target), "--method", "ar", "--transport", "inproc"]
    arguments += ["--frames", "1", "--max-tokens", "2"]
    ignored = ["no_repeat_ngram_size=3", "repetition_penalty=1.1"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stats"]["ignored_options"] == ignored
    assert main(arguments) == 0
    assert f"not applied: the checkpoint's own {', '.join(ignored)}" in " ".join(capsys.readouterr().err.split())


def setup_module() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def teardown_module() -> None:
    structlog.reset_defaults()


@pytest.mark.parametrize("family", ["qwen", "llava"])
async def test_a_picture_is_a_video_of_one_frame(find: Callable[[str], str], tmp_path: Path, family: str) -> None:
    image = Image.fromarray(
        np.kron(np.eye(8, dtype=np.uint8)[..., None] * [250, 120, 30], np.ones((8, 8, 1))).astype(np.uint8)
    )
    image.save(tmp_path / "still.png")
    async with Engine.create(target=find(family), method="ar", **INPROC) as engine:
        texts = [
            (await engine.answer(video, QUESTION, max_tokens=8, ignore_eos=True, trace=Trace())).text
            for video in (tmp_path / "still.png", image, [image])
        ]
    assert len(set(texts)) == 1
