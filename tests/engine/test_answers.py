"""Answers of an open engine and of a bare one, on toy models whose greedy text is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from pvlm import AnswerStats, Engine, EngineStateError, OptionError, TargetLost
from pvlm.coordination.events import Cancelled, Finish, StopAfter
from pvlm.trace import Trace
from tests.engine.conftest import FRAMES, TOY
from tests.support.toy import END_TOKEN, ToyBackend, ToyProcessor

pytestmark = pytest.mark.anyio
TARGET = ToyBackend()
MANY = 4000
"""More tokens than any of these tests waits for."""


def spelled(tokens: list[int]) -> str:
    return ToyProcessor().decode(tokens)


def greedy(max_tokens: int, **options: Any) -> list[int]:
    return TARGET.greedy(max_tokens, **options)


@pytest.fixture(autouse=True)
def _nothing_is_left_open(models: dict[str, ToyBackend]) -> Iterator[None]:
    """Every test ends without a session at any actor, however its answers ended."""
    yield
    for toys in (models, ToyBackend.loaded):
        assert {role: toy.open_sessions for role, toy in toys.items() if toy.open_sessions} == {}


# ---- the life of an engine ----------------------------------------------------------------------------------------


async def test_a_bare_engine_answers_again_and_again() -> None:
    engine = Engine.create(**TOY)
    first = await engine.answer(FRAMES, "?", max_tokens=20)
    second = await engine.answer(FRAMES, "?", max_tokens=20)
    assert list(first.tokens) == list(second.tokens) == greedy(20)
    assert str(first) == first.text == spelled(greedy(20))


async def test_a_bare_stream_closes_its_models_with_it() -> None:
    async with Engine.create(**TOY).stream(FRAMES, "?", max_tokens=20) as chunks:
        tokens = [token async for chunk in chunks for token in chunk.tokens]
    assert tokens == greedy(20)


async def test_an_answer_may_choose_its_stages(toys: Engine) -> None:
    """In turns, all that is drafted is verified; and a draft that prefills late has no part in the first token."""
    how: dict[str, Any] = {"max_tokens": 60, "window": 4, "method": "parallel"}
    # A draft that gets no processor for a while may write nothing that is dropped.
    aheads = [await toys.answer(FRAMES, "?", **how) for _ in range(4)]
    ahead = max(aheads, key=lambda answer: answer.stats.drafted_tokens - sum(answer.stats.windows))
    turns = await toys.answer(FRAMES, "?", **how, parallel_decode=False)
    late = await toys.answer(FRAMES, "?", **how, parallel_decode=False, parallel_prefill=False)
    assert list(ahead.tokens) == list(turns.tokens) == list(late.tokens) == greedy(60)
    assert ahead.stats.drafted_tokens > sum(ahead.stats.windows)
    assert turns.stats.drafted_tokens == sum(turns.stats.windows)
    assert turns.stats.origins[0] != "t"
    assert late.stats.origins[0] == "t"


@pytest.mark.parametrize("method", ["ar", "sd", "parallel", "auto", None])
async def test_an_open_engine_answers_by_any_method(toys: Engine, method: str | None) -> None:
    answer = await toys.answer(FRAMES, "?", max_tokens=40, method=method)
    assert list(answer.tokens) == greedy(40)
    assert answer.stats.method == ("parallel" if method in ("auto", None) else method)


async def test_an_engine_without_a_draft_has_one_method() -> None:
    async with Engine.create({**TOY, "draft": None}) as engine:
        assert set(engine.models) == {"target"}
        assert (await engine.answer(FRAMES, "?", max_tokens=20)).stats.method == "ar"
        with pytest.raises(OptionError, match="method 'sd' needs a draft"):
            await engine.answer(FRAMES, "?", method="sd")


async def test_four_answers_at_once_are_those_of_each_alone(toys: Engine) -> None:
    """By gather, with different methods, lengths and prompts."""
    asked: list[dict[str, Any]] = [
        {"max_tokens": 60, "method": "parallel", "ignore_eos": True},
        {"max_tokens": 50, "method": "sd", "ignore_eos": True},
        {"max_tokens": 40, "method": "ar", "ignore_eos": True},
        {"max_tokens": 60, "method": "parallel", "ignore_eos": True, "seed": 3, "temperature": 1.0},
    ]
    alone = [await toys.answer(FRAMES, "?", **options) for options in asked]
    together = await asyncio.gather(*(toys.answer(FRAMES, "?", **options) for options in asked))
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert len({answer.tokens for answer in together}) == 4


async def test_answers_may_come_from_the_tasks_of_a_group(toys: Engine) -> None:
    found: list[list[int]] = []

    async def ask(max_tokens: int) -> None:
        found.append(list((await toys.answer(FRAMES, "?", max_tokens=max_tokens, ignore_eos=True)).tokens))

    async with anyio.create_task_group() as tasks:
        for max_tokens in (5, 10, 15, 20):
            tasks.start_soon(ask, max_tokens)
    assert sorted(found, key=len) == [greedy(count, end_tokens=()) for count in (5, 10, 15, 20)]


async def test_closing_the_engine_ends_the_answers_that_are_being_written() -> None:
    """With an error, not with a wait for ever."""
    async with Engine.create({**TOY, "target": "0@2"}) as engine:
        asking = asyncio.ensure_future(engine.answer(FRAMES, "?", max_tokens=MANY, ignore_eos=True))
        await asyncio.sleep(0.1)
        await engine.aclose()
        with anyio.fail_after(30), pytest.raises((TargetLost, EngineStateError)):
            await asking


# ---- streams ------------------------------------------------------------------------------------------------------


async def test_a_stream_adds_up_to_its_answer(toys: Engine) -> None:
    async with toys.stream(FRAMES, "?", max_tokens=200, ignore_eos=True) as chunks:
        with pytest.raises(EngineStateError, match="the answer is not complete"):
            _ = chunks.answer
        found = [chunk async for chunk in chunks]
        assert [chunk async for chunk in chunks] == []
    answer = chunks.answer
    assert len(found) > 10
    assert "".join(chunk.text for chunk in found) == answer.text
    assert tuple(token for chunk in found for token in chunk.tokens) == answer.tokens
    assert list(answer.tokens) == greedy(200, end_tokens=())
    assert len(answer.stats.origins) == len(answer.tokens)


@asynccontextmanager
async def writing(engine: Engine, **options: Any) -> AsyncIterator[Any]:
    """A stream that has written something and is not done."""
    async with engine.stream(FRAMES, "?", max_tokens=MANY, ignore_eos=True, **options) as chunks:
        assert (await chunks.__anext__()).tokens
        yield chunks


@pytest.mark.parametrize("method", ["ar", "sd", "parallel"])
async def test_a_stream_that_is_left_early_frees_both_models(
    toys: Engine, models: dict[str, ToyBackend], method: str
) -> None:
    async with writing(toys, method=method):
        assert models["target"].open_sessions == 1
    assert models["target"].open_sessions == models["draft"].open_sessions == 0
    assert list((await toys.answer(FRAMES, "?", max_tokens=20)).tokens) == greedy(20)


async def test_a_stream_that_is_left_by_an_error_passes_it_on(toys: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        async with writing(toys):
            _ = 1 / 0
    assert list((await toys.answer(FRAMES, "?", max_tokens=20)).tokens) == greedy(20)


async def test_an_error_in_the_body_of_an_open_engine_passes_through_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Engine.create(TOY):
            _ = 1 / 0
    with pytest.raises(OptionError, match="did you mean"):
        async with Engine.create(TOY) as engine:
            await engine.answer(FRAMES, "?", max_token=3)
    with pytest.raises(ZeroDivisionError):
        async with Engine.create(TOY).stream(FRAMES, "?", max_tokens=20):
            _ = 1 / 0


async def test_a_stream_that_was_never_entered_costs_nothing(toys: Engine, models: dict[str, ToyBackend]) -> None:
    toys.stream(FRAMES, "?")
    assert models["target"].open_sessions == 0


@pytest.mark.parametrize("method", ["ar", "sd", "parallel"])
async def test_a_cancelled_answer_frees_both_models(toys: Engine, models: dict[str, ToyBackend], method: str) -> None:
    with anyio.move_on_after(0.1) as scope:
        await toys.answer(FRAMES, "?", max_tokens=100_000, ignore_eos=True, method=method)
    assert scope.cancelled_caught
    assert models["target"].open_sessions == models["draft"].open_sessions == 0
    assert list((await toys.answer(FRAMES, "?", max_tokens=20, method=method)).tokens) == greedy(20)


async def test_an_answer_that_is_cancelled_in_its_prefill_frees_both_models() -> None:
    """The prefill of these toys takes a second and more."""
    async with Engine.create({**TOY, "target": "0@300"}) as engine:
        with anyio.move_on_after(0.1) as scope:
            await engine.answer(FRAMES, "?", max_tokens=20)
        assert scope.cancelled_caught
        assert ToyBackend.loaded["target"].open_sessions == 0
        assert ToyBackend.loaded["draft"].open_sessions == 0


async def test_one_cancelled_answer_of_several_disturbs_no_other(toys: Engine) -> None:
    async def cancelled() -> None:
        with anyio.move_on_after(0.05):
            await toys.answer(FRAMES, "?", max_tokens=100_000, ignore_eos=True)

    kept: list[list[int]] = []

    async def finished() -> None:
        kept.append(list((await toys.answer(FRAMES, "?", max_tokens=300, ignore_eos=True)).tokens))

    async with anyio.create_task_group() as tasks:
        for action in (cancelled, finished, cancelled, finished):
            tasks.start_soon(action)
    assert kept == [greedy(300, end_tokens=())] * 2


# ---- where an answer ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ar", "sd", "parallel"])
@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens"])
@pytest.mark.parametrize("count", [1, 2, 7])
async def test_max_tokens_is_exact_under_both_its_names(toys: Engine, method: str, name: str, count: int) -> None:
    answer = await toys.answer(FRAMES, "?", ignore_eos=True, method=method, **{name: count})
    assert list(answer.tokens) == greedy(count, end_tokens=())
    assert answer.finish_reason == "length"
    assert answer.stats.new_tokens == count


@pytest.fixture
async def ending() -> AsyncIterator[Engine]:
    """Toys that say their end token soon."""
    async with Engine.create(TOY) as engine:
        for toy in ToyBackend.loaded.values():
            toy.seed, toy.end_logit = 3, 1.0
        yield engine


@pytest.mark.parametrize("method", ["ar", "sd", "parallel"])
async def test_an_end_token_ends_the_answer_unless_it_is_ignored(ending: Engine, method: str) -> None:
    says = ToyBackend(seed=3, end_logit=1.0)
    expected = says.greedy(100)
    assert expected[-1] == END_TOKEN, "this toy is to end"
    answer = await ending.answer(FRAMES, "?", max_tokens=100, method=method)
    assert list(answer.tokens) == expected
    assert answer.text == spelled(expected)
    assert answer.finish_reason == "stop"
    ignoring = await ending.answer(FRAMES, "?", max_tokens=100, method=method, ignore_eos=True)
    assert list(ignoring.tokens) == says.greedy(100, end_tokens=())
    assert ignoring.finish_reason == "length"


@pytest.mark.parametrize("method", ["ar", "sd", "parallel"])
async def test_stop_token_ids_end_the_answer_and_belong_to_it(toys: Engine, method: str) -> None:
    whole = greedy(100, end_tokens=())
    stop = whole[9]
    expected = whole[: whole.index(stop) + 1]
    answer = await toys.answer(FRAMES, "?", max_tokens=100, method=method, stop_token_ids=[stop], ignore_eos=True)
    assert list(answer.tokens) == expected
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("method", ["ar", "sd", "parallel"])
@pytest.mark.parametrize("length", [1, 2, 3, 5])
async def test_a_stop_string_ends_the_text_before_it_and_the_tokens_behind_it(
    toys: Engine, method: str, length: int
) -> None:
    """A letter is a token here, so the longer ones lie across tokens, windows and chunks."""
    whole = greedy(60, end_tokens=())
    text = spelled(whole)
    stop = text[30 : 30 + length]
    at = text.index(stop)
    count = next(count for count in range(61) if stop in spelled(whole[:count]))
    async with toys.stream(FRAMES, "?", max_tokens=60, ignore_eos=True, method=method, stop=stop) as chunks:
        found = [chunk async for chunk in chunks]
    answer = chunks.answer
    assert answer.text == "".join(chunk.text for chunk in found) == text[:at]
    assert list(answer.tokens) == [token for chunk in found for token in chunk.tokens] == whole[:count]
    assert answer.finish_reason == "stop"
    assert answer.stats.new_tokens == len(answer.stats.origins) == count


async def test_a_stop_string_ends_the_session_as_finished(toys: Engine) -> None:
    trace = Trace()
    text = spelled(greedy(60))
    answer = await toys.answer(FRAMES, "?", max_tokens=60, ignore_eos=True, stop=text[30:34], trace=trace)
    endings = [
        (each.event, [command for command in each.commands if isinstance(command, Finish)])
        for each in trace.recording().handled
        if isinstance(each.event, StopAfter | Cancelled)
    ]
    assert endings == [(StopAfter(len(answer.tokens)), [Finish("stop")])]


async def test_of_several_stop_strings_the_first_counts(toys: Engine) -> None:
    text = spelled(greedy(60, end_tokens=()))
    stops = [text[40:43], text[20:23], "never"]
    answer = await toys.answer(FRAMES, "?", max_tokens=60, ignore_eos=True, stop=stops)
    assert answer.text == text[: min(text.index(stop) for stop in stops[:2])]


async def test_a_stop_string_that_does_not_come_changes_nothing(toys: Engine) -> None:
    """What may have been its beginning is shown at the end."""
    text = spelled(greedy(40, end_tokens=()))
    answer = await toys.answer(FRAMES, "?", max_tokens=40, ignore_eos=True, stop=text[-3:] + "z")
    assert answer.text == text
    assert answer.finish_reason == "length"


# ---- errors -------------------------------------------------------------------------------------------------------


async def test_an_answer_that_fails_at_the_target_has_the_traceback_as_its_cause(
    toys: Engine, models: dict[str, ToyBackend]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of luck")

    target = models["target"]
    target.row, kept = broken, target.row  # type: ignore[method-assign]
    try:
        with pytest.raises(Exception, match="RuntimeError: out of luck") as caught:
            await toys.answer(FRAMES, "?", max_tokens=9)
    finally:
        target.row = kept  # type: ignore[method-assign]
    assert type(caught.value).__name__ == "ModelError"
    assert "in broken" in str(caught.value.__cause__)
    assert list((await toys.answer(FRAMES, "?", max_tokens=9)).tokens) == greedy(9)


async def test_a_draft_that_fails_at_a_session_is_told_of_in_the_statistics(
    toys: Engine, models: dict[str, ToyBackend]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of luck")

    draft = models["draft"]
    draft.row, kept = broken, draft.row  # type: ignore[method-assign]
    try:
        # A fixed window is waited for, so the answer cannot be over before the draft has failed.
        answer = await toys.answer(FRAMES, "?", max_tokens=30, window=4)
    finally:
        draft.row = kept  # type: ignore[method-assign]
    assert list(answer.tokens) == greedy(30)
    assert answer.stats.draft_lost == "RuntimeError: out of luck"
    assert (await toys.answer(FRAMES, "?", max_tokens=30)).stats.draft_lost == ""


# ---- statistics ---------------------------------------------------------------------------------------------------

PROMISED = {
    "prefill_s", "decode_s", "total_s", "time_to_first_token_s", "new_tokens", "tokens_per_second", "target_passes",
    "drafted_tokens", "accepted_tokens", "acceptance_rate", "mean_accepted_length", "rollbacks", "windows",
    "target_pass_ms", "draft_token_ms", "video_tokens", "kept_video_tokens", "method", "seed", "coupling", "draft_lost",
}  # fmt: skip


def test_the_statistics_have_all_their_names() -> None:
    assert set(AnswerStats.__struct_fields__) >= PROMISED


@pytest.mark.parametrize("method", ["ar", "sd", "parallel"])
@pytest.mark.parametrize("seed", [None, 5])
async def test_the_statistics_agree_with_each_other(toys: Engine, method: str, seed: int | None) -> None:
    sampling = {} if seed is None else {"seed": seed, "temperature": 1.0}
    answer = await toys.answer(
        FRAMES, "?", max_tokens=120, ignore_eos=True, method=method, prune_ratio=0.25, window=4, **sampling
    )
    stats = answer.stats
    assert stats.method == method
    assert stats.coupling == ("greedy" if seed is None else "gumbel")
    assert stats.seed == seed
    assert stats.new_tokens == len(answer.tokens) == len(answer.stats.origins) == 120
    assert 0 < stats.decode_s < stats.total_s
    assert stats.prefill_s >= 0
    assert stats.video_s + stats.prefill_s + stats.decode_s <= stats.total_s + 1e-9
    assert stats.video_s + stats.prefill_s <= stats.time_to_first_token_s <= stats.total_s
    assert stats.tokens_per_second == pytest.approx(120 / stats.decode_s)
    assert stats.target_passes >= 1
    assert stats.target_pass_ms is not None
    assert stats.target_pass_ms > 0
    assert len(stats.target_passes_ms) == stats.target_passes
    assert all(tokens >= 1 and ms > 0 for tokens, ms in stats.target_passes_ms)
    assert stats.video_tokens == 16
    assert stats.source_frames == len(stats.frame_indices) == 4
    assert stats.accepted_tokens == stats.origins.count("d")
    assert sum(stats.windows) <= stats.drafted_tokens
    assert stats.draft_lost == ""
    if method == "ar":
        assert stats.target_passes == 119
        assert stats.kept_video_tokens == 16
        assert stats.drafted_tokens == stats.accepted_tokens == stats.rejected_tokens == stats.rollbacks == 0
        assert stats.windows == ()
        assert stats.acceptance_rate is stats.mean_accepted_length is stats.draft_efficiency is None
        assert stats.draft_token_ms is None
        return
    assert stats.target_passes < 119
    assert stats.kept_video_tokens == (12 if method == "parallel" else 16)
    assert stats.prune == ("uv" if method == "parallel" else "none")
    assert stats.draft_token_ms is not None
    assert stats.draft_token_ms > 0
    assert 0 < stats.accepted_tokens <= stats.drafted_tokens
    hits = stats.outcome_hits + stats.outcome_late_hits  # no rollback follows those
    assert stats.rejected_tokens <= stats.rollbacks + hits + 1  # the last token may be a correction
    assert stats.acceptance_rate == stats.accepted_tokens / (stats.accepted_tokens + stats.rejected_tokens)
    assert stats.draft_efficiency == stats.accepted_tokens / stats.drafted_tokens
    assert stats.rejected_tokens > 0
    assert stats.mean_accepted_length == stats.accepted_tokens / stats.rejected_tokens
    assert all(1 <= window <= 64 for window in stats.windows)


async def test_progress_is_told() -> None:
    told: list[tuple[str, float]] = []
    async with Engine.create(TOY, on_progress=lambda what, fraction: told.append((what, fraction))) as engine:
        await engine.answer(FRAMES, "?", max_tokens=3)
    assert ("prefill", 1.0) in told
    assert all(0 <= fraction <= 1 for _, fraction in told)
