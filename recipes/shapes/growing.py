"""Grows a trained model in depth.

Added layers start as the identity, so the grown model starts with the answers of the old one.
"""

from __future__ import annotations

import copy

import torch
from transformers import LlavaOnevisionForConditionalGeneration

_LAYER = "model.language_model.layers."
_WRITERS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # the only weights that write to the residual stream
_NOISE = 0.5  # relative to the standard deviation of the copied matrix


def sources(before: int, after: int) -> list[int]:
    """The old layer that each layer of the grown model comes from.

    The first layer with a source is the old layer itself; the others are added after it.
    """
    if after < before:
        raise ValueError(f"a model of {before} layers cannot grow to {after}: ask for more layers")
    return [place * before // after for place in range(after)]


@torch.no_grad()
def grown(
    model: LlavaOnevisionForConditionalGeneration, layers: int, seed: int = 0
) -> LlavaOnevisionForConditionalGeneration:
    """A copy of a model with ``layers`` decoder layers and the same scores.

    An added layer copies its source, but writes nothing yet: its output projections are zero.
    Noise on the other matrices lets copies of one layer learn different things.
    """
    config = copy.deepcopy(model.config)
    text = config.text_config
    origin = sources(text.num_hidden_layers, layers)
    text.num_hidden_layers = layers
    text.layer_types = ["full_attention"] * layers
    generator = torch.Generator().manual_seed(seed)
    old = model.state_dict()
    weights = {name: weight for name, weight in old.items() if not name.startswith(_LAYER)}
    for place, source in enumerate(origin):
        added = place > 0 and origin[place - 1] == source
        prefix = f"{_LAYER}{source}."
        for name, weight in old.items():
            if name.startswith(prefix):
                part = name.removeprefix(prefix)
                weights[f"{_LAYER}{place}.{part}"] = _started(part, weight, generator) if added else weight
    result = LlavaOnevisionForConditionalGeneration(config).to(model.dtype)
    result.load_state_dict(weights)
    result.generation_config = copy.deepcopy(model.generation_config)
    return result


def _started(part: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if part in _WRITERS:
        return torch.zeros_like(weight)
    if weight.ndim < 2:
        return weight
    noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    return weight + _NOISE * weight.std() * noise
