"""Qwen2.5-VL's patches to tokens: the vision tower, which attends within windows in most layers, and the merger.

Patches stay in the order of the tokens that they become. A window is a square of tokens, and is a plain slice of that
order. Windows at the right and lower edge are smaller. So there are at most four sizes, and each runs as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...checkpoint import WeightSource
from ...norm import RMSNorm
from ..patch_tower import axis_frequencies, parts_of, patch_places, rotate, rotation
from .config import QwenVisionConfig

_NORM_EPS = 1e-6


@dataclass(frozen=True)
class _Layer:
    norm1: RMSNorm
    qkv: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    norm2: RMSNorm
    gate_up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


class QwenVisionTower:
    """Tower and merger: the video's tokens. Raises CheckpointError for bad weights."""

    def __init__(self, config: QwenVisionConfig, out_size: int, weights: WeightSource) -> None:
        self.config = config
        width, merged = config.hidden_size, config.hidden_size * config.merge_size**2
        patch = (3, config.temporal_patch_size, config.patch_size, config.patch_size)
        self._patch = weights.take("visual.patch_embed.proj.weight", width, *patch).flatten(1)
        self._layers = [self._load_layer(weights, index) for index in range(config.layers)]
        self._norm = RMSNorm(weights.take("visual.merger.ln_q.weight", width), _NORM_EPS)
        self._widen = _linear(weights, "visual.merger.mlp.0", merged, merged)
        self._project = _linear(weights, "visual.merger.mlp.2", out_size, merged)
        self._frequencies = axis_frequencies(width // config.heads, config.rope_theta, self._patch.device)

    def encode(
        self, pixels: Tensor, on_progress: Callable[[], None], image_size: tuple[int, int] | None = None
    ) -> Tensor:
        """Encode `Qwen25VLProcessor.patches` ``(t, h, w, ...)`` to ``(1, t * h * w, out_size)``; see `VideoTower`."""
        _, height, width, _, _ = pixels.shape
        turn = rotation(patch_places(height, width, self.config.merge_size, pixels.device), self._frequencies)
        return torch.cat([self._encode_pairs(part, turn) for part in parts_of(pixels, on_progress)])[None]

    def _encode_pairs(self, pixels: Tensor, turn: Tensor) -> Tensor:
        grid = pixels.shape[:4]
        hidden = F.linear(pixels.flatten(0, 3), self._patch)
        for index, layer in enumerate(self._layers):
            hidden = hidden + F.linear(self._attend(index, layer, hidden, grid, turn), *layer.output)
            gate, up = F.linear(layer.norm2(hidden), *layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, *layer.down)
        merged = self._norm(hidden).view(-1, grid[3] * self.config.hidden_size)
        return F.linear(F.gelu(F.linear(merged, *self._widen)), *self._project)

    def _attend(self, index: int, layer: _Layer, hidden: Tensor, grid: torch.Size, turn: Tensor) -> Tensor:
        """Attention of ``(patches, hidden_size)`` within windows, or within each pair of frames."""
        time, height, width, patches = grid
        heads = self.config.heads
        qkv = F.linear(layer.norm1(hidden), *layer.qkv).view(time, height, width, patches, 3 * heads, -1)
        rotate(qkv[..., : 2 * heads, :], turn)
        attended = torch.empty(*grid, hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        whole = index in self.config.whole_frame_layers
        window = max(height, width) if whole else self.config.window
        for rows, row_window in _stretches(height, window):
            for columns, column_window in _stretches(width, window):
                cut = torch.unflatten(qkv[:, rows, columns], 2, (-1, column_window))
                # (t, windows down, windows across, rows, columns, patches of a token, 3 * heads, head_dim)
                windows = torch.unflatten(cut, 1, (-1, row_window)).transpose(2, 3)
                parts = torch.unflatten(windows.flatten(3, 5).flatten(0, 2), -2, (3, heads))
                query, key, value = parts.permute(2, 0, 3, 1, 4)
                seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
                back = seen.reshape(*windows.shape[:6], -1).transpose(2, 3)
                attended[:, rows, columns] = back.flatten(3, 4).flatten(1, 2)
        return attended.flatten(0, 3)

    def _load_layer(self, weights: WeightSource, index: int) -> _Layer:
        width, inner = self.config.hidden_size, self.config.intermediate_size
        prefix = f"visual.blocks.{index}"
        gate_up, gate_up_bias = weights.empty(2 * inner, width), weights.empty(2 * inner)
        for name, matrix, bias in zip(("gate", "up"), gate_up.chunk(2), gate_up_bias.chunk(2), strict=True):
            weights.fill(matrix, f"{prefix}.mlp.{name}_proj.weight")
            weights.fill(bias, f"{prefix}.mlp.{name}_proj.bias")
        return _Layer(
            norm1=RMSNorm(weights.take(f"{prefix}.norm1.weight", width), _NORM_EPS),
            qkv=_linear(weights, f"{prefix}.attn.qkv", 3 * width, width),
            output=_linear(weights, f"{prefix}.attn.proj", width, width),
            norm2=RMSNorm(weights.take(f"{prefix}.norm2.weight", width), _NORM_EPS),
            gate_up=(gate_up, gate_up_bias),
            down=_linear(weights, f"{prefix}.mlp.down_proj", width, inner),
        )


def _stretches(length: int, window: int) -> Iterator[tuple[slice, int]]:
    """The stretch of whole windows, then the shorter window after it, each if there is one."""
    whole = length - length % window
    if whole:
        yield slice(0, whole), window
    if whole < length:
        yield slice(whole, length), length - whole


def _linear(weights: WeightSource, name: str, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    return weights.take(f"{name}.weight", outputs, inputs), weights.take(f"{name}.bias", outputs)
