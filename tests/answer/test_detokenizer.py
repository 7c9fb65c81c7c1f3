"""Text as it streams: whole characters, no possible beginning of a stop string, and nothing after one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pvlm.answer.detokenizer import REPLACEMENT, TextStream
from tests.support.pair import PAIR

TOKENIZER = Tokenizer.from_file(f"{PAIR['target']}/tokenizer.json")


class Bytes:
    """Token i stands for the bytes ``pieces[i]``, which may be parts of characters."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def __call__(self, tokens: Sequence[int]) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", errors="replace")


@st.composite
def pieces_of_text(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A text, and its bytes cut anywhere."""
    text = draw(st.text(alphabet="ab é日🎬\n", max_size=14))
    encoded = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(encoded)), max_size=12)) | {0, len(encoded)})
    return text, [encoded[a:b] for a, b in pairwise(cuts)]


def reference(pieces: Sequence[bytes], stops: Sequence[str]) -> tuple[str, int | None]:
    """The whole text, cut before the first stop string that a token completes; and the number of tokens until then."""
    for count in range(1, len(pieces) + 1):
        so_far = b"".join(pieces[:count]).decode("utf-8", errors="ignore")
        places = [so_far.index(stop) for stop in stops if stop in so_far]
        if places:
            return so_far[: min(places)], count
    return b"".join(pieces).decode(), None


@settings(max_examples=500, deadline=None)
@given(text=pieces_of_text(), stops=st.lists(st.text(alphabet="ab é日🎬\n", min_size=1, max_size=4), max_size=3))
@example(text=("aab", [b"a", b"a", b"b"]), stops=["ab"])
@example(text=("abab", [b"ab", b"a", b"b"]), stops=["bb", "abab"])
@example(text=("é", [b"\xc3", b"\xa9"]), stops=["é"])
def test_what_is_released_is_the_text_up_to_the_first_stop(text: tuple[str, list[bytes]], stops: list[str]) -> None:
    _, pieces = text
    expected, ended_after = reference(pieces, stops)
    stream = TextStream(Bytes(pieces), stops)
    released = ""
    for token in range(len(pieces)):
        piece = stream.push(token)
        released += piece
        assert REPLACEMENT not in piece
        assert expected.startswith(released), "released something after a stop string"
        if stream.stopped:
            break
    assert stream.stopped is (ended_after is not None)
    assert stream.tokens == list(range(ended_after if ended_after is not None else len(pieces)))
    released += stream.flush()
    assert released == stream.text == expected
    assert stream.flush() == ""


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.binary(min_size=1, max_size=3), max_size=12))
def test_bytes_that_are_no_text_are_shown_as_a_whole_decoder_would(pieces: list[bytes]) -> None:
    """A model may say anything: what was no character when it was released cannot become one later."""
    stream = TextStream(Bytes(pieces))
    released = "".join(stream.push(token) for token in range(len(pieces))) + stream.flush()
    assert released == b"".join(pieces).decode("utf-8", errors="replace")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_any_text_through_a_real_tokenizer(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False).ids
    stream = TextStream(lambda ids: TOKENIZER.decode(list(ids)))
    assert "".join(map(stream.push, tokens)) + stream.flush() == TOKENIZER.decode(tokens)


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=20))
def test_any_tokens_of_a_real_tokenizer(tokens: list[int]) -> None:
    """Special tokens, which have no text, and parts of characters in any order among them."""
    stream = TextStream(lambda ids: TOKENIZER.decode(list(ids)))
    assert "".join(map(stream.push, tokens)) + stream.flush() == TOKENIZER.decode(tokens)


def test_a_possible_stop_is_held_back_and_released_when_it_is_none() -> None:
    stream = TextStream(Bytes([b"The", b" E", b"ND", b"ING"]), [" END.", "x"])
    assert [stream.push(token) for token in range(4)] == ["The", "", "", " ENDING"]


def test_a_character_is_released_when_it_is_complete() -> None:
    stream = TextStream(Bytes([b"a\xf0\x9f", b"\x8e", b"\xac", b"b"]))
    assert [stream.push(token) for token in range(4)] == ["a", "", "🎬", "b"]


def test_an_incomplete_character_at_the_end_is_shown() -> None:
    stream = TextStream(Bytes([b"a", b"\xf0\x9f"]))
    assert [stream.push(0), stream.push(1), stream.flush()] == ["a", "", REPLACEMENT]


@pytest.mark.parametrize("stops", [["b", "abcd"], ["abcd", "b"]])
def test_of_two_stops_in_one_token_the_first_in_the_text_counts(stops: list[str]) -> None:
    stream = TextStream(Bytes([b"xabcdx"]), stops)
    assert stream.push(0) == "x"
    assert stream.stopped
