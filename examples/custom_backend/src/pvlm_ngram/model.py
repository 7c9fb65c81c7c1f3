"""The model: counts of tokens after other tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import CheckpointError


class NgramModel(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over the ids of one tokenizer; a JSON file.

    ``counts``: for each context (up to ``order - 1`` ids, as text with spaces between them), the tokens that followed.
    """

    tokenizer: str
    """The checkpoint of the tokenizer; ``bundled``: pvlm's bundled target."""
    tokenizer_fingerprint: str
    vocab_size: int
    end_token: int
    """Id after and before every text; the second teaches the model how texts begin."""
    order: int
    counts: dict[str, dict[int, int]]

    @classmethod
    def counted(cls, texts: Iterable[Sequence[int]], *, end_token: int, order: int, **about: str | int) -> Self:
        """A model of texts, each a sequence of ids."""
        counts: dict[str, Counter[int]] = {}
        for text in texts:
            ids = [end_token] * (order - 1) + [*text, end_token]
            for place in range(order - 1, len(ids)):
                for size in range(order):
                    counts.setdefault(_key(ids[place - size : place]), Counter())[ids[place]] += 1
        return msgspec.convert({**about, "end_token": end_token, "order": order, "counts": counts}, cls)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a model from a file. Raises CheckpointError."""
        try:
            return msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{path} cannot be read as an n-gram model: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write the model to a file."""
        Path(path).write_bytes(msgspec.json.encode(self))

    def log_probabilities(self, text: Sequence[int]) -> NDArray[np.float32]:
        """Log probabilities of the token after a text, float32 ``(vocab_size,)``, all finite.

        Witten-Bell smoothing mixes all context lengths; a longer context weighs more, the more often it occurred.
        """
        history = [self.end_token] * (self.order - 1) + list(text[max(0, len(text) - self.order + 1) :])
        probabilities = np.full(self.vocab_size, 1 / self.vocab_size)
        for size in range(self.order):
            followed = self.counts.get(_key(history[len(history) - size :]))
            if followed is None:
                break
            tokens, times = np.array([*followed.keys()]), np.array([*followed.values()])
            probabilities *= len(tokens) / (times.sum() + len(tokens))
            probabilities[tokens] += times / (times.sum() + len(tokens))
        logs: NDArray[np.float32] = np.log(probabilities).astype(np.float32)
        return logs


def _key(context: Sequence[int]) -> str:
    return " ".join(map(str, context))
