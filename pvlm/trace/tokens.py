"""Tokens as text: which piece of the answer stands for which of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pvlm.answer.detokenizer import REPLACEMENT, TextStream
from pvlm_protocols.backend import Processor


class Piece(NamedTuple):
    """``text`` is what the answer's tokens ``start`` to ``stop`` (exclusive) stand for: one token where it holds whole
    characters, else as many as the characters need; empty for a token without text.
    """

    text: str
    start: int
    stop: int


def pieces(processor: Processor, tokens: Sequence[int]) -> list[Piece]:
    """An answer in its smallest pieces of whole characters; their texts together are the text of ``tokens``."""
    stream = TextStream(processor.decode)
    found: list[Piece] = []
    start = 0
    for index, token in enumerate(tokens):
        text = stream.push(token)
        if text or not processor.decode(tokens[start : index + 1]):
            found.append(Piece(text, start, index + 1))
            start = index + 1
    if text := stream.flush():
        if start == len(tokens) and found:  # held back without a token of its own
            last = found.pop()
            text, start = last.text + text, last.start
        found.append(Piece(text, start, len(tokens)))
    return found


def label(processor: Processor, vocabulary: Sequence[str], token: int) -> str:
    """A token by itself: its text, or its spelling in the vocabulary where it has none or is part of a character."""
    text = processor.decode([token])
    if text and REPLACEMENT not in text:
        return text
    return vocabulary[token] if token < len(vocabulary) else f"<{token}>"
