"""Whatever a caller passes, an engine answers or raises an error of pvlm: never a raw AttributeError or KeyError."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pvlm import AnswerOptions, Engine, EngineConfig, OptionError, PvlmError, VideoError
from pvlm.settings.keywords import AnswerKeywords, EngineKeywords
from tests.engine.conftest import FRAMES, TOY


class Nasty:
    """Can be neither compared nor printed, and has no truth."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __bool__(self) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**70, 10**5000]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["auto", "parallel", "ar", "uv", "none", "\ud83d", "\0", "x" * 5000, "tcp://x:1", "a:b", "http://h/?t=1"]
    ),
    st.binary(max_size=20),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.floats().map(np.float64),
    st.booleans().map(np.bool_),
    st.just(Path("/no/such/thing")),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.just(torch.tensor(3)),
    st.just(np.zeros((2, 3))),
    st.just(object()),
    st.just(int),
    st.builds(Nasty),
)
ANYTHING = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.dictionaries(st.text(max_size=5), SCALARS, max_size=3),
    st.sets(st.integers()),
)
NAMES = sorted({*EngineKeywords.__annotations__, *AnswerKeywords.__annotations__})


def taken_or_refused(make: Callable[[], object]) -> None:
    """Call it; an error of pvlm is short, and says something."""
    said = "nothing is wrong"
    try:
        make()
    except PvlmError as error:
        said = str(error)
    assert 10 < len(said) < 5000


PARTS = st.one_of(
    SCALARS,
    st.fixed_dictionaries({"type": st.sampled_from(["text", "video", "image"])}, optional={"text": SCALARS}),
    st.sampled_from(["text", "video", "image"]).flatmap(lambda kind: st.just({"type": kind, kind: Nasty()})),
)
MESSAGES = st.one_of(
    SCALARS,
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]) | SCALARS},
        optional={"content": st.lists(PARTS, max_size=3) | SCALARS, "name": SCALARS},
    ),
)


@settings(max_examples=100)
@given(messages=st.lists(MESSAGES, max_size=3) | SCALARS)
def test_any_messages(messages: Any) -> None:
    if messages is not None:
        taken_or_refused(lambda: Engine.create(TOY).stream(messages=messages))


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), ANYTHING, max_size=4))
@settings(max_examples=80)
def test_settings_and_options_are_taken_or_refused(values: dict[str, Any]) -> None:
    for make in (lambda: Engine.create(values), lambda: Engine.create(TOY).stream(FRAMES, "?", **values)):
        taken_or_refused(make)


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
@settings(max_examples=80)
def test_whatever_else_is_passed_is_taken_or_refused(first: Any, second: Any, third: Any, fourth: Any) -> None:
    for make in (
        lambda: Engine.create(first),
        lambda: Engine.create(TOY, on_progress=second, metrics=third),
        lambda: Engine.from_pretrained(first, draft=second),
        lambda: Engine.create(TOY).stream(first, second, trace=third),
        lambda: EngineConfig(target=first, keys=second, target_listen=third, affinity=fourth),
        lambda: AnswerOptions(stop=first, stop_token_ids=second, temperature=third, seed=fourth),
    ):
        taken_or_refused(make)


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    async with Engine.create(TOY) as engine:
        yield engine


VIDEOS = st.one_of(
    ANYTHING,
    st.just(FRAMES),
    st.just(FRAMES[0]),
    st.just(FRAMES.astype(np.float32)),
    st.just([Image.new("RGB", (4, 4))] * 3),
    st.just([Image.new("RGB", (4, 4)), 3]),
    st.just(np.zeros((0, 4, 4, 3), np.uint8)),
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "num_frames": ANYTHING,
        "fps": ANYTHING,
        "start": ANYTHING,
        "end": ANYTHING,
        "prune": ANYTHING,
        "stop": ANYTHING,
        "temperature": st.floats(0, 2),
        "seed": ANYTHING,
    },
)


@pytest.mark.anyio
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(video=VIDEOS, question=st.just("?") | ANYTHING, options=CHOICES)
async def test_an_answer_is_given_or_refused(
    engine: Engine, video: Any, question: Any, options: dict[str, Any]
) -> None:
    with contextlib.suppress(PvlmError):
        await engine.answer(video, question, max_tokens=3, **options)


@pytest.mark.anyio
async def test_what_peoples_programs_pass(engine: Engine, tmp_path: Path) -> None:
    answer = await engine.answer(FRAMES, "?", max_tokens=np.int64(4), temperature=np.float32(0.5), seed=np.int64(1))
    assert len(answer.tokens) <= 4
    with pytest.raises(OptionError, match=r"the question is \['What\?'\], a list: give one text"):
        await engine.answer(FRAMES, ["What?"])  # type: ignore[arg-type]
    with pytest.raises(
        OptionError, match="trace is a str, which has no began, handled, ended: give a pvlm.trace.Trace"
    ):
        await engine.answer(FRAMES, "?", trace="folder")  # type: ignore[arg-type]
    assert Engine.create(target=tmp_path).config.target == str(tmp_path)
    assert EngineConfig(target=tmp_path).target == str(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"on_progress is a coroutine function: give a function \(not async\)"):
        Engine.create(on_progress=asyncio.sleep)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metrics is a type, which has no add, observe"):
        Engine.create(metrics=int)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the configuration is 'x.toml': give an EngineConfig, a mapping, or keywords"):
        Engine.create("x.toml")  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host/clip.mp4?token=abc", "https://…@host/clip.mp4?…"),
        ("data:video/mp4;base64,AAAAHGZ0eXBpc29t", "data:video/mp4;base64,…"),
        ("file:///clip.mp4", "file:///clip.mp4"),
    ],
)
async def test_urls_are_said_not_to_be_read_and_are_not_repeated(engine: Engine, url: str, shown: str) -> None:
    with pytest.raises(VideoError) as caught:
        await engine.answer(url, "?")
    said = str(caught.value)
    assert said == f"cannot read video '{shown}': URLs are not read: download the video, and give its path or its bytes"
