"""Many requests of one engine: order, failures, options, and leaving in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio.lowlevel
import pytest

from pvlm import Answer, AnswerRequest, Engine, EngineStateError, OptionError, Outcome
from pvlm.answer.batch import outcomes
from tests.engine.conftest import FRAMES, TOY
from tests.support.toy import ToyBackend

pytestmark = pytest.mark.anyio
WHOLE = ToyBackend().greedy(40)
LENGTHS = [30, 2, 17, 1, 9, 5]


def requests(*lengths: int) -> list[dict[str, Any]]:
    return [{"video": FRAMES, "question": "?", "options": {"max_tokens": length}} for length in lengths]


async def taken(engine: Engine, given: Any, **how: Any) -> list[Outcome]:
    return [outcome async for outcome in engine.map(given, **how)]


@pytest.mark.parametrize("concurrency", [None, 1, 3, 100])
async def test_outcomes_come_in_the_order_of_the_requests(toys: Engine, concurrency: int | None) -> None:
    found = await taken(toys, requests(*LENGTHS), concurrency=concurrency)
    assert [outcome.index for outcome in found] == list(range(6))
    assert [list(outcome.result().tokens) for outcome in found] == [WHOLE[:length] for length in LENGTHS]


async def test_or_as_they_end(toys: Engine) -> None:
    slow: dict[str, Any] = {"video": FRAMES, "question": "?", "options": {"max_tokens": 300, "ignore_eos": True}}
    found = await taken(toys, [slow, *requests(1, 1, 1)], concurrency=2, ordered=False)
    assert sorted(outcome.index for outcome in found) == [0, 1, 2, 3]
    assert [outcome.request for outcome in found] != [slow, *requests(1, 1, 1)]
    assert found[0].index == 1


async def test_a_failure_is_the_outcome_of_its_request_alone(toys: Engine) -> None:
    bad: list[Any] = [
        {"video": FRAMES},
        {"video": FRAMES, "question": "?", "options": {"max_tokns": 3}},
        {"video": FRAMES, "question": "?", "options": {"trace": "x"}},
        {"video": FRAMES, "question": "?", "options": {"question": "x"}},
        {"video": FRAMES, "question": "?", "options": 3},
        {"video": FRAMES, "qestion": "?"},
        {"video": "/no/such/file.mp4", "question": "?"},
        {"video": {}, "question": "?"},
        '{"question": "?"',
        b"\xff",
        "[" * 100_000,
        [1, 2],
        7,
    ]
    found = await taken(toys, [*requests(3), *bad, *requests(4)])
    assert [outcome.error is None for outcome in found] == [True, *[False] * len(bad), True]
    assert all(str(outcome.error) for outcome in found[1:-1])
    with pytest.raises(OptionError, match="max_tokens"):
        found[2].result()
    assert "did you mean 'question'" in str(found[6].error)


async def test_a_request_may_be_json_or_a_struct(toys: Engine) -> None:
    given = ['{"id": 7, "question": "?", "options": {"max_tokens": 2}}', AnswerRequest(video=FRAMES, question="?")]
    first, second = await taken(toys, given, max_tokens=5)
    assert first.request == given[0]
    assert [len(outcome.result().tokens) for outcome in (first, second)] == [2, 5]


async def test_a_request_s_own_options_have_precedence(toys: Engine) -> None:
    own = {"video": FRAMES, "question": "?", "options": {"max_new_tokens": 2}}
    found = await taken(toys, [own, *requests(3)], max_tokens=9)
    assert [len(outcome.result().tokens) for outcome in found] == [2, 3]


async def test_requests_are_taken_as_they_are_begun(toys: Engine) -> None:
    begun = 0

    def lazy() -> Iterator[dict[str, Any]]:
        nonlocal begun
        while True:
            begun += 1
            yield from requests(2)

    answers = toys.map(lazy(), concurrency=2)
    async for outcome in answers:
        if outcome.index == 5:
            break
    await answers.aclose()
    assert begun <= 5 + 1 + 2 * 2


async def test_no_more_answers_than_wanted_are_written_at_a_time() -> None:
    running = 0
    seen = []

    async def answer(_: AnswerRequest) -> Answer:
        nonlocal running
        running += 1
        seen.append(running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        raise OptionError("no answer is needed")

    found = [one async for one in outcomes(answer, requests(*[1] * 9), concurrency=3, ordered=False)]
    assert len(found) == 9
    assert max(seen) == 3


async def test_leaving_the_iteration_ends_its_answers() -> None:
    long: dict[str, Any] = {"video": FRAMES, "question": "?", "options": {"max_tokens": 4000, "ignore_eos": True}}
    async with Engine.create(**TOY) as engine:
        answers = engine.map([*requests(1), long, long], concurrency=3)
        async for outcome in answers:
            assert outcome.index == 0
            break
        await answers.aclose()
        assert ToyBackend.loaded["target"].open_sessions == 0
        assert [len(one.result().tokens) for one in await taken(engine, requests(3))] == [3]


async def test_an_engine_that_is_closed_meanwhile_ends_the_iteration() -> None:
    long: dict[str, Any] = {"video": FRAMES, "question": "?", "options": {"max_tokens": 4000, "ignore_eos": True}}
    engine = Engine.create(**TOY)
    with pytest.raises(EngineStateError, match="not open"):
        engine.map([])
    async with engine:
        answers = engine.map([*requests(1), *[long] * 6])
        await anext(answers)
    with pytest.raises(EngineStateError, match="closed"):
        async for outcome in answers:
            assert outcome.error is not None
    with pytest.raises(EngineStateError, match="closed"):
        engine.map([])


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"concurrency": 1.5}, {"max_tokns": 3}])
async def test_an_invalid_map(toys: Engine, wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        toys.map([], **wrong)
    assert await taken(toys, []) == []
