"""The decoder of Qwen2 and Qwen3 with its short passes in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import CDLL, byref
from functools import partial

import torch
from torch import Tensor

from pvlm_protocols.backend import BackendError

from ..checkpoint import WeightSource
from ..families.config import DecoderConfig
from ..raw.cache import Part
from ..raw.decoder import KEPT_WORKSPACES, Decoder
from .blocks import Blocks
from .library import DecoderStructure, Layer, Matrix, PartStructure, PassStructure, Segment, kernels
from .linear import PanelLinear

_LANES = 8


def check_support(config: DecoderConfig, dtype: torch.dtype, devices: Sequence[torch.device]) -> CDLL:
    """Return the kernels for a decoder, built if need be.

    Raises BackendError as `library.kernels` does, and for a dtype, a device or dimensions that they do not support.
    """
    if dtype != torch.float32 or [device.type for device in devices] != ["cpu"]:
        placed = ",".join(map(str, devices))
        raise BackendError(
            f"the backend 'native' computes in float32 on the CPU, not in {dtype} on {placed}; take the backend 'torch'"
        )
    for name, size in (
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("head dimension", config.head_dim),
    ):
        if size % _LANES:
            raise BackendError(
                f"the backend 'native' is made for multiples of {_LANES}, and the decoder's {name} is {size}; "
                "take the backend 'torch'"
            )
    return kernels()


class NativeDecoder(Decoder):
    """A `Decoder` in float32 on the CPU; a pass after the prompt is a call or two of compiled code.

    A token's logits have the same bits in passes of any length. Raises BackendError as `check_support` does.
    """

    def __init__(
        self, config: DecoderConfig, weights: WeightSource, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> None:
        self._kernels = check_support(config, dtype, devices)
        super().__init__(config, weights, dtype, devices, partial(PanelLinear, blocks=Blocks()))
        self._scratch = torch.empty(0)
        self._structure = self._describe()

    def extend(
        self,
        ids: Tensor,
        rotation: Tensor,
        parts: Sequence[Part],
        after_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """See `Decoder.extend`."""
        hidden, count, layers = self.embed(ids), len(ids), self.config.layers
        run, scratch = self._pass(parts, count)  # the scratch lives as long as the pass
        decoder, described = byref(self._structure), byref(run)
        steps = [(0, layers)] if after_layer is None else [(index, index + 1) for index in range(layers)]
        if after_layer is not None:
            after_layer(0, hidden)
        rotated = rotation.contiguous()
        for first, last in steps:
            self._kernels.run_layers(decoder, described, first, last, rotated.data_ptr(), hidden.data_ptr())
            if after_layer is not None:
                after_layer(last, hidden)
        logits = self._empty_logits(count)
        self._kernels.run_head(decoder, described, hidden.data_ptr(), logits.data_ptr())
        del scratch
        return logits

    def _pass(self, parts: Sequence[Part], tokens: int) -> tuple[PassStructure, Tensor]:
        structures = (PartStructure * len(parts))()
        for place, part in zip(structures, parts, strict=True):
            segments = (Segment * len(part.rows))()
            for segment, rows in zip(segments, part.rows, strict=True):
                keys = rows.cache.start
                segment.keys, segment.room, segment.rows = keys.data_ptr(), keys.shape[-2], rows.count
            place.segments, place.count, place.tokens = segments, len(segments), part.tokens
        run = PassStructure(parts=structures, count=len(parts), tokens=tokens)
        needed = self._kernels.scratch_size(byref(self._structure), byref(run))
        scratch = self._scratch
        if needed > len(scratch):
            scratch = torch.empty(needed)
            if tokens <= KEPT_WORKSPACES:  # a longer pass may need hundreds of megabytes
                self._scratch = scratch
        run.scratch = scratch.data_ptr()
        return run, scratch

    def _describe(self) -> DecoderStructure:
        config = self.config
        layers = (Layer * config.layers)()
        for place, layer in zip(layers, self._layers, strict=True):
            for name in ("qkv", "output", "gate_up", "down"):
                setattr(place, name, getattr(layer, name).matrix)
            place.input_norm = layer.input_norm.weight.data_ptr()
            place.post_norm = layer.post_norm.weight.data_ptr()
            place.qk_norm = None if layer.qk_norm is None else layer.qk_norm.weight.data_ptr()
        head = self._head.matrix if isinstance(self._head, PanelLinear) else None
        return DecoderStructure(
            layers=layers,
            head=head or Matrix(),
            embedding=None if head else self.embedding.data_ptr(),
            norm=self._norm.weight.data_ptr(),
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            inner=config.intermediate_size,
            epsilon=config.rms_norm_eps,
            threads=torch.get_num_threads(),
        )
