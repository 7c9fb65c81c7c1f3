"""Grows a trained model in depth.

Added layers start as the identity, so the grown model starts with the answers of the old one. A trained model has
little to learn, so they may stay next to nothing; `spread` gives them a share of the work.
"""

from __future__ import annotations

import copy
from itertools import pairwise

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


@torch.no_grad()
def spread(model: LlavaOnevisionForConditionalGeneration, depths: list[int], share: float) -> None:
    """Let layers that were added take over from the first model's layers, in place.

    ``depths``: the numbers of layers before each growth, the first model's first. Layers that training has left with
    next to nothing to say are those of the last growth: each becomes a copy of the layer of the first model before it,
    and writes ``share`` of what that one wrote, which writes so much less. The scores change a little.
    """
    layers = model.model.language_model.layers
    last = first = _firsts(depths[-1], len(layers))
    for before, after in reversed(list(pairwise(depths))):
        first = [first[place] for place in _firsts(before, after)]
    for place, following in zip(first, [*first[1:], len(layers)], strict=True):
        added = [other for other in range(place, following) if other not in last]
        if share * len(added) >= 1:
            raise ValueError(f"a share of {share} for each of {len(added)} layers leaves nothing: use a smaller share")
        weights = {name: weight.clone() for name, weight in layers[place].state_dict().items()}
        for other, factor in [*((other, share) for other in added), (place, 1 - share * len(added))]:
            layers[other].load_state_dict(
                {name: factor * weight if name in _WRITERS else weight for name, weight in weights.items()}
            )


def _firsts(before: int, after: int) -> list[int]:
    """Where the layers of a model lie after it has grown."""
    origin = sources(before, after)
    return [origin.index(source) for source in range(before)]


def _started(part: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if part in _WRITERS:
        return torch.zeros_like(weight)
    if weight.ndim < 2:
        return weight
    noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    return weight + _NOISE * weight.std() * noise
