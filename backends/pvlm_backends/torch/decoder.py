"""The Qwen2 decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Written for few operations per token: on the CPU a small model's step is dispatch more than arithmetic. Hence fused
projections, weights stored ``(in, out)``, residuals added by the matrix product, and buffers with ready-made views.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .cache import KeyValueCache
from .checkpoint import Checkpoint
from .config import TextConfig

_KEPT_WORKSPACES = 64
"""Passes of up to so many tokens reuse their buffers; longer ones are prefills and rare."""


@dataclass(frozen=True)
class _Layer:
    input_norm: RMSNorm
    qkv: Tensor
    qkv_bias: Tensor
    output: Tensor
    post_norm: RMSNorm
    gate_up: Tensor
    down: Tensor


class RMSNorm:
    """Root-mean-square normalisation of the last dimension, computed in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        width = weight.shape[0]
        self._weight, self._eps = weight, eps
        # x / sqrt(mean(x^2) + eps) = x * sqrt(width) / hypot(|x|, sqrt(width * eps)): three cheap kernels, where
        # torch's own function takes six on the CPU.
        self._scaled_weight = weight.float() * math.sqrt(width)
        self._floor = torch.full((1, 1), math.sqrt(width * eps), device=weight.device)

    def __call__(self, hidden: Tensor) -> Tensor:
        """``(n, width)`` to ``(n, width)``, same dtype."""
        if hidden.is_cuda:
            return F.rms_norm(hidden, self._weight.shape, self._weight, self._eps)
        size = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32).hypot_(self._floor)
        return torch.div(hidden, size).mul_(self._scaled_weight).to(hidden.dtype)


class Workspace:
    """Buffers of a pass over n tokens, with the views that a layer needs."""

    def __init__(self, config: TextConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = torch.empty(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device=device)
        by_head = self.qkv.view(tokens, heads + 2 * kv_heads, head_dim)
        self._rotated = by_head[:, : heads + kv_heads]
        self._rotated_pairs = (
            torch.view_as_complex(torch.unflatten(self._rotated, -1, (-1, 2))) if dtype == torch.float32 else None
        )
        # Queries that share a key head lie next to each other, so they go through attention as rows of one head.
        self.query = by_head[:, :heads].view(tokens, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
        self.key_value = by_head[:, heads:].view(tokens, 2, kv_heads, head_dim).permute(1, 2, 0, 3).unsqueeze(1)
        self.gate_up = torch.empty(tokens, 2 * config.intermediate_size, dtype=dtype, device=device)
        self.gate, self.up = self.gate_up.chunk(2, dim=-1)

    def rotate(self, rotation: Tensor) -> None:
        """Turn queries and keys in place by ``rotation``, complex64 ``(n, 1, head_dim / 2)``."""
        if self._rotated_pairs is not None:
            self._rotated_pairs.mul_(rotation)
        else:
            turned = torch.view_as_complex(torch.unflatten(self._rotated.float(), -1, (-1, 2))) * rotation
            self._rotated.copy_(torch.view_as_real(turned).flatten(-2))


class Decoder:
    """The decoder's weights and its passes. Raises CheckpointError where weights are missing or misshapen.

    One pass runs at a time: passes of equal length share buffers.
    """

    def __init__(self, config: TextConfig, weights: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        width = config.hidden_size
        self.embedding = weights.take("language_model.embed_tokens.weight", config.vocab_size, width)
        tied = config.tied_head and "lm_head.weight" not in weights
        self._head = (self.embedding if tied else weights.take("lm_head.weight", config.vocab_size, width)).t()
        self._layers = [self._load_layer(weights, index) for index in range(config.layers)]
        self._norm = RMSNorm(weights.take("language_model.norm.weight", width), config.rms_norm_eps)
        halves = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self._frequencies = (1.0 / config.rope_theta**halves).to(device)
        self._workspaces: dict[int, Workspace] = {}

    def embed(self, ids: Tensor) -> Tensor:
        """int64 ``(n,)`` to ``(n, hidden_size)``."""
        return F.embedding(ids, self.embedding)

    def rotations(self, positions: Tensor) -> Tensor:
        """complex64 ``(n, 1, head_dim / 2)``: the rotary embedding of int64 ``(n,)`` positions."""
        angles = positions.float()[:, None] * self._frequencies
        return torch.polar(torch.ones_like(angles), angles)[:, None]

    def forward(
        self,
        hidden: Tensor,
        rotation: Tensor,
        cache: KeyValueCache,
        row: int,
        after_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Run every layer over n tokens that follow the first ``row`` rows of ``cache``.

        Args:
            hidden: ``(n, hidden_size)``, embedded tokens; overwritten.
            rotation: the tokens' rotary embedding, from `rotations`.
            after_layer: called with 0 and the input, then with each layer's number and its output.

        Returns:
            ``(n, hidden_size)``, the last layer's output before the final norm.
        """
        count = hidden.shape[0]
        workspace = self._workspace(count)
        places, filled = cache.places(row, count), cache.filled(row + count)
        mask = self._causal_mask(count, row) if row and count > 1 else None
        if after_layer is not None:
            after_layer(0, hidden)
        for index, layer in enumerate(self._layers):
            torch.addmm(layer.qkv_bias, layer.input_norm(hidden), layer.qkv, out=workspace.qkv)
            workspace.rotate(rotation)
            places[index].copy_(workspace.key_value)
            attended = self._attend(workspace.query, filled[2 * index], filled[2 * index + 1], mask)
            hidden.addmm_(attended, layer.output)
            torch.mm(layer.post_norm(hidden), layer.gate_up, out=workspace.gate_up)
            hidden.addmm_(F.silu(workspace.gate) * workspace.up, layer.down)
            if after_layer is not None:
                after_layer(index + 1, hidden)
        return hidden

    def queries(self, layer: int, hidden: Tensor, rotation: Tensor) -> Tensor:
        """float32 ``(heads, n, head_dim)``: what layer number ``layer`` asks the keys of its cache with.

        ``hidden``: ``(n, hidden_size)``, the layer's input; ``rotation`` as in `forward`.
        """
        weights, heads, head_dim = self._layers[layer - 1], self.config.heads, self.config.head_dim
        width = heads * head_dim
        query = torch.addmm(weights.qkv_bias[:width], weights.input_norm(hidden), weights.qkv[:, :width])
        pairs = torch.view_as_complex(query.float().view(-1, heads, head_dim // 2, 2))
        return torch.view_as_real(pairs * rotation).flatten(-2).transpose(0, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 ``(n, vocab_size)`` from the last layer's output."""
        normed = self._norm(hidden)
        # An ordinary tensor although this runs in inference mode: its receiver may write to it.
        with torch.inference_mode(False):
            logits = torch.empty(hidden.shape[0], self.config.vocab_size, device=self.device)
        if self.dtype == torch.float32:
            return torch.mm(normed, self._head, out=logits)
        return logits.copy_(torch.mm(normed, self._head))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of ``query`` ``(kv_heads, group, n, head_dim)``; returns ``(n, heads * head_dim)``."""
        kv_heads, group, count, head_dim = query.shape
        if count > 1 and mask is None:  # a prefill: long, so kernels that skip the masked half matter
            heads = query.flatten(0, 1)[None]
            attended = F.scaled_dot_product_attention(heads, keys, values, is_causal=True, enable_gqa=group > 1)
            return attended[0].transpose(0, 1).reshape(count, -1)
        packed = query.reshape(1, kv_heads, group * count, head_dim)
        attended = F.scaled_dot_product_attention(packed, keys, values, attn_mask=mask)
        return attended.view(kv_heads, group, count, head_dim).permute(2, 0, 1, 3).reshape(count, -1)

    def _causal_mask(self, count: int, row: int) -> Tensor:
        """``(group * n, row + n)``: token i sees all rows before it and itself; -inf elsewhere."""
        mask = torch.full((count, row + count), -math.inf, dtype=self.dtype, device=self.device).triu_(row + 1)
        return mask.repeat(self.config.heads // self.config.kv_heads, 1)

    def _workspace(self, tokens: int) -> Workspace:
        workspace = self._workspaces.get(tokens)
        if workspace is None:
            workspace = Workspace(self.config, tokens, self.dtype, self.device)
            if tokens <= _KEPT_WORKSPACES:
                self._workspaces[tokens] = workspace
        return workspace

    def _load_layer(self, weights: Checkpoint, index: int) -> _Layer:
        config = self.config
        width, inner = config.hidden_size, config.intermediate_size
        sizes = {"q": config.heads * config.head_dim, "k": config.kv_heads * config.head_dim}
        sizes["v"] = sizes["k"]
        prefix = f"language_model.layers.{index}"

        def take(name: str, *shape: int) -> Tensor:
            return weights.take(f"{prefix}.{name}", *shape)

        qkv = [take(f"self_attn.{name}_proj.weight", size, width) for name, size in sizes.items()]
        bias = [take(f"self_attn.{name}_proj.bias", size) for name, size in sizes.items()]
        for parts in (qkv, bias):
            parts[:2] = [_pairs_together(part, config.head_dim) for part in parts[:2]]
        gate_up = [take(f"mlp.{name}_proj.weight", inner, width) for name in ("gate", "up")]
        return _Layer(
            input_norm=RMSNorm(take("input_layernorm.weight", width), config.rms_norm_eps),
            qkv=torch.cat(qkv).t().contiguous(),
            qkv_bias=torch.cat(bias),
            output=take("self_attn.o_proj.weight", width, sizes["q"]).t().contiguous(),
            post_norm=RMSNorm(take("post_attention_layernorm.weight", width), config.rms_norm_eps),
            gate_up=torch.cat(gate_up).t().contiguous(),
            down=take("mlp.down_proj.weight", width, inner).t().contiguous(),
        )


def _pairs_together(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder a query or key projection's outputs so that the two halves of a rotary pair are neighbours.

    Checkpoints pair dimension i of a head with i + head_dim / 2; side by side a pair is one complex number, and the
    rotation one product. Scores do not change, because queries and keys are reordered alike.
    """
    return torch.unflatten(weight, 0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
