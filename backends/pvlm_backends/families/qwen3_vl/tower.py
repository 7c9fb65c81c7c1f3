"""Qwen3-VL's patches to tokens: the vision tower, the merger, and the mergers for the decoder's first layers.

Patches stay in the order of the tokens that they become. Attention is within a pair of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...checkpoint import WeightSource
from ..patch_tower import axis_frequencies, parts_of, patch_places, rotate, rotation
from .config import Qwen3VisionConfig

_NORM_EPS = 1e-6

_Affine = tuple[Tensor, Tensor]
"""Weight and bias."""


@dataclass(frozen=True)
class _Layer:
    norm1: _Affine
    qkv: _Affine
    output: _Affine
    norm2: _Affine
    widen: _Affine
    narrow: _Affine


class _Merger:
    """Patches of a token, side by side, to its features. ``whole``: the norm is over all of them, not over each."""

    def __init__(self, config: Qwen3VisionConfig, out_size: int, weights: WeightSource, name: str, whole: bool) -> None:
        self._merged = config.hidden_size * config.merge_size**2
        self._normed = self._merged if whole else config.hidden_size
        self._norm = _norm(weights, f"{name}.norm", self._normed)
        self._widen = _linear(weights, f"{name}.linear_fc1", self._merged, self._merged)
        self._project = _linear(weights, f"{name}.linear_fc2", out_size, self._merged)

    def __call__(self, hidden: Tensor) -> Tensor:
        normed = F.layer_norm(hidden.view(-1, self._normed), (self._normed,), *self._norm, _NORM_EPS)
        return F.linear(F.gelu(F.linear(normed.view(-1, self._merged), *self._widen)), *self._project)


class Qwen3VisionTower:
    """Tower and mergers: the video's tokens and their features. Raises CheckpointError for bad weights."""

    def __init__(self, config: Qwen3VisionConfig, out_size: int, weights: WeightSource) -> None:
        self.config = config
        width = config.hidden_size
        patch = (3, config.temporal_patch_size, config.patch_size, config.patch_size)
        kernel = weights.take("visual.patch_embed.proj.weight", width, *patch)
        self._patch = kernel.flatten(1), weights.take("visual.patch_embed.proj.bias", width)
        side = config.position_side
        self._positions = weights.take("visual.pos_embed.weight", side * side, width)
        self._layers = [self._load_layer(weights, index) for index in range(config.layers)]
        self._merger = _Merger(config, out_size, weights, "visual.merger", whole=False)
        self._deep_mergers = {
            layer: _Merger(config, out_size, weights, f"visual.deepstack_merger_list.{number}", whole=True)
            for number, layer in enumerate(config.deep_layers)
        }
        self._frequencies = axis_frequencies(width // config.heads, config.rope_theta, self._positions.device)

    def encode(
        self, pixels: Tensor, on_progress: Callable[[], None], image_size: tuple[int, int] | None = None
    ) -> Tensor:
        """Encode `PatchProcessor.patches` to ``(1 + deep layers, t * h * w, out_size)``; see `VideoTower`."""
        _, height, width, _, _ = pixels.shape
        places = patch_places(height, width, self.config.merge_size, pixels.device).flatten(0, 2)
        learned, turn = self._learned(places, height, width), rotation(places, self._frequencies)
        return torch.cat([self._encode_pairs(part, learned, turn) for part in parts_of(pixels, on_progress)], dim=1)

    def _encode_pairs(self, pixels: Tensor, learned: Tensor, turn: Tensor) -> Tensor:
        hidden = F.linear(pixels.flatten(1, 3), *self._patch) + learned
        deep: list[Tensor] = []
        for index, layer in enumerate(self._layers):
            hidden = hidden + F.linear(self._attend(layer, hidden, turn), *layer.output)
            widened = F.gelu(F.linear(self._normalize(hidden, layer.norm2), *layer.widen), approximate="tanh")
            hidden = hidden + F.linear(widened, *layer.narrow)
            if index in self._deep_mergers:
                deep.append(self._deep_mergers[index](hidden))
        return torch.stack([self._merger(hidden), *deep])

    def _attend(self, layer: _Layer, hidden: Tensor, turn: Tensor) -> Tensor:
        """Attention of ``(pairs, patches, hidden_size)`` within each pair of frames."""
        heads = self.config.heads
        qkv = torch.unflatten(F.linear(self._normalize(hidden, layer.norm1), *layer.qkv), -1, (3 * heads, -1))
        rotate(qkv[..., : 2 * heads, :], turn)
        query, key, value = torch.unflatten(qkv, -2, (3, heads)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def _normalize(self, hidden: Tensor, norm: _Affine) -> Tensor:
        return F.layer_norm(hidden, (self.config.hidden_size,), *norm, _NORM_EPS)

    def _learned(self, places: Tensor, height: int, width: int) -> Tensor:
        """``(patches of a frame, hidden_size)``: the square of learned positions stretched over a frame, bilinear."""
        side, merge = self.config.position_side, self.config.merge_size
        last = torch.tensor([height * merge - 1, width * merge - 1], device=places.device)
        exact = places.float() * (side - 1) / last.clamp(min=1)  # corners lie on corners
        before = exact.floor().long()
        after = (before + 1).clamp(max=side - 1)
        share = exact - before
        learned = torch.zeros(len(places), self.config.hidden_size, device=places.device)
        for row, row_share in ((before[:, 0], 1 - share[:, 0]), (after[:, 0], share[:, 0])):
            for column, column_share in ((before[:, 1], 1 - share[:, 1]), (after[:, 1], share[:, 1])):
                learned += self._positions[row * side + column] * (row_share * column_share)[:, None]
        return learned.to(self._positions.dtype)

    def _load_layer(self, weights: WeightSource, index: int) -> _Layer:
        width, inner = self.config.hidden_size, self.config.intermediate_size
        prefix = f"visual.blocks.{index}"
        return _Layer(
            norm1=_norm(weights, f"{prefix}.norm1", width),
            qkv=_linear(weights, f"{prefix}.attn.qkv", 3 * width, width),
            output=_linear(weights, f"{prefix}.attn.proj", width, width),
            norm2=_norm(weights, f"{prefix}.norm2", width),
            widen=_linear(weights, f"{prefix}.mlp.linear_fc1", inner, width),
            narrow=_linear(weights, f"{prefix}.mlp.linear_fc2", width, inner),
        )


def _norm(weights: WeightSource, name: str, width: int) -> _Affine:
    return weights.take(f"{name}.weight", width), weights.take(f"{name}.bias", width)


def _linear(weights: WeightSource, name: str, outputs: int, inputs: int) -> _Affine:
    return weights.take(f"{name}.weight", outputs, inputs), weights.take(f"{name}.bias", outputs)
