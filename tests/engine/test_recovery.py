"""Actors in threads that fail: they tell why, others take their place, and answers go on."""

from __future__ import annotations

import asyncio

import pytest

from pvlm import Engine, RemoteTraceback, TargetLost
from pvlm.actors.actor import Actor
from pvlm.actors.failure import dying
from pvlm.runtime.supervisor import Loss
from pvlm_protocols.codec import PROTOCOL_VERSION
from pvlm_protocols.messages import Hello
from tests.engine.conftest import FRAMES, TOY
from tests.support.toy import ToyBackend

pytestmark = pytest.mark.anyio
OPTIONS = {"max_tokens": 400, "ignore_eos": True}
EXPECTED = ToyBackend().greedy(400, end_tokens=())


@pytest.mark.parametrize("roles", [{"target"}, {"draft"}, {"target", "draft"}], ids=["target", "draft", "both"])
@pytest.mark.parametrize("method", ["parallel", "sd", "ar"])
async def test_an_actor_that_fails_changes_no_token(bombs: set[str], roles: set[str], method: str) -> None:
    async with Engine.create(TOY, target="0@1") as engine:
        async with engine.stream(FRAMES, "?", method=method, **OPTIONS) as chunks:
            await chunks.__anext__()
            bombs |= roles
            async for _ in chunks:
                pass
        stats = chunks.answer.stats
        assert list(chunks.answer.tokens) == EXPECTED
        assert stats.target_recoveries == int("target" in roles)
        if "draft" in roles and method != "ar":
            assert stats.draft_lost == "RuntimeError: the draft went off"
            assert stats.draft_rejoins == 1


@pytest.mark.parametrize("role", ["target", "draft"])
async def test_an_actor_that_fails_as_soon_as_it_is_there_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """Again and again: neither an answer that is under way, nor one that comes while it is away."""
    left = 0
    original = Actor.run

    def run(self: Actor) -> None:
        nonlocal left
        if self.role == role and left > 0:
            left -= 1
            self.mailbox.post(Hello(version=PROTOCOL_VERSION, role=self.role, info=self.backend.info, pid=1))
            self.mailbox.post(dying(self.role, RuntimeError("short-lived")))
            return
        original(self)

    monkeypatch.setattr(Actor, "run", run)
    async with Engine.create(TOY, target="0@1", target_restarts=50, draft_restarts=50) as engine:
        async with engine.stream(FRAMES, "?", **OPTIONS) as chunks:
            await chunks.__anext__()
            left = 8
            assert engine._pair is not None
            supervisor = engine._pair._actors[role]  # type: ignore[index]
            assert supervisor._actor is not None
            supervisor._lose(supervisor._actor, Loss("to begin with"))
            assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
            async for _ in chunks:
                pass
        assert list(chunks.answer.tokens) == EXPECTED
        while left:
            await asyncio.sleep(0.01)
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED


async def test_the_cause_of_a_lost_target_is_its_own_traceback(bombs: set[str]) -> None:
    async with Engine.create(TOY, target="0@1", target_restarts=0) as engine:
        async with engine.stream(FRAMES, "?", **OPTIONS) as chunks:
            await chunks.__anext__()
            bombs.add("target")
            with pytest.raises(TargetLost, match="RuntimeError: the target went off") as lost:
                async for _ in chunks:
                    pass
        assert isinstance(lost.value.__cause__, RemoteTraceback)
        assert "in turn" in str(lost.value.__cause__)
        with pytest.raises(TargetLost, match="is gone: RuntimeError: the target went off"):
            await engine.answer(FRAMES, "?")


async def test_restarts_are_counted_for_a_time(bombs: set[str]) -> None:
    """An actor may be lost again and again, if each restart is long ago; here any time is long."""
    settings = {**TOY, "target": "0@5", "target_restarts": 1, "restart_window_s": 1e-9}  # slow: the test must keep up
    async with Engine.create(settings) as engine:
        async with engine.stream(FRAMES, "?", **OPTIONS) as chunks:
            tokens = losses = 0
            async for chunk in chunks:
                tokens += len(chunk.tokens)
                if losses < 2 and tokens > 50 * (1 + losses):
                    bombs.add("target")
                    while "target" in engine.models:
                        await asyncio.sleep(0)
                    while "target" not in engine.models:
                        await asyncio.sleep(0)
                    losses += 1
        assert (await engine.health())["target"].restarts == 2
        assert list(chunks.answer.tokens) == EXPECTED
        assert chunks.answer.stats.target_recoveries == 2


async def test_an_engine_can_be_closed_while_an_actor_is_being_started_again(bombs: set[str]) -> None:
    async with Engine.create(TOY, target="0@1") as engine, engine.stream(FRAMES, "?", **OPTIONS) as chunks:
        await chunks.__anext__()
        bombs.add("target")
        while "target" in engine.models:
            await asyncio.sleep(0)
        with pytest.raises(TargetLost, match="the engine was closed"):
            await engine.aclose()
            async for _ in chunks:
                pass


async def test_the_health_of_actors(bombs: set[str]) -> None:
    engine = Engine.create(TOY, draft_restarts=0)
    assert await engine.health() == {}
    async with engine:
        async with engine.stream(FRAMES, "?", max_tokens=100_000, ignore_eos=True) as chunks:
            await chunks.__anext__()
            health = await engine.health()
            assert {role: (found.state, found.sessions) for role, found in health.items()} == {
                "target": ("running", 1),
                "draft": ("running", 1),
            }
            before = health["target"].progress
            assert before is not None
            while (await engine.health())["target"].progress == before:
                await chunks.__anext__()  # which may have been written before; it ends if nothing is written any more
            assert ((await engine.health())["target"].progress or 0) > before
            bombs.add("draft")
            while "draft" in engine.models:
                await asyncio.sleep(0)
        while (health := await engine.health())["draft"].state == "restarting":  # it is ended before it is given up
            await asyncio.sleep(0)
        assert (health["draft"].state, health["draft"].pid, health["draft"].sessions) == ("lost", None, None)
        assert health["draft"].reason == "RuntimeError: the draft went off"
        assert health["target"].sessions == 0
