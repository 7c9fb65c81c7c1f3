"""Answers as dictionaries, as JSON, as a web framework's response, and as a notebook shows them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from pvlm import Answer, AnswerStats, Chunk, Engine
from tests.chaos.storm import EMULATED


@pytest.fixture(scope="module")
def answer() -> Answer:
    engine = Engine.create({**EMULATED, "backend": "emulated", "transport": "inproc"})
    return engine.answer_sync(np.zeros((2, 4, 4, 3), np.uint8), "?", max_tokens=24, method="sd")


def floats_in(value: Any) -> list[float]:
    match value:
        case float():
            return [value]
        case dict():
            return [one for part in value.values() for one in floats_in(part)]
        case list():
            return [one for part in value for one in floats_in(part)]
    return []


def test_an_answer_becomes_plain_json(answer: Answer) -> None:
    found = answer.to_dict()
    assert json.loads(json.dumps(found)) == found == dict(answer)
    assert list(found) == ["text", "tokens", "finish_reason", "stats"]
    assert list(found["stats"]) == list(AnswerStats.__struct_fields__)
    assert found["tokens"] == list(answer.tokens)
    assert found["stats"]["total_s"] == pytest.approx(answer.stats.total_s, abs=1e-4)
    assert len(floats_in(found)) > 10
    assert all(len(repr(number).partition(".")[2]) <= 4 for number in floats_in(found))
    assert dict(Chunk("a", (1, 2))) == {"text": "a", "tokens": [1, 2]}
    assert msgspec.json.decode(msgspec.json.encode(answer))["text"] == answer.text


def test_it_is_a_response_of_fastapi(answer: Answer) -> None:
    """FastAPI writes what an endpoint returns with pydantic where it is annotated, and with ``dict()`` where not."""
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(Answer)
    assert json.loads(adapter.dump_json(answer)) == answer.to_dict()
    assert adapter.json_schema(mode="serialization")["type"] == "object"
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python({"text": "made up"})


def test_it_is_short_where_it_is_shown(answer: Answer) -> None:
    written: list[str] = []

    class Printer:
        text = written.append

    answer._repr_pretty_(Printer(), False)
    text, _, figures = "".join(written).rpartition("\n\n")
    assert text == answer.text
    assert figures.startswith("(length, 24 tokens in ")
    assert "\n" not in figures
    assert "of the drafts accepted" in figures
    assert len(repr(answer)) < 300
    assert repr(answer).startswith("<Answer 'w")
    assert len(repr(answer.stats)) < 150
