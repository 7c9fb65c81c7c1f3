"""One prompt in a model of any family: its passes are those of transformers' `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from pvlm_protocols.backend import BackendError, CheckpointError

from ...processing import PreparedPrompt
from ...session import AfterLayer
from ..session import TransformersSession, after_each_layer

_NEAR = 1e-3
_NEAR_IN_HALF_PRECISION = 0.1
"""How far logits of differently cut passes may lie apart, as a share of their size."""


class GenericSession(TransformersSession):
    """A cache of its own in a shared model. The vision tower runs in the prefill.

    No token of the video may be pruned, there are no early states, and no prefix is kept, because where the video lies
    in the decoder's input is not known.

    Args:
        model: transformers' model.
        inputs: of `GenericPrompts`.
        capacity: answer tokens to make room for.
        vocab_size: width of a logits row.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], capacity: int, vocab_size: int) -> None:
        super().__init__(model, plain_prompt(inputs["input_ids"]), capacity, vocab_size)
        self._ids: Tensor = inputs["input_ids"].to(self._device)
        """``(1, rows)``: of the prompt, and of the answer so far; rejected ones may follow."""
        self._inputs = {name: self._placed(value) for name, value in inputs.items() if name != "input_ids"}

    def prefill_steps(self, keep: Tensor | None = None, **options: Any) -> Iterator[Tensor | None]:
        """See `CachedSession.prefill_steps`. Raises BackendError if early states are requested."""
        if options.get("on_early_layer") is not None:
            raise BackendError("a model without a family of pvlm's gives no early states; use the pruner 'none'")
        return super().prefill_steps(keep, **options)

    @torch.no_grad()
    def _prefill(
        self, rows: NDArray[np.int64], positions: NDArray[np.int64], blocks: Sequence[int], after_layer: AfterLayer
    ) -> Iterator[Tensor | None]:
        """``rows``: all, since nothing is pruned or kept. The model numbers the ``positions`` by itself."""
        accepted = inspect.signature(self._model.forward).parameters
        if "position_ids" in accepted and "position_ids" not in self._inputs:
            numbered = self._model._prepare_position_ids_for_generation(self._ids, dict(self._inputs))
            self._inputs["position_ids"] = numbered
        self._cache = DynamicCache(config=self._model.config.get_text_config())
        last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        with after_each_layer(self._decoder_layers, after_layer):
            logits = self._run(self._ids, self._inputs, is_first_iteration=True, **last)
        yield logits[-1]

    def _feed(self, ids: Tensor, row: int, position: int) -> Tensor:
        self._ids = torch.cat([self._ids[:, :row], ids], dim=1)
        grown = _grown(self._inputs, self._ids.shape[1] - len(self._prompt))
        return self._run(self._ids, grown, next_sequence_length=ids.shape[1])

    def _run(self, ids: Tensor, inputs: Mapping[str, Any], **options: Any) -> Tensor:
        arguments = self._model.prepare_inputs_for_generation(
            ids, past_key_values=self._cache, use_cache=True, **inputs, **options
        )
        return self._model(**arguments, return_dict=True).logits[0].float()  # type: ignore[no-any-return]

    @property
    def _decoder_layers(self) -> Sequence[torch.nn.Module]:
        for module in self._model.get_decoder().modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == self._layers:
                return tuple(module)
        raise BackendError(f"the decoder of {type(self._model).__name__} has no list of {self._layers} layers")

    def _block(self, index: int) -> tuple[Any, int]:
        raise AssertionError("there are no prefixes")

    def _queries_and_keys(self, layer: int, hidden: Tensor, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        raise AssertionError("there are no early states")

    def _placed(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._placed(one) for one in value)
        if not isinstance(value, Tensor):
            return value
        return value.to(self._device, self._model.dtype if value.is_floating_point() else None)

    def _close(self) -> None:
        super()._close()
        self._inputs = {}


def plain_prompt(ids: Tensor) -> PreparedPrompt:
    """A prompt of ids ``(1, P)``, of which none may be pruned and none is known to be the question's."""
    none = np.arange(0)
    rows = np.arange(ids.shape[1])[None]
    return PreparedPrompt(ids[0].cpu().numpy(), (), none, none, (), none, rows, none)


def check_passes(model: Any, inputs: Mapping[str, Any], tokens: Sequence[int], vocab_size: int) -> None:
    """Raise CheckpointError unless a pass after a rollback gives the logits of passes over one token each.

    A model may keep state outside the cache, which no rollback reaches, or want other arguments than `generate`'s.

    Args:
        model: transformers' model.
        inputs: of `GenericPrompts`.
        tokens: an answer. Backwards, it is what is taken back.
        vocab_size: width of a logits row.
    """
    try:
        one_by_one, at_once = (GenericSession(model, inputs, len(tokens), vocab_size) for _ in range(2))
        one_by_one.prefill()
        expected = torch.cat([one_by_one.extend([token]) for token in tokens])
        at_once.prefill()
        at_once.extend(tokens[::-1])
        at_once.truncate(0)
        found = at_once.extend(tokens)
    except Exception as error:
        raise CheckpointError(f"{type(model).__name__} cannot be run as `generate` runs models: {error}") from error
    allowed = _NEAR if model.dtype == torch.float32 else _NEAR_IN_HALF_PRECISION
    distance = float((found - expected).norm() / expected.norm())
    if not distance <= allowed:
        raise CheckpointError(
            f"{type(model).__name__} gives other logits after tokens were taken back, by {distance:.2g} of their size: "
            "it keeps state that its cache does not hold, so that rejected tokens cannot be taken back exactly"
        )


def _grown(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Arguments of the prompt's tokens, with ``count`` text tokens more: as `generate` has them."""
    grown = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            continue
        shape = (*value.shape[:-1], count)
        if name == "position_ids":
            more = value[..., -1:] + torch.arange(1, count + 1, device=value.device)
        elif name == "attention_mask":
            more = value.new_ones(shape)
        elif name == "token_type_ids":
            more = value[..., -1:].expand(shape)
        elif name in ("mm_token_type_ids", "moe_mm_token_type_ids"):
            more = value.new_zeros(shape)
        else:
            continue
        grown[name] = torch.cat([value, more], dim=-1)
    return grown
