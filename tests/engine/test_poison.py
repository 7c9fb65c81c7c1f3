"""Questions that an actor does not survive, and actors that are lost too often: others keep the service."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pvlm import Engine, ModelError, TargetLost
from tests.engine.conftest import FRAMES, TOY
from tests.support.toy import ToyBackend

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")]
OPTIONS: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
EXPECTED = ToyBackend().greedy(40, end_tokens=())
BROKEN = {**TOY, "backend": "broken"}


@pytest.mark.parametrize("when", ["open", "extend"])
async def test_a_question_that_the_target_does_not_survive_fails_alone(when: str) -> None:
    """As often as it is asked. An answer that is open beside it is interrupted, and never counted."""
    asked, length = 3, 100_000
    async with Engine.create(BROKEN, target="0@1") as engine:
        async with engine.stream(FRAMES, "?", max_tokens=length, ignore_eos=True) as innocent:
            tokens = list((await innocent.__anext__()).tokens)
            for _ in range(asked):
                with pytest.raises(ModelError, match="lost 2 times in the work for this answer") as lost:
                    await engine.answer(FRAMES, f"panic target {when}", **OPTIONS)
                assert not isinstance(lost.value, TargetLost)
                while "target" not in engine.models:
                    await asyncio.sleep(0.01)
                tokens += (await innocent.__anext__()).tokens
            restarts = (await engine.health())["target"].restarts  # the first loss may be in a pass that both share
            assert 2 * asked + 1 >= restarts >= 2 * asked > engine.config.target_restarts
        assert tokens == ToyBackend().greedy(len(tokens), end_tokens=())
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED


async def test_leaving_such_a_question_and_asking_it_again_ends_nobodys_service() -> None:
    async with Engine.create(BROKEN, target="0@1") as engine:
        for _ in range(5):
            asking = asyncio.ensure_future(engine.answer(FRAMES, "panic target open", **OPTIONS))
            while "target" in engine.models:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
        assert (await engine.health())["target"].restarts >= 5 > engine.config.target_restarts


async def test_a_question_that_the_draft_does_not_survive_is_answered_without_it() -> None:
    async with Engine.create(BROKEN, target="0@1") as engine:
        for _ in range(3):
            answer = await engine.answer(FRAMES, "panic draft open", max_tokens=400, ignore_eos=True)
            assert list(answer.tokens) == ToyBackend().greedy(400, end_tokens=())
            while "draft" not in engine.models:
                await asyncio.sleep(0.01)
        assert "the draft was lost 2 times in the work for this answer" in answer.stats.draft_lost
        assert (await engine.health())["draft"].restarts > engine.config.draft_restarts


async def test_a_target_that_was_lost_too_often_rests_and_is_started_again(
    bombs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvlm.runtime.restarts.REST_S", 1.0)
    async with Engine.create(TOY, target_restarts=0) as engine:
        bombs.add("target")
        with pytest.raises(TargetLost, match="RuntimeError: the target went off"):
            await engine.answer(FRAMES, "?", **OPTIONS)
        with pytest.raises(TargetLost, match="is gone: RuntimeError: the target went off; it is started again in 1 s"):
            await engine.answer(FRAMES, "?", **OPTIONS)
        health = (await engine.health())["target"]
        assert health.state == "lost"
        assert 0 < (health.next_try_s or 0) <= 1.0
        while "target" not in engine.models:
            await asyncio.sleep(0.01)
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
        health = (await engine.health())["target"]
        assert (health.state, health.next_try_s, health.restarts) == ("running", None, 1)


async def test_a_draft_that_ends_without_a_word_while_it_loads_is_done_without() -> None:
    """It is started again as often as it may be. One that says why it cannot load is an error of opening."""
    async with Engine.create(BROKEN, draft="panic", draft_restarts=1) as engine:
        answer = await engine.answer(FRAMES, "?", **OPTIONS)
        assert list(answer.tokens) == EXPECTED
        assert "was lost while it loaded: its thread has ended" in answer.stats.draft_lost
        health = (await engine.health())["draft"]
        assert (health.state, health.restarts) == ("lost", 1)
        assert 0 < (health.next_try_s or 0) <= 60
    with pytest.raises(ModelError, match="cannot allocate 144 GiB"):
        async with Engine.create(BROKEN, draft="memory"):
            raise AssertionError


async def test_a_model_that_computes_while_it_loads_does_not_hang() -> None:
    async with Engine.create(BROKEN, target="compute", draft=None, hang_timeout_s=1.0) as engine:
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
