"""The text of an emulated model, and a draft's guesses at it: functions of seed and answer position. Imports no torch.

Nothing depends on earlier calls, so every interleaving of draft and target sees the same text.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import msgspec

from pvlm_protocols.backend import CheckpointError

from .model import EmulatedModel, Phase

END_TOKEN = 0

BLOCK_BITS = 4
BLOCK = 1 << BLOCK_BITS
"""Runs in a block of `StratifiedGuesses`."""


GOLDEN = (math.sqrt(5) - 1) / 2


class Text:
    """The answer: a word from ``1 ... vocab_size - 1`` at every position, until the end token."""

    def __init__(self, seed: int, vocab_size: int, answer_tokens: int | None) -> None:
        self._seed = seed
        self._words = vocab_size - 1
        self._length = math.inf if answer_tokens is None else answer_tokens

    def token(self, position: int) -> int:
        """Return the token at an answer position; from the end on, the end token."""
        if position >= self._length:
            return END_TOKEN
        return 1 + hashed(self._seed, "text", position) % self._words

    def other(self, position: int, number: int = 0) -> int:
        """Return a word that is not the token at this position; for other ``number``s other words, if there are any."""
        step = 1 + (hashed(self._seed, "other", position) + number) % (self._words - 1)
        return 1 + (self.token(position) - 1 + step) % self._words


class Guesses(Protocol):
    """The positions that a draft guesses right."""

    def right(self, position: int) -> bool: ...

    def quantile(self, position: int) -> float:
        """A number in [0, 1) for a position that is guessed wrong: which of the draft's other tokens is right there."""
        ...


class IndependentGuesses:
    """Right with probability ``beta``, independently from position to position."""

    def __init__(self, seed: int, beta: float) -> None:
        self._seed = seed
        self._beta = beta

    def right(self, position: int) -> bool:
        return uniform(self._seed, "guess", position) < self._beta

    def quantile(self, position: int) -> float:
        return uniform(self._seed, "rank", position)


class StratifiedGuesses:
    """The distribution of run lengths of `IndependentGuesses`, without its noise.

    A run is the right guesses before a wrong one. Each block of `BLOCK` runs holds the quantiles ``(i + 1/2) / BLOCK``
    of the geometric distribution once; the longest is chosen so that the blocks so far have the mean ``beta / (1 -
    beta)`` up to rounding. Their order is shuffled such that every half, quarter, ... of a block is spread over the
    quantiles too. So a few hundred tokens have the acceptance, and nearly the speed, of a very long text.
    """

    def __init__(self, seed: int, beta: float) -> None:
        self._seed = seed
        self._beta = beta
        self._wrong: dict[int, int] = {}  # position -> number
        self._known = 0  # positions
        self._blocks = 0

    def right(self, position: int) -> bool:
        if self._beta == 1:
            return True
        while self._known <= position:
            for run in self._next_block():
                self._wrong[self._known + run] = len(self._wrong)
                self._known += run + 1
        return position not in self._wrong

    def quantile(self, position: int) -> float:
        """Multiples of the golden ratio: any few in a row are spread evenly."""
        return self._wrong[position] * GOLDEN % 1.0

    def _next_block(self) -> list[int]:
        mean = self._beta / (1 - self._beta)
        lengths = [_geometric_quantile((place + 0.5) / BLOCK, self._beta) for place in range(BLOCK - 1)]
        total = round((self._blocks + 1) * BLOCK * mean) - round(self._blocks * BLOCK * mean)
        lengths.append(max(0, total - sum(lengths)))
        mask = hashed(self._seed, "shuffle", self._blocks) % BLOCK
        self._blocks += 1
        return [lengths[_reversed_bits(index) ^ mask] for index in range(BLOCK)]


class PhasedGuesses:
    """Several kinds of guesses in turn, each over its own positions; the last has no end."""

    def __init__(self, phases: list[tuple[Guesses, int | None]]) -> None:
        self._phases = phases

    def right(self, position: int) -> bool:
        guesses, position = self._at(position)
        return guesses.right(position)

    def quantile(self, position: int) -> float:
        guesses, position = self._at(position)
        return guesses.quantile(position)

    def _at(self, position: int) -> tuple[Guesses, int]:
        for guesses, tokens in self._phases[:-1]:
            if tokens is None or position < tokens:
                return guesses, position
            position -= tokens
        return self._phases[-1][0], position


class TracedGuesses:
    """The guesses of a recorded answer, repeated: ``d`` was right, ``c`` was wrong.

    ``t`` is a token that the target wrote alone, so no guess was tested. It is drawn at the trace's rate
    ``d / (d + c)``.
    """

    def __init__(self, seed: int, trace: str) -> None:
        self._trace = trace
        self._untested = IndependentGuesses(seed, trace.count("d") / (trace.count("d") + trace.count("c")))

    def right(self, position: int) -> bool:
        match self._trace[position % len(self._trace)]:
            case "d":
                return True
            case "c":
                return False
            case _:
                return self._untested.right(position)

    def quantile(self, position: int) -> float:
        return self._untested.quantile(position)


def guesses_of(model: EmulatedModel) -> Guesses:
    """Return the guesses of a draft's specification. Raises CheckpointError for an invalid trace."""
    if model.trace is not None:
        return TracedGuesses(model.seed, read_trace(model.trace))
    acceptance = 1.0 if model.acceptance is None else model.acceptance
    phases = acceptance if isinstance(acceptance, list) else [Phase(acceptance)]
    kind = StratifiedGuesses if model.stratified else IndependentGuesses
    return PhasedGuesses([(kind(model.seed + number, phase.beta), phase.tokens) for number, phase in enumerate(phases)])


class _RecordedStats(msgspec.Struct):
    origins: str


class _RecordedAnswer(msgspec.Struct):
    stats: _RecordedStats


def read_trace(path: str) -> str:
    """Return the origins of a recorded answer's tokens, letters of ``dct``.

    The file holds the output of ``pvlm answer --json``, or the letters alone (with or without quotes).

    Raises:
        CheckpointError: the file cannot be read, has other letters, or has no tested token.
    """
    try:
        content = Path(path).expanduser().read_text(encoding="utf-8").strip()
        if content.startswith("{"):
            trace = msgspec.json.decode(content, type=_RecordedAnswer).stats.origins
        else:
            trace = content.strip('"')
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise CheckpointError(f"the trace {path!r} cannot be read: {error}") from error
    if unknown := set(trace) - set("dct"):
        raise CheckpointError(f"the trace {path!r} holds {min(unknown)!r}: its letters are d, c and t")
    if not set(trace) & set("dc"):
        raise CheckpointError(f"the trace {path!r} holds no drafted token that was tested (d or c)")
    return trace


def hashed(seed: int, purpose: str, position: int) -> int:
    """Return 64 random bits of this key."""
    return int.from_bytes(blake2b(f"{seed}|{purpose}|{position}".encode(), digest_size=8).digest(), "little")


def uniform(seed: int, purpose: str, position: int) -> float:
    """Return a number in [0, 1) of this key."""
    return (hashed(seed, purpose, position) >> 11) * 2.0**-53


def _geometric_quantile(u: float, beta: float) -> int:
    """The smallest r with ``P(run <= r) >= u``, where ``P(run > r) = beta**(r + 1)``; 0 <= beta < 1."""
    return 0 if beta == 0 else max(0, math.ceil(math.log1p(-u) / math.log(beta)) - 1)


def _reversed_bits(index: int) -> int:
    return int(f"{index:0{BLOCK_BITS}b}"[::-1], 2)
