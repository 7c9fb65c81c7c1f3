"""The emulated backend: its text, its guesses, its times, and the engine over a pair of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pvlm import Answer, Engine, ModelError
from pvlm_backends.emulated import EmulatedBackend
from pvlm_backends.emulated.model import read_model
from pvlm_protocols.backend import Backend, BackendError, CheckpointError, LoadOptions, Processor, Prompt, Role, Session
from tests.backends.contract import BackendContract

FRAMES = np.zeros((2, 4, 4, 3), np.uint8)
PROMPT = Prompt("What happens first in the video?", FRAMES)
LENGTH = 600
QUICK = {"pass_ms": 0.0, "video_tokens": 32}


def spec(**settings: Any) -> str:
    return json.dumps({**QUICK, **settings})


def load(role: Role = "target", **settings: Any) -> EmulatedBackend:
    return EmulatedBackend.load(LoadOptions(spec(**settings), role))


def started(backend: Backend, keep: torch.Tensor | None = None) -> tuple[Session, int]:
    """A prefilled session, and the first token."""
    session = backend.open(PROMPT, LENGTH)
    return session, int(session.prefill(keep).argmax())


def said(backend: Backend, tokens: int = LENGTH, fed: int = 1) -> list[int]:
    """What a model says when it is fed the token ``fed`` again and again."""
    session, first = started(backend)
    return [first, *session.extend([fed] * (tokens - 1)).argmax(dim=1).tolist()]


def guesses(**settings: Any) -> list[bool]:
    """Which positions a draft guesses right."""
    seed = settings.get("seed", 0)
    pairs = zip(said(load("draft", **settings)), said(load(seed=seed)), strict=True)
    return [guess == token for guess, token in pairs]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class TestContract(BackendContract):
    """What every backend does; only that its text depends on the question is not this one's."""

    @pytest.fixture
    def backend(self) -> Backend:
        return load(pass_ms={"1": 0.0, "8": 0.0})

    @pytest.fixture
    def prompt(self) -> Prompt:
        return PROMPT

    def test_interleaved_sessions_do_not_disturb_each_other(self, backend: Backend, prompt: Prompt) -> None:
        left, right = backend.open(prompt, 4), backend.open(prompt, 4)
        rows = [[session.prefill()] for session in (left, right)]
        for token in (11, 7, 29):
            for session, seen in zip((left, right), rows, strict=True):
                seen.append(session.extend([token])[0])
        assert torch.equal(torch.stack(rows[0]), torch.stack(rows[1]))


def test_a_closed_backend_opens_nothing() -> None:
    fractions: list[float] = []
    backend = EmulatedBackend.load(LoadOptions(spec()), fractions.append)
    assert fractions == [1.0]
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.open(PROMPT, 1)


def test_the_class_and_its_processor_import_no_torch() -> None:
    script = (
        "import sys; from pvlm_backends.emulated import EmulatedBackend as backend; "
        f"backend.processor({spec()!r}); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_its_processor_has_words() -> None:
    processor = EmulatedBackend.processor(spec(vocab_size=20))
    assert isinstance(processor, Processor)
    assert processor.decode([17, 3, 0]) == "w17 w3 "
    assert "".join(processor.tokens_as_text()[token] for token in (17, 3)) == processor.decode([17, 3])
    assert len(processor.tokens_as_text()) == 20
    assert processor.resize(FRAMES) is FRAMES
    same, other = (EmulatedBackend.processor(spec(vocab_size=size, seed=9)) for size in (20, 21))
    assert same.tokenizer_fingerprint == processor.tokenizer_fingerprint != other.tokenizer_fingerprint


@pytest.mark.parametrize(
    ("tokens", "frames", "grid"),
    [(1024, 16, (16, 8, 8)), (96, 8, (8, 3, 4)), (35, 5, (5, 1, 7)), (32, 2, (2, 4, 4)), (32, 3, (1, 1, 32))],
)
def test_its_tokens_are_shared_out_to_the_frames_or_stand_in_one_row(
    tokens: int, frames: int, grid: tuple[int, int, int]
) -> None:
    processor = EmulatedBackend.processor(spec(video_tokens=tokens))
    assert processor.video_grid(np.zeros((frames, 4, 4, 3), np.uint8)) == grid


# ---- text ---------------------------------------------------------------------------------------------------------


def test_the_text_depends_on_the_seed_alone() -> None:
    text = said(load(seed=3))
    assert len(set(text)) > 200
    assert said(load(seed=3, video_tokens=7, layers=2, pass_ms={"1": 0.1}), fed=5) == text
    assert said(load(seed=4)) != text
    one_by_one, first = started(load(seed=3))
    tokens = [first]
    for _ in range(50):
        tokens.append(int(one_by_one.extend([tokens[-1]]).argmax()))
        one_by_one.extend([1, 2, 3])  # a window that is turned down
        one_by_one.truncate(len(tokens) - 1)
    assert tokens == text[:51]


def test_the_text_ends_where_it_is_told_to() -> None:
    endless = said(load())
    assert 0 not in endless
    assert said(load(answer_tokens=12))[:14] == [*endless[:12], 0, 0]


def test_a_wrong_guess_is_another_word() -> None:
    right, wrong = said(load(vocab_size=3)), said(load("draft", vocab_size=3, acceptance=0.0))
    assert {(guess, token) for guess, token in zip(wrong, right, strict=True)} == {(1, 2), (2, 1)}


# ---- guesses ------------------------------------------------------------------------------------------------------


def runs(right: Sequence[bool]) -> list[int]:
    """Right guesses before each wrong one."""
    return [len(run) for run in "".join("d" if guess else "c" for guess in right).split("c")[:-1]]


def test_a_draft_is_always_right_if_nothing_else_is_said() -> None:
    assert all(guesses())
    assert all(guesses(acceptance=1.0, stratified=True))
    assert not any(guesses(acceptance=0.0, stratified=True))


@pytest.mark.parametrize("beta", [0.3, 0.8, 0.93])
def test_independent_guesses_have_their_rate(beta: float) -> None:
    right = guesses(acceptance=beta, seed=1)
    deviation = (beta * (1 - beta) / LENGTH) ** 0.5
    assert abs(sum(right) / LENGTH - beta) < 3 * deviation


@pytest.mark.parametrize("beta", [0.3, 0.8, 0.8718, 0.93])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stratified_guesses_have_their_rate_exactly_and_geometric_runs(beta: float, seed: int) -> None:
    right = guesses(acceptance=beta, stratified=True, seed=seed)
    found = runs(right)
    mean = beta / (1 - beta)
    for block in range(len(found) // 16):  # a block of runs has the given mean, rounded
        assert abs(sum(found[: 16 * (block + 1)]) - 16 * (block + 1) * mean) <= 0.5
        assert len(set(found[16 * block : 16 * (block + 1)])) > 2
    assert abs(sum(right) / LENGTH - beta) < 0.015
    for length in range(4):
        share = sum(run >= length for run in found) / len(found)
        assert abs(share - beta**length) < 0.1


def test_phases_follow_each_other() -> None:
    right = guesses(acceptance=[{"beta": 1.0, "tokens": 100}, {"beta": 0.0, "tokens": 50}, {"beta": 0.9}])
    assert all(right[:100])
    assert not any(right[100:150])
    assert 0.85 < sum(right[150:]) / (LENGTH - 150) < 0.95


@pytest.mark.parametrize(
    "content", ["ddcdtdd", '"ddcdtdd"', '{"text": "", "stats": {"origins": "ddcdtdd", "seed": null}}']
)
def test_a_trace_is_repeated(tmp_path: Path, content: str) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text(content)
    right = guesses(trace=str(trace))
    letters = ("ddcdtdd" * LENGTH)[:LENGTH]
    assert all(guess == (letter == "d") for guess, letter in zip(right, letters, strict=True) if letter != "t")
    untested = [guess for guess, letter in zip(right, letters, strict=True) if letter == "t"]
    assert 0.6 < sum(untested) / len(untested) < 0.98  # 5/6 of them


# ---- specifications -----------------------------------------------------------------------------------------------

BAD = {
    "unknown key": (spec(passms=3), "unknown field `passms`"),
    "both times": (spec(pruned_pass_ms={"0": 1}), "exactly one of pass_ms and pruned_pass_ms"),
    "no times": ("{}", "exactly one of pass_ms and pruned_pass_ms"),
    "empty times": ('{"pass_ms": {}}', "at least one point"),
    "a pass over nothing": ('{"pass_ms": {"0": 1}}', ">= 1"),
    "beta": (spec(acceptance=1.2), "<= 1.0"),
    "beta of a phase": (spec(acceptance=[{"beta": -0.1}]), ">= 0.0"),
    "no phase": (spec(acceptance=[]), "at least one phase"),
    "endless phase": (spec(acceptance=[{"beta": 0.1}, {"beta": 0.2}]), "every phase but the last"),
    "negative time": (spec(pass_ms=-1), ">= 0.0"),
    "acceptance twice": (spec(acceptance=0.5, trace="x"), "acceptance or trace"),
    "nothing to stratify": (spec(stratified=True), "acceptance"),
    "broken": ('{"pass_ms": 1', "is not valid"),
    "missing file": ("no/such/file.json", "no/such/file.json"),
    "missing trace": (spec(trace="no/such/trace.json"), "no/such/trace.json"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_specification_says_what_is_wrong(bad: str) -> None:
    text, complaint = BAD[bad]
    with pytest.raises(CheckpointError) as error:
        EmulatedBackend.load(LoadOptions(text, "draft"))
    assert complaint in str(error.value)


@pytest.mark.parametrize("content", ["", "ddx", "ttt", '{"stats": {}}', '{"stats"', "\xff"])
def test_a_bad_trace_says_so(tmp_path: Path, content: str) -> None:
    trace = tmp_path / "trace.json"
    trace.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match="the trace"):
        load("draft", trace=str(trace))


@pytest.mark.parametrize("settings", [{"acceptance": 0.5}, {"pass_ms": None, "pruned_pass_ms": {"0": 1}}])
def test_what_is_a_draft_s_is_refused_in_a_target(settings: dict[str, Any]) -> None:
    load("draft", **settings)
    with pytest.raises(CheckpointError, match="is a draft's"):
        load("target", **settings)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(BackendError, match="unknown backend option 'speed'"):
        EmulatedBackend.load(LoadOptions(spec(), extra={"speed": 2}))


def test_a_specification_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(spec(seed=5))
    backend = EmulatedBackend.load(LoadOptions(str(path)))
    assert backend.info.name == str(path)
    assert said(backend) == said(load(seed=5))


# ---- times --------------------------------------------------------------------------------------------------------


def ms(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def test_pass_times_are_as_given_between_and_beyond_the_points() -> None:
    model = read_model(spec(pass_ms={"2": 10, "4": 30, "6": 20}, time_scale=0.5))
    found = [model.pass_s(tokens, pruned=0.5) * 1000 for tokens in (1, 2, 3, 4, 6, 10)]
    assert found == pytest.approx([5, 5, 10, 15, 10, 15])  # from 2 to 6 tokens the overall slope is 2.5 ms a token
    falling = read_model(spec(pass_ms={"1": 10, "2": 8}))
    assert falling.pass_s(9, pruned=0.0) == pytest.approx(0.008)
    assert read_model(spec(pass_ms=7)).pass_s(9, pruned=0.0) == pytest.approx(0.007)


def test_a_pruned_draft_s_times_are_as_given_between_the_ratios() -> None:
    model = read_model(spec(pass_ms=None, pruned_pass_ms={"0": 40, "0.5": 20, "0.9": 10}))
    found = [model.pass_s(tokens=3, pruned=pruned) * 1000 for pruned in (0.0, 0.25, 0.5, 0.7, 0.9, 0.95)]
    assert found == pytest.approx([40, 30, 20, 15, 10, 10])


def test_a_pass_takes_at_least_its_time() -> None:
    session, _ = started(load(pass_ms={"1": 10, "3": 30}))
    assert ms(lambda: session.extend([1])) >= 10
    assert ms(lambda: session.extend([1] * 3)) >= 30


def test_what_is_pruned_is_what_the_prefill_did_not_keep() -> None:
    backend = load("draft", pass_ms=None, pruned_pass_ms={"0": 5, "1": 45}, video_tokens=64)
    keep = torch.zeros(64, dtype=torch.bool)
    keep[:16] = True
    session, _ = started(backend, keep)
    assert ms(lambda: session.extend([1])) >= 35


def test_opening_and_prefill_take_at_least_their_time() -> None:
    backend = load(open_ms=15, prefill_ms=40, video_tokens=128)
    keep = torch.ones(128, dtype=torch.bool)
    keep[:64] = False
    assert ms(lambda: backend.open(PROMPT, 1)) >= 15
    whole, pruned = backend.open(PROMPT, 1), backend.open(PROMPT, 1)
    assert ms(whole.prefill) >= 40
    assert ms(lambda: pruned.prefill(keep)) >= 20


def test_a_prefill_is_as_long_as_its_layers() -> None:
    session = load(prefill_ms=80, layers=4).open(PROMPT, 1)
    began, at = time.perf_counter(), []
    session.prefill(on_progress=lambda: at.append((time.perf_counter() - began) * 1000))
    assert all(ms >= 20 * layer for layer, ms in enumerate(at))
    assert len(at) == 5


# ---- an engine over a pair ----------------------------------------------------------------------------------------


async def answers(
    methods: Sequence[str], transport: str = "inproc", temperatures: Sequence[float] = (0.0,), **settings: Any
) -> list[Answer]:
    """Of an engine over ``target`` and ``draft``, each a mapping; all methods at the first temperature come first.

    The window is fixed, so that a busy machine cannot make the engine go on without its draft.
    """
    pair = {"target": spec(**settings["target"]), "draft": spec(**settings["draft"])}
    options: dict[str, Any] = {"max_tokens": 120, "prune_ratio": 0.9, "window": 5}
    async with Engine.create(pair, backend="emulated", transport=transport) as engine:
        return [
            await engine.answer(FRAMES, "What happens?", method=method, temperature=temperature, **options)
            for temperature in temperatures
            for method in methods
        ]


@pytest.mark.anyio
@pytest.mark.parametrize("transport", ["inproc", "ipc"])
async def test_every_method_says_the_text(transport: str) -> None:
    """Greedily and sampled."""
    text = said(load(seed=2, answer_tokens=100))[:101]
    target: dict[str, Any] = {"seed": 2, "answer_tokens": 100, "pass_ms": 3.0}
    draft = {**target, "pass_ms": 1.0, "acceptance": 0.8}
    found = await answers(["ar", "sd", "parallel"], transport, [0.0, 1.0], target=target, draft=draft)
    for answer in found:
        assert list(answer.tokens) == text
        assert answer.finish_reason == "stop"
    assert [answer.stats.method for answer in found] == ["ar", "sd", "parallel"] * 2
    assert all(answer.stats.rejected_tokens > 5 for answer in found if answer.stats.method != "ar")
    assert [answer.stats.kept_video_tokens for answer in found[2::3]] == [3, 3]


@pytest.mark.anyio
async def test_the_measured_acceptance_is_the_given_one() -> None:
    times = {"pass_ms": 2.0}
    (answer,) = await answers(["parallel"], target=times, draft={"pass_ms": 0.5, "acceptance": 0.8, "stratified": True})
    assert answer.stats.acceptance_rate == pytest.approx(0.8, abs=0.03)


@pytest.mark.anyio
async def test_a_recorded_answer_is_replayed(tmp_path: Path) -> None:
    """From one draft's answer, a trace; from the trace, a draft that is right and wrong where the first one was."""
    times = {"pass_ms": 2.0}
    first = (await answers(["parallel"], target=times, draft={"pass_ms": 0.5, "acceptance": 0.7}))[0].stats.origins
    trace = tmp_path / "answer.json"
    trace.write_text(json.dumps({"stats": {"origins": first}}))
    right = guesses(trace=str(trace))
    again = (await answers(["parallel"], target=times, draft={"pass_ms": 0.5, "trace": str(trace)}))[0].stats.origins
    assert first.count("c") > 10
    for before, guess, after in zip(first, right, again, strict=False):
        assert guess == (before == "d") or before == "t"
        assert after == "t" or guess == (after == "d")


@pytest.mark.anyio
async def test_a_bad_specification_is_an_error_of_the_model() -> None:
    with pytest.raises(ModelError, match="unknown field `speed`"):
        await answers(["ar"], target={"speed": 1}, draft={})


@pytest.mark.anyio
async def test_draft_and_target_work_at_the_same_time() -> None:
    """In parallel decoding, all of the draft's time but the first window's passes beside the target's."""
    (answer,) = await answers(["parallel"], target={"pass_ms": 40.0}, draft={"pass_ms": 8.0})
    stats = answer.stats
    assert stats.target_pass_ms is not None
    target_s, draft_s = stats.target_passes * 0.040, stats.drafted_tokens * 0.008
    assert target_s > 0.5
    assert draft_s > 0.5
    assert stats.decode_s < 0.8 * (target_s + draft_s)
