"""The decoder of Qwen2 and Qwen3: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

It uses few operations per token, because on the CPU a small model's step is mostly dispatch. So projections are fused,
weights are stored ``(in, out)``, the matrix product adds the residuals, and buffers have ready-made views.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..checkpoint import WeightSource
from ..families.config import DecoderConfig
from ..norm import RMSNorm
from ..placement import place_layers
from .attention import Attention, PromptAttention, answer_attention
from .cache import Part, Rows
from .linear import Linear, linear

KEPT_WORKSPACES = 64
"""Passes of up to so many tokens reuse their buffers; longer ones are prefills, which are rare."""

PIECE = 4096
"""Tokens of a prompt that a prefill runs through a layer at once."""
PIECES = {"cpu": 512}
"""The same by kind of device, where another number suits better."""


@dataclass(frozen=True)
class _Layer:
    device: torch.device
    input_norm: RMSNorm
    qkv: Linear
    qk_norm: RMSNorm | None
    """Of the heads of queries, and then of keys, ``(heads + kv_heads, head_dim)``."""
    output: Linear
    post_norm: RMSNorm
    gate_up: Linear
    down: Linear


class Workspace:
    """Buffers of a pass over n tokens, with views for a layer."""

    def __init__(self, config: DecoderConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = torch.empty(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device=device)
        by_head = self.qkv.view(tokens, heads + 2 * kv_heads, head_dim)
        self._rotated = by_head[:, : heads + kv_heads]
        self._rotated_pairs = (
            torch.view_as_complex(torch.unflatten(self._rotated, -1, (-1, 2))) if dtype == torch.float32 else None
        )
        self.query = by_head[:, :heads].view(tokens, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
        self.key_value = by_head[:, heads:].view(tokens, 2, kv_heads, head_dim).permute(1, 2, 0, 3).unsqueeze(1)
        self.gate_up = torch.empty(tokens, 2 * config.intermediate_size, dtype=dtype, device=device)
        self.gate, self.up = self.gate_up.chunk(2, dim=-1)

    def normalize(self, norm: RMSNorm) -> None:
        """Normalise the heads of queries and keys in place."""
        self._rotated.copy_(norm(self._rotated))

    def rotate(self, rotation: Tensor) -> None:
        """Turn queries and keys in place by ``rotation``, complex64 ``(n, 1, head_dim / 2)``."""
        if self._rotated_pairs is not None:
            self._rotated_pairs.mul_(rotation)
        else:
            turned = torch.view_as_complex(torch.unflatten(self._rotated.float(), -1, (-1, 2))) * rotation
            self._rotated.copy_(torch.view_as_real(turned).flatten(-2))


class Decoder:
    """The decoder's weights and its passes. Raises CheckpointError for missing or misshapen weights.

    The embeddings are on the first device. The head is on the last one, or with the embeddings if it shares their
    weight. The layers are placed in order, so that each device holds about the same number of bytes. Hidden states,
    rotations and masks travel from device to device.

    Only one pass runs at a time, because passes of equal length share buffers.

    Args:
        config: the dimensions.
        weights: where the weights come from.
        dtype: of activations and of the cache.
        devices: those of the layers, in order.
        product: makes a `Linear` of a weight ``(in, out)`` and a bias or None.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: WeightSource,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        product: Callable[[Tensor, Tensor | None], Linear] = linear,
    ) -> None:
        self.config = config
        self._product = product
        self.dtype = dtype
        self.device = devices[0]
        """The device of token ids, video tokens and rotations."""
        width = config.hidden_size
        tied = config.tied_head and "lm_head.weight" not in weights
        self._head_device = devices[0 if tied else -1]
        self.layer_devices = _place_layers(config, weights, devices)
        self.devices = frozenset((self.device, *self.layer_devices, self._head_device))
        """All devices of a pass; all layers may be on one, and the embeddings or the head on another."""
        self.embedding = weights.take("language_model.embed_tokens.weight", config.vocab_size, width)
        head = self.embedding if tied else weights.take("lm_head.weight", config.vocab_size, width, device=devices[-1])
        # A tied head is not packed: it would be in memory twice.
        self._head = Linear(head.t(), None) if tied else product(head.t(), None)
        del head  # freed before the layers are loaded, in case it was packed
        self._layers = [self._load_layer(weights, index) for index in range(config.layers)]
        norm = weights.take("language_model.norm.weight", width, device=self._head_device)
        self._norm = RMSNorm(norm, config.rms_norm_eps)
        halves = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self._frequencies = (1.0 / config.rope_theta**halves).to(self.device)
        self._axes = torch.tensor(config.rope_axes, device=self.device)
        self._workspaces: dict[tuple[int, torch.device], Workspace] = {}

    def embed(self, ids: Tensor) -> Tensor:
        """Embed int64 ``(n,)`` ids to ``(n, hidden_size)``."""
        return F.embedding(ids, self.embedding)

    def rotations(self, positions: Tensor) -> Tensor:
        """Return the rotary embedding of int64 ``(axes, n)`` positions, complex64 ``(n, 1, head_dim / 2)``."""
        angles = positions.float()[self._axes].t() * self._frequencies
        return torch.polar(torch.ones_like(angles), angles)[:, None]

    def forward(
        self,
        hidden: Tensor,
        rotation: Tensor,
        attention: Attention,
        after_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Run every layer over n tokens.

        Args:
            hidden: ``(n, hidden_size)``, embedded tokens; overwritten.
            rotation: the tokens' rotary embedding, from `rotations`.
            attention: writes into a cache and reads it.
            after_layer: called with 0 and the input, then with each layer's number and its output.

        Returns:
            ``(n, hidden_size)``, the last layer's output before the final norm, on that layer's device.
        """
        workspace: Workspace | None = None
        if after_layer is not None:
            after_layer(0, hidden)
        for index, layer in enumerate(self._layers):
            if workspace is None or layer.device != hidden.device:
                hidden, rotation = hidden.to(layer.device), rotation.to(layer.device)
                workspace = self._workspace(len(hidden), layer.device)
            self._run(index, hidden, rotation, attention, workspace)
            if after_layer is not None:
                after_layer(index + 1, hidden)
        return hidden

    def prefill(
        self,
        hidden: Tensor,
        rotation: Tensor,
        shared: Sequence[Rows],
        own: Sequence[Rows],
        after_layer: Callable[[int, Tensor], None],
    ) -> Generator[None, None, Tensor]:
        """Run every layer over a prompt's tokens, in pieces.

        The tokens see the rows of ``shared``, and are written to ``own``, which are as long as the tokens. No piece
        reaches over the end of a segment. The other arguments and the result are those of `forward`. Yields after each
        piece of a layer; other passes may run meanwhile.
        """
        size = PIECES.get(self.device.type, PIECE)
        attention = PromptAttention([*shared, *own])
        pieces: list[tuple[slice, Attention]] = []
        begin = 0
        for segment, rows in enumerate(own, len(shared)):
            for start in range(0, rows.count, size):
                stop = min(start + size, rows.count)
                pieces.append((slice(begin + start, begin + stop), attention.piece(segment, start, stop)))
            begin += rows.count
        workspaces: dict[int, Workspace] = {}
        after_layer(0, hidden)
        for index, layer in enumerate(self._layers):
            if index == 0 or layer.device != hidden.device:
                hidden, rotation = hidden.to(layer.device), rotation.to(layer.device)
                sizes = {part.stop - part.start for part, _ in pieces}
                workspaces = {size: Workspace(self.config, size, self.dtype, layer.device) for size in sizes}
            for number, (part, attend) in enumerate(pieces, 1):
                self._run(index, hidden[part], rotation[part], attend, workspaces[part.stop - part.start])
                if number == len(pieces):
                    after_layer(index + 1, hidden)
                yield
        return hidden

    def _run(self, index: int, hidden: Tensor, rotation: Tensor, attention: Attention, workspace: Workspace) -> None:
        """Run one layer, and overwrite ``hidden`` with its output."""
        layer = self._layers[index]
        layer.qkv.write(layer.input_norm(hidden), workspace.qkv)
        if layer.qk_norm is not None:
            workspace.normalize(layer.qk_norm)
        workspace.rotate(rotation)
        layer.output.add_to(hidden, attention(index, workspace.query, workspace.key_value))
        layer.gate_up.write(layer.post_norm(hidden), workspace.gate_up)
        layer.down.add_to(hidden, F.silu(workspace.gate) * workspace.up)

    def extend(
        self,
        ids: Tensor,
        rotation: Tensor,
        parts: Sequence[Part],
        after_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Run int64 ``(n,)`` ids into the caches of one or more sessions; return logits, float32 ``(n, vocab_size)``.

        ``parts``: which of the ids, in order, belong to which rows. ``rotation`` and ``after_layer`` as in `forward`.
        """
        return self.logits(self.forward(self.embed(ids), rotation, answer_attention(parts), after_layer))

    def queries(self, layer: int, hidden: Tensor, rotation: Tensor) -> Tensor:
        """Return the rotated queries of layer number ``layer``, float32 ``(heads, n, head_dim)``.

        ``hidden``: ``(n, hidden_size)``, the layer's input; ``rotation`` as in `forward`.
        """
        weights, config = self._layers[layer - 1], self.config
        heads, head_dim = config.heads, config.head_dim
        qkv = hidden.new_empty(len(hidden), (heads + 2 * config.kv_heads) * head_dim)
        turned = (heads + config.kv_heads) * head_dim
        projected = weights.qkv.write(weights.input_norm(hidden), qkv)[:, :turned]
        rotated = torch.unflatten(projected, -1, (-1, head_dim))
        if weights.qk_norm is not None:
            rotated = weights.qk_norm(rotated)
        pairs = torch.view_as_complex(torch.unflatten(rotated[:, :heads].float(), -1, (-1, 2)))
        return torch.view_as_real(pairs * rotation).flatten(-2).transpose(0, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits, float32 ``(n, vocab_size)``, from the last layer's output."""
        normed = self._norm(hidden.to(self._head_device))
        logits = self._empty_logits(hidden.shape[0])
        if self.dtype == torch.float32:
            return self._head.write(normed, logits)
        return logits.copy_(self._head.write(normed, normed.new_empty(logits.shape)))

    def _empty_logits(self, count: int) -> Tensor:
        """An ordinary tensor, made outside inference mode, so that its receiver may write to it."""
        with torch.inference_mode(False):
            return torch.empty(count, self.config.vocab_size, device=self._head_device)

    def pass_cost(self, tokens: int, rows: int) -> tuple[int, int]:
        """Return the bytes read and the operations of a pass over ``tokens``, if the cache then holds ``rows``.

        They are lower bounds: weights and cache are read once. A weight takes two operations for each token, and a row
        of the cache takes four for each dimension.
        """
        config = self.config
        products = [self._head]
        for layer in self._layers:
            products += (layer.qkv, layer.output, layer.gate_up, layer.down)
        cached = 2 * config.layers * config.kv_heads * config.head_dim * rows
        read = sum(product.bytes for product in products) + cached * self.dtype.itemsize
        scores = config.layers * config.heads * config.head_dim * rows
        return read, 2 * tokens * (sum(product.weights for product in products) + 2 * scores)

    def _workspace(self, tokens: int, device: torch.device) -> Workspace:
        workspace = self._workspaces.get((tokens, device))
        if workspace is None:
            workspace = Workspace(self.config, tokens, self.dtype, device)
            if tokens <= KEPT_WORKSPACES:
                self._workspaces[tokens, device] = workspace
        return workspace

    def _load_layer(self, weights: WeightSource, index: int) -> _Layer:
        config, device = self.config, self.layer_devices[index]
        width, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        prefix = f"language_model.layers.{index}"

        def norm(name: str) -> RMSNorm:
            return RMSNorm(weights.take(f"{prefix}.{name}.weight", width, device=device), config.rms_norm_eps)

        def transposed(name: str, outputs: int, inputs: int) -> Tensor:
            matrix = weights.empty(inputs, outputs, device=device)
            weights.fill(matrix.t(), f"{prefix}.{name}.weight")
            return matrix

        queries, keys = config.heads * head_dim, config.kv_heads * head_dim
        qkv = weights.empty(width, queries + 2 * keys, device=device)
        qkv_bias = weights.empty(queries + 2 * keys, device=device) if config.qkv_bias else None
        gate_up = weights.empty(width, 2 * inner, device=device)
        sizes = [queries, keys, keys]
        for part, shape in ((qkv.t(), (width,)), (qkv_bias, ())):
            if part is None:
                continue
            kind = "weight" if shape else "bias"
            for letter, own in zip("qkv", torch.split(part, sizes), strict=True):
                place = own if letter == "v" else _halves_apart(own, head_dim)
                weights.fill(place, f"{prefix}.self_attn.{letter}_proj.{kind}", len(own), *shape)
        qk_norm = None
        if config.qk_norm:
            heads = weights.empty(config.heads + config.kv_heads, head_dim, device=device)
            for letter, own in zip("qk", torch.split(heads, [config.heads, config.kv_heads]), strict=True):
                weights.fill(_halves_apart(own[0], head_dim), f"{prefix}.self_attn.{letter}_norm.weight", head_dim)
                own[1:] = own[0]
            qk_norm = RMSNorm(heads, config.rms_norm_eps)
        for name, matrix in zip(("gate", "up"), torch.split(gate_up.t(), inner), strict=True):
            weights.fill(matrix, f"{prefix}.mlp.{name}_proj.weight")
        return _Layer(
            device=device,
            input_norm=norm("input_layernorm"),
            qkv=self._product(qkv, qkv_bias),
            qk_norm=qk_norm,
            output=self._product(transposed("self_attn.o_proj", width, queries), None),
            post_norm=norm("post_attention_layernorm"),
            gate_up=self._product(gate_up, None),
            down=self._product(transposed("mlp.down_proj", width, inner), None),
        )


def _place_layers(
    config: DecoderConfig, weights: WeightSource, devices: Sequence[torch.device]
) -> tuple[torch.device, ...]:
    layers = [weights.numel(f"language_model.layers.{index}.") for index in range(config.layers)]
    head = weights.numel("lm_head.")
    return place_layers(weights.numel() - sum(layers) - head, layers, head, devices)


def _halves_apart(weight: Tensor, head_dim: int) -> Tensor:
    """View a query or key projection ``(outputs, ...)`` whose rotary pairs are neighbours as a checkpoint has it:
    ``(heads, 2, head_dim / 2, ...)``.

    Checkpoints pair dimension i of a head with i + head_dim / 2; side by side a pair is one complex number, and the
    rotation one product. Scores do not change, because queries and keys are reordered alike.
    """
    return torch.unflatten(weight, 0, (-1, head_dim // 2, 2)).transpose(1, 2)
