"""From settings and options to the messages that open a session."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm import Engine, EngineConfig, OptionError
from pvlm.answer.request import Request, build_request, resolve_coupling
from pvlm.config import answer_options
from pvlm.runtime.pair import Pair
from pvlm.runtime.policies import WindowPolicies
from pvlm.speculation.policy import WindowChoice
from pvlm.speculation.windows import AutoWindow
from pvlm_protocols.codec import decode_for_actor, encode
from pvlm_protocols.messages import Schedule
from pvlm_protocols.turns import VideoFrames
from tests.engine.conftest import FRAMES, TOY
from tests.protocols.samples import plain
from tests.support.openings import asking

TARGET_FRAMES = VideoFrames(pixels=np.zeros((1, 2, 2, 3), np.uint8))
DRAFT_FRAMES = VideoFrames(pixels=np.zeros((1, 4, 4, 3), np.uint8))


class AnyPair:
    """The part of a `Pair` that `build_request` reads. The draft has fewer tokens than the target."""

    end_token_ids = (0, 2)
    ignored_generation_options = ("repetition_penalty=1.1",)

    def __init__(self) -> None:
        self.target_processor = self
        self.policies = WindowPolicies()

    def next_session(self) -> int:
        return 1

    def info(self, role: str) -> SimpleNamespace:
        target = role == "target"
        return SimpleNamespace(vocab_size=12 if target else 10, backend="native" if target else "torch")


def request(config: EngineConfig | None = None, question: str = "?", **options: Any) -> Request:
    given_options = answer_options(options)
    pair = cast(Pair, AnyPair())
    turns: Any = {"target": asking(question, TARGET_FRAMES), "draft": asking(question, DRAFT_FRAMES)}
    return build_request(config or EngineConfig(), given_options, pair, turns)


def test_both_openings_differ_in_frames_and_vocabulary_alone() -> None:
    made = request(window=5)
    assert made.method == "parallel"
    assert made.draft is not None
    assert made.target.visuals == (TARGET_FRAMES,)
    assert made.draft.visuals == (DRAFT_FRAMES,)
    assert made.target.sampling.vocab_limit == 12
    assert made.draft.sampling.vocab_limit == 10
    for name in ("session", "question", "pruning", "schedule", "window"):
        assert getattr(made.draft, name) == getattr(made.target, name)
    assert made.target.window.gamma == made.policy.choice().gamma == 5


@pytest.mark.parametrize(
    ("settings", "options", "schedule"),
    [
        ({}, {"method": "ar"}, Schedule(mode="alone")),
        ({}, {"method": "sd"}, Schedule(mode="turns", overlap_prefill=False)),
        ({}, {}, Schedule(mode="together", overlap_prefill=True)),
        ({"parallel_decode": False}, {}, Schedule(mode="turns", overlap_prefill=True)),
        ({"parallel_decode": False}, {"parallel_decode": True}, Schedule()),
        ({"parallel_prefill": False}, {}, Schedule(overlap_prefill=False)),
        ({}, {"parallel_prefill": False}, Schedule(overlap_prefill=False)),
    ],
)
def test_the_schedule_follows_method_and_stages(
    settings: dict[str, Any], options: dict[str, Any], schedule: Schedule
) -> None:
    assert request(EngineConfig(**settings), **options).target.schedule == schedule


@pytest.mark.parametrize("pays", [True, False])
def test_where_drafting_does_not_pay_the_first_window_is_one_alone(monkeypatch: pytest.MonkeyPatch, pays: bool) -> None:
    monkeypatch.setattr(AutoWindow, "choice", lambda _: WindowChoice(4, pays=pays))
    assert request().target.window.ahead is pays


def test_the_target_alone_has_no_draft() -> None:
    assert request(method="ar").draft is None
    assert request(EngineConfig(method="ar")).draft is None


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        ({}, {}, ("uv", 0.5)),
        ({}, {"method": "sd"}, ("none", 0.0)),
        ({"prune": "uniform", "prune_ratio": 0.25}, {}, ("uniform", 0.25)),
        ({"prune": "uniform", "prune_ratio": 0.25}, {"prune_ratio": 0.0}, ("uniform", 0.0)),
        ({"prune": "uniform"}, {"prune": "none", "prune_ratio": 0.9}, ("none", 0.0)),
    ],
)
def test_pruning_defaults_to_the_engines(
    settings: dict[str, Any], options: dict[str, Any], expected: tuple[str, float]
) -> None:
    pruning = request(EngineConfig(**settings), **options).target.pruning
    assert (pruning.method, pruning.ratio) == expected


def test_a_draft_that_the_engine_does_not_have_is_an_error() -> None:
    with pytest.raises(OptionError, match="method 'sd' needs a draft, but this engine was opened without one"):
        request(EngineConfig(method="ar"), method="sd")


def test_end_tokens_are_the_models_and_the_callers() -> None:
    assert request(stop_token_ids=[5]).target.sampling.end_token_ids == (0, 2, 5)
    assert request(stop_token_ids=[5], ignore_eos=True).target.sampling.end_token_ids == (5,)


def test_coupling_auto() -> None:
    assert resolve_coupling("auto", temperature=0, seeded=True) == "greedy"
    assert resolve_coupling("speculative", temperature=0, seeded=False) == "greedy"
    assert resolve_coupling("auto", temperature=0.5, seeded=True) == "gumbel"
    assert resolve_coupling("auto", temperature=0.5, seeded=False) == "speculative"
    assert resolve_coupling("speculative", temperature=0.5, seeded=True) == "speculative"
    with pytest.raises(OptionError, match="greedy"):
        resolve_coupling("greedy", temperature=0.5, seeded=True)


@pytest.mark.anyio
async def test_frames_that_are_too_many_bytes_to_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvlm.answer.frames.MAX_ARRAY_BYTES", FRAMES.nbytes - 1)
    async with Engine.create(TOY) as engine:
        with pytest.raises(
            OptionError, match=r"4 frames of 8x8 take 768 bytes, more than the limit of 767: take fewer"
        ):
            await engine.answer(FRAMES, "?")


# ---- valid options travel -----------------------------------------------------------------------------------------

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
            "prune_ratio": some_real,
        },
    ),
    question=st.text(min_size=1),
)
def test_what_passes_as_an_option_is_valid_to_an_actor(options: dict[str, Any], question: str) -> None:
    """An actor would drop an invalid message, and the answer would never begin."""
    try:
        answer_options(options)
    except OptionError:
        return
    made = request(question=question.encode(errors="replace").decode(), **options)
    assert made.draft is not None
    for message in (made.target, made.draft):
        assert plain(decode_for_actor(encode(message))) == plain(message)
