"""Text by token: whole characters, every token in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.answer.detokenizer import REPLACEMENT
from pvlm.trace.tokens import label, pieces
from pvlm_backends.families import load_processor
from tests.support.pair import PAIR

SMALL = load_processor(PAIR["target"])


class Bytes:
    """A processor whose token i stands for the bytes ``parts[i]``."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self.parts = parts

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(self.parts[token] for token in tokens).decode("utf-8", errors="replace")


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A text, and its bytes cut anywhere."""
    text = draw(st.text(alphabet="ab é日🎬\n", max_size=14))
    encoded = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(encoded)), max_size=12)) | {0, len(encoded)})
    return text, [encoded[a:b] for a, b in pairwise(cuts)]


@settings(max_examples=300, deadline=None)
@given(cut=texts())
def test_pieces_are_the_text_in_whole_characters(cut: tuple[str, list[bytes]]) -> None:
    text, parts = cut
    found = pieces(Bytes(parts), range(len(parts)))  # type: ignore[arg-type]
    assert "".join(piece.text for piece in found) == text
    assert [place for piece in found for place in range(piece.start, piece.stop)] == list(range(len(parts)))
    for piece in found:
        for end in range(piece.start + 1, piece.stop):
            before = b"".join(parts[:end])
            assert before.decode(errors="replace").endswith(REPLACEMENT), "a piece that could have been two"


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(0, len(SMALL.tokens_as_text()) - 1), max_size=20))
def test_any_tokens_of_a_real_tokenizer(tokens: list[int]) -> None:
    """Special tokens, which have no text, and parts of characters in any order among them."""
    found = pieces(SMALL, tokens)
    assert "".join(piece.text for piece in found) == SMALL.decode(tokens)
    assert [place for piece in found for place in range(piece.start, piece.stop)] == list(range(len(tokens)))


def test_a_character_of_three_tokens_is_one_piece_and_an_end_token_one_of_its_own() -> None:
    emoji = [SMALL.tokens_as_text().index(spelled) for spelled in "ðŁİ¬"]  # the four bytes of a clapper board
    hello = SMALL.tokens_as_text().index("Ġthe")
    end = SMALL.end_token_ids[0]
    found = pieces(SMALL, [hello, *emoji, hello, end])
    assert [(piece.text, piece.stop - piece.start) for piece in found] == [(" the", 1), ("🎬", 4), (" the", 1), ("", 1)]


def test_a_token_by_itself_is_shown_as_it_can_be() -> None:
    vocabulary = SMALL.tokens_as_text()
    assert label(SMALL, vocabulary, vocabulary.index("Ġthe")) == " the"
    assert label(SMALL, vocabulary, vocabulary.index("ð")) == "ð"  # the spelling of a byte
    assert label(SMALL, vocabulary, SMALL.end_token_ids[0]) == "<|im_end|>"
    assert label(SMALL, vocabulary, len(vocabulary) + 3) == f"<{len(vocabulary) + 3}>"
