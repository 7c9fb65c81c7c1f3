"""The interface before any model is loaded: names, settings, options, and misuse."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pvlm
from pvlm import (
    AnswerOptions,
    ConfigError,
    Engine,
    EngineConfig,
    EngineState,
    EngineStateError,
    ModelMismatch,
    OptionError,
)
from pvlm_protocols.messages import Sampling, SamplingOptions
from tests.engine.conftest import FRAMES, TOY
from tests.support.pair import PAIR

NOWHERE: dict[str, Any] = {"target": "/no/such/target", "draft": "/no/such/draft", "backend": "no-such-backend"}


def test_the_exported_names() -> None:
    assert sorted(pvlm.__all__) == [
        "ActorHealth",
        "ActorLost",
        "Answer",
        "AnswerOptions",
        "AnswerRequest",
        "AnswerStats",
        "Chunk",
        "ConfigError",
        "Engine",
        "EngineBusy",
        "EngineConfig",
        "EngineState",
        "EngineStateError",
        "ModelError",
        "ModelMismatch",
        "OptionError",
        "Outcome",
        "PromptError",
        "PvlmError",
        "RemoteTraceback",
        "StreamIdle",
        "TargetLost",
        "VideoError",
        "configure_logging",
    ]
    for name in pvlm.__all__:
        assert getattr(pvlm, name).__doc__, f"{name} says nothing of itself"


def test_the_errors_are_of_one_family() -> None:
    errors = {name: kind for name in pvlm.__all__ if isinstance(kind := getattr(pvlm, name), type)}
    family = {name for name, kind in errors.items() if issubclass(kind, pvlm.PvlmError)}
    raised = {name for name, kind in errors.items() if issubclass(kind, Exception)} - {"RemoteTraceback"}
    assert family == raised
    assert issubclass(pvlm.ConfigError, ValueError)
    assert issubclass(pvlm.OptionError, ValueError)
    assert issubclass(pvlm.EngineStateError, RuntimeError)
    assert issubclass(pvlm.ModelMismatch, pvlm.ModelError)
    assert issubclass(pvlm.TargetLost, pvlm.ActorLost)


def test_importing_it_is_cheap() -> None:
    """Neither torch nor transformers nor a video library is imported, nor by making an engine."""
    code = (
        "import sys, pvlm; pvlm.Engine.create();"
        "heavy = {'torch', 'transformers', 'decord', 'av', 'tokenizers', 'PIL', 'prometheus_client'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


# ---- settings -----------------------------------------------------------------------------------------------------


def test_creating_does_no_io() -> None:
    engine = Engine.create(**NOWHERE)
    assert engine.state is EngineState.UNOPENED
    assert engine.models == {}
    assert Engine.from_pretrained("/no/such/target", draft="/no/such/draft").config.draft == "/no/such/draft"


def test_settings_from_a_mapping_a_configuration_or_keywords_are_the_same() -> None:
    config = EngineConfig(method="sd", window=3)
    assert Engine.create(config).config == config
    assert Engine.create({"method": "sd", "window": 3}).config == config
    assert Engine.create(method="sd", window=3).config == config
    assert Engine.create(config, window=4).config == EngineConfig(method="sd", window=4)
    assert Engine.create({"method": "sd"}, window=3).config == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targt": "x"}, "unknown configuration key 'targt': did you mean 'target'"),
        ({"xyzzy": 1}, "unknown configuration key 'xyzzy': known: target, draft"),
        ({"method": "fast"}, "method"),
        ({"transport": "carrier pigeon"}, "transport"),
        ({"prune_ratio": 1.0}, r"prune_ratio is 1\.0: it must be at least 0 and less than 1"),
        ({"prune_ratio": "half"}, "prune_ratio"),
        ({"window": 0}, "window is 0"),
        ({"window": 1000}, "window is 1000: it must be 'auto' or from 1 to 64"),
        ({"threads": 0}, "threads is 0"),
        ({"early_layer": -1}, "early_layer is -1"),
        ({"max_sessions": 0}, "max_sessions is 0: it must be at least 1"),
        ({"max_waiting": -1}, "max_waiting is -1: it must be at least 0"),
        ({"method": "sd", "draft": None}, "method 'sd' needs a draft"),
        ({"parallel_prefill": "perhaps"}, "parallel_prefill"),
        ({"draft_restarts": -1}, "draft_restarts is -1: it must be at least 0"),
        ({"hang_timeout_s": 0}, "hang_timeout_s is 0: it must be above 0"),
        ({"close_timeout_s": float("nan")}, "close_timeout_s is nan: it must be above 0"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Engine.create(settings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_token": 3}, "unknown option 'max_token': did you mean 'max_tokens'"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"xyzzy": 1}, "unknown option 'xyzzy': known: max_tokens"),
        ({"max_tokens": 3, "max_new_tokens": 3}, "are the same option: give one of them"),
        ({"max_tokens": 0}, "max_tokens is 0: it must be from 1 to 131072"),
        ({"max_tokens": 131_073}, "max_tokens is 131073: it must be from 1 to 131072"),
        ({"max_tokens": 2**70}, "max_tokens"),
        ({"max_new_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": -1}, "temperature is -1: it must be finite and at least 0"),
        ({"temperature": 1e-9}, r"temperature is 1e-09: use 0 \(greedy\), or 1e-05 and above"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2**31}, "top_k is 2147483648: it must be from 0 to 2147483647"),
        ({"stop_token_ids": [3, -1]}, "stop_token_ids holds -1, which is no token's id"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids holds 2147483648"),
        ({"stop_token_ids": [3] * 129}, "stop_token_ids has 129 ids: there may be 128"),
        ({"top_p": 0.0}, r"top_p is 0\.0: it must be above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"min_p": 2.0}, r"min_p is 2\.0: it must be from 0 to 1"),
        ({"min_p": -0.1}, r"min_p is -0\.1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"stop": ""}, "an empty stop string"),
        ({"stop": ["x", ""]}, "an empty stop string"),
        ({"stop": 3}, "stop"),
        ({"coupling": "tight"}, "coupling"),
        ({"window": 0}, "window is 0"),
        ({"prune_ratio": -0.5}, r"prune_ratio is -0\.5"),
        ({"method": "fast"}, "method"),
    ],
)
def test_invalid_options(options: dict[str, Any], said: str) -> None:
    """They are refused at once, before anything is loaded."""
    with pytest.raises(OptionError, match=said):
        Engine.create(**NOWHERE).stream("clip.mp4", "?", **options)


def test_bounds_hold_for_structs_made_directly() -> None:
    """Not only for keywords and mappings."""
    with pytest.raises(OptionError, match=r"top_p is 1\.1: it must be above 0 and at most 1"):
        AnswerOptions(top_p=1.1)
    with pytest.raises(OptionError, match="seed is -1: it must be from 0 to"):
        AnswerOptions(seed=-1)
    with pytest.raises(ConfigError, match=r"prune_ratio is 1\.0"):
        EngineConfig(prune_ratio=1.0)


def test_sampling_options_are_written_once() -> None:
    """What a caller sets, what travels and what the command line offers are derived from one struct."""
    once = set(SamplingOptions.__struct_fields__)
    assert issubclass(AnswerOptions, SamplingOptions)
    assert issubclass(Sampling, SamplingOptions)
    assert not once & {*AnswerOptions.__annotations__, *Sampling.__annotations__}
    of_an_answer = set(AnswerOptions.__struct_fields__) - set(EngineConfig.__struct_fields__)
    assert once < of_an_answer < set(AnswerOptions.__struct_fields__)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("", "the question is empty"),
        ("  \n", "the question is empty"),
        ("why? " * 4000, "the question has 20000 characters: it may have 16384; shorten it"),
        ("what is \ud83d?", r"the question's character 8 is half of a surrogate pair \('\\ud83d'\)"),
    ],
    ids=["empty", "blank", "long", "surrogate"],
)
def test_an_invalid_question_is_refused_at_once(question: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Engine.create(**NOWHERE).stream("clip.mp4", question)


# ---- misuse -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_closed_engine_answers_and_opens_no_more() -> None:
    engine = Engine.create(**TOY)
    async with engine:
        assert engine.state is EngineState.OPEN
        assert set(engine.models) == {"target", "draft"}
        with pytest.raises(EngineStateError, match="is OPEN and cannot be opened again"):
            await engine.__aenter__()
    assert engine.state is EngineState.CLOSED
    assert engine.models == {}
    with pytest.raises(EngineStateError, match="this engine is closed: make another"):
        await engine.answer(FRAMES, "?")
    with pytest.raises(EngineStateError, match="this engine is closed"):
        engine.stream(FRAMES, "?")
    with pytest.raises(EngineStateError, match="is CLOSED and cannot be opened again"):
        await engine.__aenter__()
    await engine.aclose()


@pytest.mark.anyio
async def test_an_unopened_engine_can_be_closed() -> None:
    engine = Engine.create(**TOY)
    await engine.aclose()
    await engine.aclose()
    assert engine.state is EngineState.CLOSED


@pytest.mark.anyio
async def test_a_stream_of_an_engine_that_was_closed_meanwhile_says_so() -> None:
    engine = Engine.create(**TOY)
    stream = engine.stream(FRAMES, "?")
    await engine.aclose()
    with pytest.raises(EngineStateError, match="this engine is closed"):
        async with stream:
            raise AssertionError


@pytest.mark.anyio
async def test_an_engine_that_is_still_loading_says_so() -> None:
    engine = Engine.create(**TOY)

    async def hold() -> None:
        async with engine:
            pass

    opening = asyncio.ensure_future(hold())
    await asyncio.sleep(0)
    with pytest.raises(EngineStateError, match="still loading"):
        await engine.answer(FRAMES, "?")
    await opening


def test_answer_sync_answers() -> None:
    engine = Engine.create(**TOY)
    first = engine.answer_sync(FRAMES, "?", max_tokens=12)
    again = engine.answer_sync(FRAMES, "?", max_tokens=12)
    assert first.text
    assert again.tokens == first.tokens
    assert engine.state is EngineState.UNOPENED


@pytest.mark.anyio
async def test_answer_sync_inside_a_loop_says_what_to_use() -> None:
    with pytest.raises(EngineStateError, match=r"inside an event loop: use `await engine\.answer"):
        Engine.create(**NOWHERE).answer_sync(FRAMES, "?")


def step(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine as an event loop that is not asyncio's does."""
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


def test_without_asyncio_the_error_says_so() -> None:
    """On trio, for one."""
    with pytest.raises(EngineStateError, match="pvlm runs on asyncio"):
        step(Engine.create(**NOWHERE).__aenter__())
    with pytest.raises(EngineStateError, match="pvlm runs on asyncio"):
        step(Engine.create(**NOWHERE).answer(FRAMES, "?"))


def test_every_public_call_of_the_engine_is_documented() -> None:
    for name, member in inspect.getmembers(Engine):
        if not name.startswith("_"):
            assert name in ("state",) or inspect.getdoc(member), name


# ---- models that do not fit ---------------------------------------------------------------------------------------


def copy_with_two_tokens_swapped(folder: Path) -> list[str]:
    """A copy of the small draft whose tokenizer has two ids exchanged; returns the two tokens."""
    shutil.copytree(PAIR["draft"], folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    return [first, second]


@pytest.mark.anyio
async def test_a_draft_with_another_tokenizer_is_refused_with_the_tokens_that_differ(tmp_path: Path) -> None:
    first, second = copy_with_two_tokens_swapped(tmp_path / "draft")
    engine = Engine.create(PAIR, draft=str(tmp_path / "draft"))
    with pytest.raises(ModelMismatch, match="tokenizers of target") as caught:
        async with engine:
            raise AssertionError
    assert f"{first!r} / {second!r}; " in str(caught.value)
    assert f"{second!r} / {first!r}." in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert engine.state is EngineState.CLOSED
    async with Engine.create(target=str(tmp_path / "draft"), transport="inproc", threads=1) as alone:
        answer = await alone.answer(np.zeros((2, 16, 16, 3), np.uint8), "What?", max_tokens=3)
    assert answer.stats.method == "ar"


@pytest.mark.anyio
@pytest.mark.parametrize("option", ["backend", "draft_backend"])
async def test_a_backend_that_is_not_there_is_an_error_with_the_names_that_are(option: str) -> None:
    with pytest.raises(ConfigError, match="no plug-in 'nothing' in group pvlm.backends: use one of .*torch"):
        async with Engine.create(**{**TOY, option: "nothing"}):
            raise AssertionError


@pytest.mark.anyio
async def test_a_pruner_that_is_not_there_is_an_error_with_the_names_that_are() -> None:
    names = "attention, none, novelty, random, specvlm, uniform, uv"
    with pytest.raises(ConfigError, match=f"no plug-in 'nothing' in group pvlm.pruners: use one of {names}"):
        await Engine.create(**TOY, prune="nothing").answer(FRAMES, "?")
    with pytest.raises(OptionError, match=f"no pruner 'nothing': use one of {names}"):
        await Engine.create(**TOY).answer(FRAMES, "?", prune="nothing")
