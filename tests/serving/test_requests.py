"""What a request means, without a framework."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.serving.references import reference
from pvlm.serving.refusals import Refusal
from pvlm.serving.requests import IGNORED, NEUTRAL, conversation, parse
from tests.serving.conftest import asking, video


def parsed(**fields: Any) -> Any:
    return parse(json.dumps(asking("Why?", **fields)).encode())


def refusal(body: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def test_sampling_becomes_options() -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 3, "max_completion_tokens": 7}
    options = parsed(**given, stop=["x"], stop_token_ids=[4], ignore_eos=True).options
    assert options == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 3, "max_tokens": 7,
        "stop": ("x",), "stop_token_ids": (4,), "ignore_eos": True,
    }  # fmt: skip
    assert parsed(top_k=-1, stop="x", max_tokens=None).options == {"top_k": 0, "stop": "x"}


def test_frames_can_be_given_in_both_spellings() -> None:
    assert parsed(media_io_kwargs={"video": {"num_frames": 8}}).options == {"num_frames": 8}
    assert parsed(mm_processor_kwargs={"fps": 2}).options == {"fps": 2.0}
    same = parsed(mm_processor_kwargs={"fps": 2}, media_io_kwargs={"video": {"fps": 2.0}})
    assert same.options == {"fps": 2.0}
    other = refusal(asking("Why?", mm_processor_kwargs={"fps": 1}, media_io_kwargs={"video": {"fps": 2}}))
    assert (other.status, other.param) == (400, "mm_processor_kwargs")


def test_a_stream_and_its_usage() -> None:
    assert not parsed().stream
    assert not parsed(stream=True).include_usage
    assert parsed(stream=True, stream_options={"include_usage": True}).include_usage
    assert refusal(asking("Why?", stream_options={"include_usage": True})).param == "stream_options"


def test_media_keep_their_order() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "auto"}}
    body = {"messages": [asking(video("file:///a"), "One?", image)["messages"][0], asking(video(None))["messages"][0]]}
    assert [part.url for part in parse(json.dumps(body).encode()).media] == [
        "file:///a",
        image["image_url"]["url"],
        None,
    ]


def test_turns_are_the_engine_s() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    turns = [{"role": "developer", "content": "Be brief."}, *asking(video("file:///a"), "One?")["messages"]]
    turns += [{"role": "assistant", "content": "Yes."}, *asking("Two?", image)["messages"]]
    assert conversation(parse(json.dumps({"messages": turns}).encode()), ["/a", b"image"]) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "video", "video": "/a"}, {"type": "text", "text": "One?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": [{"type": "text", "text": "Two?"}, {"type": "image", "image": b"image"}]},
    ]


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_would_change_the_answer_is_never_ignored(name: str) -> None:
    for value in (None, *NEUTRAL[name]):
        assert parsed(**{name: value}).options == {}
    error = refusal(asking("Why?", **{name: ["something", 5]}))
    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokns": 4}, "max_tokns"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e400}, None),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, None),
        ({"n": 2}, "n"),
        ({"method": "magic"}, "method"),
        ({"device": "cuda"}, "device"),
        ({"prune": "os:system"}, "prune"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"chunks": 1}, "stream": True}, "stream_options.chunks"),
        ({"media_io_kwargs": {"audio": {}}}, "media_io_kwargs.audio"),
        ({"mm_processor_kwargs": {"min_pixels": 4}}, "mm_processor_kwargs.min_pixels"),
    ],
)
def test_an_invalid_field_is_named(fields: dict[str, Any], param: str | None) -> None:
    error = refusal(asking("Why?", **fields))
    assert (error.status, error.param) == (400, param)
    assert error.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "Why?"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages[0].content[0]"),
        (asking({"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}), "messages[0].content"),
        (b"{", None),
        (b"[1]", None),
        (b"[" * 100_000, None),
        (b'{"messages": "\xff"}', None),
        (b"", None),
    ],
)
def test_an_invalid_body_is_refused(body: Any, param: str | None) -> None:
    error = refusal(body)
    assert (error.status, error.param) == (400, param)


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    """They would take twenty times the memory of the body, and seconds in which the server does nothing else."""
    for body in (b'{"messages": [%s[]]}' % (300_000 * b"[],"), b"{%s}" % (300_000 * b'"a":1,')):
        assert "too many" in refusal(body).message
    assert parsed(user=60_000 * ",").options == {}


def test_what_never_changes_an_answer_is_accepted() -> None:
    assert parsed(**dict.fromkeys(IGNORED, "anything")).options == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["temperature", "stop", "messages", "seed", "window", "stream_options", "logit_bias", "n", "x"]
)


@settings(max_examples=25)
@given(st.dictionaries(FIELDS, JSON), st.binary())
def test_any_body_is_parsed_or_refused(fields: dict[str, Any], noise: bytes) -> None:
    for body in (json.dumps(asking("Why?", **{k: v for k, v in fields.items() if k != "messages"})).encode(),
                 json.dumps(fields).encode(), noise):  # fmt: skip
        with suppress(Refusal):
            parse(body)


def test_a_refusal_shows_the_value_but_not_all_of_a_long_one() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
    assert "image_url.detail='low' is" in refusal(asking("Why?", image)).message
    image["image_url"] = {"url": "data:image/png;base64,AA==", "detail": "l" * 5000}
    assert "the field 'shape' is" in refusal(asking("Why?", shape=1)).message
    for body in (asking("Why?", image), asking("Why?", **{"s" * 5000: 1})):
        assert len(refusal(body).message) < 500
    with pytest.raises(Refusal) as caught:
        reference(f"data:text/{'x' * 5000};base64,AA==")
    assert len(caught.value.message) < 500
