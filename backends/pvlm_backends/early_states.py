"""What a prefill's early layers have computed of video and question, for pruning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pvlm_protocols.backend import EarlyStates

from .attention import mean_attention
from .prefix import EarlyRows, Prefix
from .processing import PreparedPrompt


class EarlyTap:
    """Copies two layers' states of video and question out of a prefill, and delivers them.

    Args:
        prompt: the prefill's.
        prefix: the kept prefix on which it runs.
        layer: the later of the two; the other one is the decoder's input.
        deliver: receives the states.
        queries_and_keys: turns the question's input to the layer into its queries and the prompt's keys, as
            `mean_attention` takes them; None if the layer's attention is not requested.

    ``blocks``: the states of the video tokens of each block, once they were delivered.
    """

    def __init__(
        self,
        prompt: PreparedPrompt,
        prefix: Prefix | None,
        layer: int,
        deliver: Callable[[EarlyStates], None],
        queries_and_keys: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None,
    ) -> None:
        self._prompt = prompt
        self._layer = layer
        self._deliver = deliver
        self._queries_and_keys = queries_and_keys
        self.blocks: list[EarlyRows] = []
        if prefix is not None:
            self.blocks = [one.early for one in prefix.chain if one.early is not None]
        # The prefill runs the tokens after the kept prefix.
        start = 0 if prefix is None else prefix.tokens
        order = np.argsort(prompt.video)
        video = prompt.video[order]
        self._order: torch.Tensor | None = None
        if not np.array_equal(order, np.arange(len(order))):  # a template may put the tokens in another order
            self._order = torch.from_numpy(np.argsort(order))
        ends = [end for end in prompt.blocks if end > start]
        self._sizes = np.diff(np.searchsorted(video, [start, *ends])).tolist()
        self._video = torch.from_numpy(video[video >= start] - start)
        self._question = torch.from_numpy(prompt.question - start)
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None
        self._attending = torch.empty(0)  # the question's input to the layer

    def __call__(self, layer: int, hidden: torch.Tensor) -> None:
        if layer == 0:
            self._first = self._copy(hidden)
        if layer == self._layer - 1 and self._queries_and_keys is not None:
            self._attending = self._copy(hidden)[1]
        if layer == self._layer and self._first is not None:
            device = self._first[0].device  # a model's layers may lie on several
            video, question = (states.to(device) for states in self._copy(hidden))
            parts = (torch.split(states, self._sizes) for states in (self._first[0], video))
            self.blocks += [EarlyRows(layer, *states) for states in zip(*parts, strict=True)]
            attention = self._attention()
            self._deliver(
                EarlyStates(
                    layer=layer,
                    video_first=self._whole([block.first for block in self.blocks]),
                    video_last=self._whole([block.last for block in self.blocks]),
                    question_first=self._first[1],
                    question_last=question,
                    attention=None if attention is None else attention.to(device),
                    frames=self._prompt.frames,
                    runs=self._prompt.runs,
                )
            )
            self._first = None

    @torch.inference_mode(False)
    def _whole(self, blocks: list[torch.Tensor]) -> torch.Tensor:
        """The states of all video tokens, in memory of the receiver."""
        device = blocks[-1].device
        whole = torch.cat([block.to(device) for block in blocks])
        return whole if self._order is None else whole[self._order.to(device)]

    def _attention(self) -> torch.Tensor | None:
        if self._queries_and_keys is None:
            return None
        query, keys = self._queries_and_keys(self._attending)
        rows = self._prompt.question, self._prompt.video
        question, video = (torch.from_numpy(each).to(keys.device) for each in rows)
        attention = mean_attention(query, keys, question, video)
        with torch.inference_mode(False):
            return attention.clone()

    @torch.inference_mode(False)
    def _copy(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Copies, because later layers overwrite the residual stream; outside inference mode, so that the receiver may
        # write to it.
        return hidden[self._video.to(hidden.device)], hidden[self._question.to(hidden.device)]
