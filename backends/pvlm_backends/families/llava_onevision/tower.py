"""LLaVA-OneVision's frames to tokens: the SigLIP tower, the projector and the pooling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pvlm_protocols.backend import CheckpointError

from ...checkpoint import WeightSource
from .config import SiglipConfig
from .images import ImageLayout

_FRAMES_AT_ONCE = 16
"""A bound for the activations: with 729 patches of 1152, a frame's widest layer takes 12 MB in float32."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


@dataclass(frozen=True)
class _Layer:
    norm1: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


class SiglipTower:
    """SigLIP up to the deepest layer that feeds the projector. Raises CheckpointError for bad weights."""

    def __init__(self, config: SiglipConfig, weights: WeightSource) -> None:
        self.config = config
        self._activation = _activation(config.activation)
        width, patch = config.hidden_size, config.patch_size
        prefix = "vision_tower.embeddings"
        self._patch = weights.take(f"{prefix}.patch_embedding.weight", width, config.channels, patch, patch)
        self._patch_bias = weights.take(f"{prefix}.patch_embedding.bias", width)
        self._positions = weights.take(f"{prefix}.position_embedding.weight", config.grid**2, width)
        self._layers = [self._load_layer(weights, index) for index in range(max(config.feature_layers))]

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode ``(T, 3, H, W)`` to ``(T, patches, hidden_size * feature layers)``."""
        hidden = F.conv2d(pixels, self._patch, self._patch_bias, stride=self.config.patch_size)
        states = [hidden.flatten(2).transpose(1, 2) + self._positions]
        for layer in self._layers:
            states.append(self._run_layer(layer, states[-1]))
        return torch.cat([states[layer] for layer in self.config.feature_layers], dim=-1)

    def _run_layer(self, layer: _Layer, hidden: Tensor) -> Tensor:
        width, eps = (self.config.hidden_size,), self.config.layer_norm_eps
        qkv = F.linear(F.layer_norm(hidden, width, *layer.norm1, eps), *layer.qkv)
        query, key, value = torch.unflatten(qkv, -1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + F.linear(attended, *layer.output)
        widened = self._activation(F.linear(F.layer_norm(hidden, width, *layer.norm2, eps), *layer.up))
        return hidden + F.linear(widened, *layer.down)

    def _load_layer(self, weights: WeightSource, index: int) -> _Layer:
        width, inner = self.config.hidden_size, self.config.intermediate_size

        def take(name: str, *shape: int) -> tuple[Tensor, Tensor]:
            name = f"vision_tower.encoder.layers.{index}.{name}"
            return weights.take(f"{name}.weight", *shape), weights.take(f"{name}.bias", shape[0])

        qkv = weights.empty(3 * width, width), weights.empty(3 * width)
        for letter, matrix, bias in zip("qkv", *(torch.split(tensor, width) for tensor in qkv), strict=True):
            name = f"vision_tower.encoder.layers.{index}.self_attn.{letter}_proj"
            weights.fill(matrix, f"{name}.weight")
            weights.fill(bias, f"{name}.bias")
        return _Layer(
            norm1=take("layer_norm1", width),
            qkv=qkv,
            output=take("self_attn.out_proj", width, width),
            norm2=take("layer_norm2", width),
            up=take("mlp.fc1", inner, width),
            down=take("mlp.fc2", width, inner),
        )


class LlavaOnevisionTower:
    """SigLIP, projector, pooling and newline: the video's tokens. Raises CheckpointError for bad weights."""

    def __init__(self, config: SiglipConfig, out_size: int, weights: WeightSource) -> None:
        self._tower = SiglipTower(config, weights)
        self._activation = _activation(config.projector_activation)
        width, inner = out_size, config.hidden_size * len(config.feature_layers)

        def take(name: str, *shape: int) -> tuple[Tensor, Tensor | None]:
            name = f"multi_modal_projector.{name}"
            bias = weights.take(f"{name}.bias", shape[0]) if config.projector_bias else None
            return weights.take(f"{name}.weight", *shape), bias

        self._linear_1 = take("linear_1", width, inner)
        self._linear_2 = take("linear_2", width, width)
        self._newline = weights.take("image_newline", width)

    def encode(
        self, pixels: Tensor, on_progress: Callable[[], None], image_size: tuple[int, int] | None = None
    ) -> Tensor:
        """Encode normalised ``(T, 3, H, W)`` to ``(1, T * tokens per frame + 1, hidden_size)``; see `VideoTower`.

        Of an image, T counts pieces, and the tokens are those of `LlavaOnevisionProcessor`.
        """
        frames = []
        for part in torch.split(pixels, _FRAMES_AT_ONCE):
            on_progress()
            features = self._features(part)
            frames.append(self._pooled(features) if image_size is None else features)
        if image_size is None or len(pixels) == 1:
            return torch.cat([*(frame.flatten(0, -2) for frame in frames), self._newline[None]])[None]
        return self._packed(torch.cat(frames), self._tower.config.images.layout(image_size))[None]

    def _packed(self, features: Tensor, layout: ImageLayout) -> Tensor:
        """The whole image's features, and then those of the pieces ``(1 + pieces, patches, hidden_size)`` in rows."""
        grid = self._tower.config.grid
        pieces = torch.unflatten(features[1:].view(-1, grid, grid, features.shape[-1]), 0, layout.pieces)
        joined = pieces.transpose(1, 2).flatten(2, 3).flatten(0, 1)[layout.crop]
        if layout.shrinks:
            image = joined.permute(2, 0, 1)[None]
            joined = F.interpolate(image, size=layout.tokens, mode="bilinear")[0].permute(1, 2, 0)
        newlines = self._newline.expand(len(joined), 1, -1)
        return torch.cat([features[0], torch.cat([joined, newlines], dim=1).flatten(0, 1)])

    def _features(self, pixels: Tensor) -> Tensor:
        """``(T, patches, hidden_size)``."""
        features = F.linear(self._tower.forward(pixels), *self._linear_1)
        return F.linear(self._activation(features), *self._linear_2)

    def _pooled(self, features: Tensor) -> Tensor:
        """``(T * tokens per frame, hidden_size)``."""
        grid = self._tower.config.grid
        patches = torch.unflatten(features, 1, (grid, grid)).permute(0, 3, 1, 2)
        half = (grid + 1) // 2
        pooled = F.interpolate(patches, size=(half, half), mode="bilinear")
        return pooled.permute(0, 2, 3, 1).reshape(-1, features.shape[-1])


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"activation {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
