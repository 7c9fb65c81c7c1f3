"""Tokens as text: each piece of the answer with its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pvlm.answer.detokenizer import REPLACEMENT, TextStream
from pvlm_protocols.backend import Processor


class Piece(NamedTuple):
    """``text`` is the text of the answer's tokens ``start`` to ``stop`` (exclusive): one token if it holds whole
    characters, otherwise as many as the characters need; empty for a token without text.
    """

    text: str
    start: int
    stop: int


def pieces(processor: Processor, tokens: Sequence[int]) -> list[Piece]:
    """The smallest pieces of an answer with whole characters; joined, they are the text of ``tokens``."""
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
    """One token alone: its text, or its spelling in the vocabulary if it has no text or is part of a character."""
    text = processor.decode([token])
    if text and REPLACEMENT not in text:
        return text
    return vocabulary[token] if token < len(vocabulary) else f"<{token}>"
