"""One prompt in the raw-torch model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..processing import PreparedPrompt
from ..session import AfterLayer, CachedSession
from .attention import AnswerAttention, PromptAttention
from .cache import KeyValueCache
from .decoder import Decoder
from .graphs import CapturedPasses


class TorchSession(CachedSession):
    """A cache of its own in a shared decoder.

    Args:
        decoder: the model.
        prompt: the prepared prompt.
        video: ``(placeholders, hidden_size)``, the vision tower's output, or None without a video.
        capacity: answer tokens to make room for.
    """

    def __init__(self, decoder: Decoder, prompt: PreparedPrompt, video: torch.Tensor | None, capacity: int) -> None:
        super().__init__(prompt, capacity, decoder.config.vocab_size, decoder.config.layers)
        self._decoder = decoder
        self._video = video
        self._cache: KeyValueCache | None = None
        self._rotations: torch.Tensor | None = None
        self._captured: CapturedPasses | None = None
        # float32 has no kernel of the kind that a captured pass needs, and a graph is of one device.
        alone = len(set(decoder.layer_devices)) == 1
        self._capturing = alone and decoder.device.type == "cuda" and decoder.dtype != torch.float32

    @torch.inference_mode()
    def _prefill(
        self, kept: NDArray[np.int64] | None, positions: NDArray[np.int64], after_layer: AfterLayer
    ) -> torch.Tensor:
        decoder = self._decoder
        hidden = decoder.embed(torch.from_numpy(self._prompt.ids).to(decoder.device))
        if self._video is not None:
            start, stop = self._prompt.placeholders
            hidden[start:stop] = self._video
        if kept is not None:
            hidden = hidden[torch.from_numpy(kept).to(decoder.device)]
        axes, rows = positions.shape
        # Made here and not when the session is opened: only now is it known how many rows pruning leaves.
        self._cache = KeyValueCache(decoder.config, rows + self._capacity, decoder.dtype, decoder.layer_devices)
        rotation = decoder.rotations(torch.from_numpy(positions).to(decoder.device))
        answer = torch.arange(self._capacity, device=decoder.device) + self._first_position
        self._rotations = decoder.rotations(answer.expand(axes, -1))
        hidden = decoder.forward(hidden, rotation, PromptAttention(self._cache, rows), after_layer)
        self._video = None
        return decoder.logits(hidden[-1:])[0]

    def _queries_and_keys(
        self, layer: int, hidden: torch.Tensor, positions: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._cache is not None  # the running prefill made it
        decoder = self._decoder
        rotation = decoder.rotations(torch.from_numpy(positions).to(decoder.device))
        keys = self._cache.filled(len(self._prompt))[2 * (layer - 1)]
        return decoder.queries(layer, hidden.to(keys.device), rotation.to(keys.device)), keys[0]

    @torch.inference_mode()
    def _extend(self, tokens: Sequence[int], row: int, position: int, after_layer: AfterLayer | None) -> torch.Tensor:
        assert self._cache is not None  # the prefill made both
        assert self._rotations is not None
        decoder = self._decoder
        if self._capturing and (logits := self._extend_captured(tokens)) is not None:
            return logits
        hidden = decoder.embed(torch.tensor(tokens, device=decoder.device))
        index = position - self._first_position
        rotation = self._rotations[index : index + len(tokens)]
        attention = AnswerAttention(self._cache, row, len(tokens))
        return decoder.logits(decoder.forward(hidden, rotation, attention, after_layer))

    def _extend_captured(self, tokens: Sequence[int]) -> torch.Tensor | None:
        """None where this pass cannot be a captured one, which is a single call: nothing can end it in the middle."""
        assert self._cache is not None
        assert self._rotations is not None
        try:
            if self._captured is None:
                self._captured = CapturedPasses(
                    self._decoder, self._cache, self._rotations, self._prompt_rows, self._capacity
                )
            return self._captured.extend(tokens, self._length)
        except RuntimeError as error:
            warnings.warn(f"passes are not captured as CUDA graphs: {error}", RuntimeWarning, stacklevel=2)
            self._capturing = False
            return None

    def _truncate(self, count: int) -> None:
        """Nothing to do: rows behind the length are overwritten before they are read."""

    def _close(self) -> None:
        self._cache = self._rotations = self._video = self._captured = None
