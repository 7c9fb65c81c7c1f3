"""Errors and log lines hold neither payloads nor credentials, and are short."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm import ModelError, RemoteTraceback, VideoError
from pvlm.errors import reason_of
from pvlm.redaction import MAX_TEXT, redacted, shown
from pvlm_protocols.backend import CheckpointError

PAYLOAD = "QUJDRA" * 40


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (f"data:video/mp4;base64,{PAYLOAD}", "data:video/mp4;base64,…"),
        (f"cannot read 'data:,{PAYLOAD}': no", "cannot read 'data:,…': no"),
        ("https://host/clip.mp4?token=abc&sig=x#t=3 is late", "https://host/clip.mp4?… is late"),
        ("clip.mp4?token=abc", "clip.mp4?…"),
        ("https://me:secret@host/x", "https://…@host/x"),
        ("https://host/x#access_token=abc", "https://host/x#…"),
        ("key hf_abcdefgh12345678 refused", "key hf_… refused"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer …"),
        ("HF_TOKEN=abc, other", "HF_TOKEN=…, other"),
        ("api_key=abc", "api_key=…"),
        # what stays as it is
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
        ("max_tokens=4, seed=3: token=…", "max_tokens=4, seed=3: token=…"),
        ("stop_token_ids=[1, 2], keys=DIR", "stop_token_ids=[1, 2], keys=DIR"),
        ("what happens? a=b", "what happens? a=b"),
        ("metadata: a, b", "metadata: a, b"),
    ],
)
def test_payloads_and_credentials_are_left_out(text: str, safe: str) -> None:
    assert redacted(text) == safe


def test_texts_are_shortened() -> None:
    assert redacted(f"cannot read '{PAYLOAD * 9}'").startswith("cannot read 'QUJD")
    assert len(redacted(f"cannot read '{PAYLOAD * 9}'")) < 140
    long = "word " * 2000
    assert MAX_TEXT < len(redacted(long)) < MAX_TEXT + 50
    assert redacted(long, None) == long
    assert len(shown(b"x" * 10_000)) < 100
    assert len(shown([["x" * 100] * 100] * 100)) < 4000
    assert shown(10**6000) == "<int>"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@given(st.one_of(st.text(), st.binary(), st.integers(), st.floats(), st.lists(st.text())))
def test_every_value_can_be_shown(value: object) -> None:
    assert isinstance(shown(value), str)


def test_values_that_cannot_be_printed_can_be_shown() -> None:
    assert "Unprintable" in shown(Unprintable())
    assert "array" in shown(np.zeros((1000, 1000)))


def test_a_library_s_reason_has_its_type() -> None:
    assert reason_of(KeyError("model_type")) == "KeyError: 'model_type'"
    assert reason_of(ModelError("no weights")) == "no weights"
    assert reason_of(CheckpointError("no weights")) == "no weights"
    assert reason_of(CheckpointError()) == "CheckpointError: "
    assert reason_of(OSError("https://host/x?token=abc")) == "OSError: https://host/x?…"


def test_errors_are_redacted_and_travel() -> None:
    error = VideoError("https://host/x?token=abc", "it said token=abc")
    assert (error.path, error.reason) == ("https://host/x?…", "it said token=…")
    assert str(error) == "cannot read video 'https://host/x?…': it said token=…"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.path) == (VideoError, str(error), error.path)
    assert str(ModelError(f"no 'data:,{PAYLOAD}'")) == "no 'data:,…'"
    trace = RemoteTraceback("line\n" * 3000 + "OSError: https://host/x?token=abc")
    assert trace.traceback.endswith("OSError: https://host/x?…")
    assert len(trace.traceback) > 14_000
    assert str(pickle.loads(pickle.dumps(trace))) == str(trace)
