"""Actors that say what they cannot have to say: a draft is done without, a target's answer fails; others go on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pvlm import Engine, ModelError
from pvlm.actors.actor import ActorSession
from pvlm_protocols.messages import Closed, DraftWindow, FromActor, Verdict
from tests.engine.conftest import FRAMES, TOY
from tests.support.toy import ToyBackend, ToyProcessor

OPTIONS: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "window": 4}
EXPECTED = ToyBackend().greedy(60, end_tokens=())


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> dict[type, Any]:
    """What the first session says instead of its third message of a type, and of all after that."""
    instead: dict[type, Any] = {}
    posted: Counter[type] = Counter()
    original = ActorSession.post

    def post(self: ActorSession, *messages: FromActor) -> None:
        for message in messages:
            posted[type(message)] += 1
            if self.id == 1 and posted[type(message)] >= 3 and type(message) in instead:
                message = instead[type(message)](message)
            original(self, message)

    monkeypatch.setattr(ActorSession, "post", post)
    return instead


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens": (1, 99_999)}, "token 99999 of a vocabulary of 12"),
        ({"tokens": (1, -5)}, "token -5 of a vocabulary of 12"),
        ({"tokens": (1,) * 60}, "tokens of an answer that may have 60"),
        ({"tokens": ()}, "a window without tokens"),
        ({"start": 55, "tokens": (1,)}, "it goes on at token 55, but only"),
    ],
)
async def test_a_draft_that_writes_nonsense_is_done_without(
    says: dict[type, Any], changes: dict[str, Any], problem: str
) -> None:
    says[DraftWindow] = lambda window: msgspec.structs.replace(window, **changes)
    async with Engine.create(TOY) as engine:
        answer = await engine.answer(FRAMES, "?", **OPTIONS)
        assert list(answer.tokens) == EXPECTED
        assert answer.stats.draft_lost.startswith("it wrote nonsense: ")
        assert problem in answer.stats.draft_lost
        assert (await engine.answer(FRAMES, "?", **OPTIONS)).stats.draft_lost == ""  # another answer, another chance


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens": (99_999,)}, "token 99999 of a vocabulary of 12"),
        ({"tokens": (1,) * 100}, "tokens of an answer that may have 60"),
        ({"accepted": 77}, "77 accepted tokens among"),
        ({"pass_tokens": 3, "own_tokens": 0}, "a pass over 3 tokens, of which 0 are its own"),
        ({"pass_tokens": 3, "own_tokens": 4}, "a pass over 3 tokens, of which 4 are its own"),
        ({"finish": "length"}, "the answer ends with length where it should with None"),
        ({"epoch": 2**40}, "epoch 1099511627776 in epoch"),
    ],
)
async def test_a_target_that_settles_nonsense_fails_the_answer_and_no_other(
    says: dict[type, Any], changes: dict[str, Any], problem: str
) -> None:
    says[Verdict] = lambda verdict: msgspec.structs.replace(verdict, **changes)
    async with Engine.create(TOY) as engine:
        with pytest.raises(
            ModelError, match=f"the target failed: ProtocolError: its verdict makes no sense: .*{problem}"
        ):
            await engine.answer(FRAMES, "?", **OPTIONS)
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED


@pytest.mark.anyio
async def test_a_processor_that_fails_fails_its_answer_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a plug-in's, and is called in the engine's process for each token."""
    original, calls = ToyProcessor.decode, itertools.count()

    def decode(self: ToyProcessor, tokens: Sequence[int]) -> str:
        if next(calls) == 9:
            raise KeyError("no such token")
        return original(self, tokens)

    monkeypatch.setattr(ToyProcessor, "decode", decode)
    async with Engine.create(TOY) as engine:
        with pytest.raises(ModelError, match="the target's processor failed: KeyError: 'no such token'") as caught:
            await engine.answer(FRAMES, "?", **OPTIONS)
        assert isinstance(caught.value.__cause__, KeyError)
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
        assert (await engine.health())["target"].sessions == 0


@pytest.mark.anyio
async def test_a_draft_cannot_speak_for_the_target(says: dict[type, Any]) -> None:
    """Neither a verdict of the draft nor a `Closed` in the target's name is heard; the answer goes on without it."""
    says[DraftWindow] = lambda window: Verdict(session=1, epoch=window.epoch, start=0, tokens=(1,), accepted=0)
    async with Engine.create(TOY) as engine:
        with capture_logs() as logs:
            answer = await engine.answer(FRAMES, "?", **OPTIONS)
            assert list(answer.tokens) == EXPECTED
            assert answer.stats.draft_lost == "ProtocolError: a draft sends no Verdict"
            assert engine._pair is not None
            draft = engine._pair._actors["draft"]
            assert draft._contact is not None
            draft._take(draft._contact, Closed(session=1, role="target"))
        dropped = [entry["reason"] for entry in logs if entry["event"] == "message_dropped"]
        assert dropped[0] == "a draft sends no Verdict"
        assert dropped[-1] == "the draft sent the target's Closed"
