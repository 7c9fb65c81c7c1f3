"""Actors that say what they cannot have to say: a draft is done without, a target's answer fails; others go on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pvlm import Engine, ModelError, OptionError
from pvlm.actors.actor import ActorSession
from pvlm.answer.request import opening
from pvlm.config import AnswerOptions, answer_options
from pvlm.speculation.windows import FixedWindow
from pvlm_protocols.codec import decode_for_actor, encode
from pvlm_protocols.messages import Closed, DraftWindow, FromActor, Pruning, Schedule, Verdict, VideoFrames
from tests.engine.conftest import FRAMES, TOY
from tests.protocols.samples import plain
from tests.support.toy import ToyBackend

OPTIONS: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "window": 4}
EXPECTED = ToyBackend().greedy(60, end_tokens=())


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> dict[type, Any]:
    """What the first session says instead of its third message of a type, and of all behind that."""
    instead: dict[type, Any] = {}
    posted: Counter[type] = Counter()
    original = ActorSession.post

    def post(self: ActorSession, message: FromActor) -> None:
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
async def test_a_draft_cannot_speak_for_the_target(says: dict[type, Any]) -> None:
    """Neither a verdict of the draft nor a `Closed` in the target's name is heard; the answer goes on without it."""
    says[DraftWindow] = lambda window: Verdict(session=1, epoch=window.epoch, start=0, tokens=(1,), accepted=0)
    async with Engine.create(TOY) as engine:
        with capture_logs() as logs:
            answer = await engine.answer(FRAMES, "?", **OPTIONS)
            assert list(answer.tokens) == EXPECTED
            assert answer.stats.draft_lost == "ProtocolError: a draft sends no Verdict"
            assert engine._runtime is not None
            draft = engine._runtime._actors["draft"]
            assert draft._actor is not None
            draft._take(draft._actor, Closed(session=1, role="target"))
        dropped = [entry["reason"] for entry in logs if entry["event"] == "message_dropped"]
        assert dropped[0] == "a draft sends no Verdict"
        assert dropped[-1] == "the draft sent the target's Closed"


@pytest.mark.anyio
async def test_frames_that_are_too_many_bytes_to_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvlm.answer.stream.MAX_ARRAY_BYTES", FRAMES.nbytes - 1)
    async with Engine.create(TOY) as engine:
        with pytest.raises(
            OptionError, match=r"4 frames of 8x8 take 768 bytes, more than the limit of 767: take fewer"
        ):
            await engine.answer(FRAMES, "?", **OPTIONS)


# ---- what a caller may ask for travels ----------------------------------------------------------------------------


class AnyRuntime:
    """What `opening` looks at."""

    def __init__(self, end_token_ids: tuple[int, ...]) -> None:
        self.target_processor = self
        self.end_token_ids = end_token_ids

    def next_session(self) -> int:
        return 1

    def vocab_size(self, role: str) -> int:
        return 12


some_number = st.integers(-5, 2**33) | st.sampled_from([0, 1, 2**31 - 1, 131_072, 2**63 - 1, 2**64])
some_real = st.floats() | st.sampled_from([0.0, 1.0, 0.5, 1e-5, 1.7e308])


@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": some_number,
            "temperature": some_real,
            "top_k": some_number,
            "top_p": some_real,
            "min_p": some_real,
            "seed": some_number,
            "stop_token_ids": st.lists(some_number, max_size=3),
            "window": some_number,
        },
    ),
    question=st.text(min_size=1),
)
def test_what_passes_as_an_option_is_no_nonsense_to_an_actor(options: dict[str, Any], question: str) -> None:
    """Else the message would be dropped, and the answer never begin."""
    try:
        given_options: AnswerOptions = answer_options(options)
    except OptionError:
        return
    message = opening(
        AnyRuntime((0, 2)),  # type: ignore[arg-type]
        question.encode(errors="replace").decode(),
        VideoFrames(pixels=np.zeros((1, 2, 2, 3), np.uint8)),
        given_options,
        Schedule(),
        Pruning(),
        FixedWindow(given_options.window if isinstance(given_options.window, int) else 4),
    )
    assert plain(decode_for_actor(encode(message))) == plain(message)
