"""Pruners: the choice of the draft's video tokens. Registered under the entry-point group ``pvlm.pruners``."""

from __future__ import annotations

from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pvlm.errors import ModelError
from pvlm.plugins import load_plugin
from pvlm.speculation.randomness import hashed_words
from pvlm_protocols.backend import EarlyStates

__all__ = [
    "ENTRY_POINT_GROUP",
    "AttentionPruner",
    "NonePruner",
    "NoveltyPruner",
    "Pruner",
    "RandomPruner",
    "SpecVLMPruner",
    "UVPruner",
    "UniformPruner",
    "default_early_layer",
    "load_pruner",
    "select_tokens",
    "temporal_novelty",
    "visual_text_gain",
]

ENTRY_POINT_GROUP: Final = "pvlm.pruners"


class Pruner(Protocol):
    """A rule that chooses video tokens. A plug-in is a class without constructor arguments."""

    name: ClassVar[str]
    needs_states: ClassVar[bool]
    """Whether `select` needs the target's early states. If not, the mask is ready before the prefill starts."""
    needs_attention: ClassVar[bool]
    """Whether the states must include the attention of the early layer, which costs some time. Only with
    ``needs_states``.
    """

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        """bool ``(m,)`` on the CPU with ``keep`` of the ``m`` video tokens set. The same arguments, the same mask."""
        ...


class UVPruner:
    """Unbiased verifier-guided pruning (ParallelVLM, 2603.19610): keep the tokens whose alignment with the question
    grew most.

    See `visual_text_gain`; of equal gains the lower index is kept. A prompt without question tokens has no alignment to
    compare, and is thinned evenly.
    """

    name: ClassVar[str] = "uv"
    needs_states: ClassVar[bool] = True
    needs_attention: ClassVar[bool] = False

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        _check_counts(m, keep)
        if states is None:
            raise ValueError("the 'uv' pruner needs the target's early states")
        if len(states.video_first) != m or len(states.video_last) != m:
            raise ValueError(
                f"the early states hold {len(states.video_first)} and {len(states.video_last)} video tokens, not {m}"
            )
        if len(states.question_first) == 0:
            return UniformPruner().select(m, keep, None, seed)
        return _mask_of(_best_first(visual_text_gain(states))[:keep], m)


def visual_text_gain(states: EarlyStates) -> Tensor:
    """``dS_i``, float32 ``(m,)``: how much video token i's alignment with the question grows from layer 0 to layer L.

    The paper sums, over question tokens j and layers l, the change of ``cos(V_i, X_j)``. The sum over layers
    telescopes, and a sum of cosines is one product of unit vectors (hats), so two layers and two matrix-vector products
    do: ``dS_i = V^_i(L) . sum_j X^_j(L) - V^_i(0) . sum_j X^_j(0)``. Cosines in float32; a zero vector has cosine 0.
    """
    return _alignment(states.video_last, states.question_last) - _alignment(states.video_first, states.question_first)


def _alignment(video: Tensor, question: Tensor) -> Tensor:
    return normalize(video.float(), dim=-1) @ normalize(question.float(), dim=-1).sum(dim=0)


class AttentionPruner:
    """Keep the tokens that the question attends to most in the early layer; of equal ones the lower index is kept.

    UV-Prune is compared with this: attention depends on places in the prompt as well as on content. A prompt without
    question tokens is thinned evenly.
    """

    name: ClassVar[str] = "attention"
    needs_states: ClassVar[bool] = True
    needs_attention: ClassVar[bool] = True

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        attention = _attention(self.name, m, keep, states)
        if not attention.any():
            return UniformPruner().select(m, keep, None, seed)
        return _mask_of(_best_first(attention)[:keep], m)


class SpecVLMPruner:
    """Verifier-guided pruning of SpecVLM (2508.16201): attention for a part of the places, the rest evenly.

    Tokens are taken in order of attention until they have `MASS` of the video's attention, or fill all places. The
    other places are spread evenly over the remaining tokens.
    """

    name: ClassVar[str] = "specvlm"
    needs_states: ClassVar[bool] = True
    needs_attention: ClassVar[bool] = True

    MASS: ClassVar[float] = 0.4

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        return _mass_first(_attention(self.name, m, keep, states), keep, self.MASS)


class NoveltyPruner:
    """Keep tokens that are new in their frame, and spread the rest evenly. The question is ignored.

    SpecVLM's rule with another weight: tokens are taken in order of `temporal_novelty` until they have `MASS` of it. A
    video whose frames are unknown is thinned evenly.
    """

    name: ClassVar[str] = "novelty"
    needs_states: ClassVar[bool] = True
    needs_attention: ClassVar[bool] = False

    MASS: ClassVar[float] = 0.6

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        _check_counts(m, keep)
        if states is None:
            raise ValueError("the 'novelty' pruner needs the target's early states")
        if len(states.video_first) != m:
            raise ValueError(f"the early states hold {len(states.video_first)} video tokens, not {m}")
        if all(moments == 1 for moments, _ in _runs(states)):
            return UniformPruner().select(m, keep, None, seed)
        return _mass_first(temporal_novelty(states).nan_to_num(nan=0.0).cpu(), keep, self.MASS)


def temporal_novelty(states: EarlyStates) -> Tensor:
    """``1 - cos`` of each video token of the decoder's input and the token at the same place a frame earlier.

    float32 ``(m,)``, from 0 to 2. In the first frame of each video it is 1, as for unrelated tokens.
    """
    novelty = []
    normal = normalize(states.video_first.float(), dim=-1)
    runs = _runs(states)
    for video, (moments, _) in zip(torch.split(normal, [t * n for t, n in runs]), runs, strict=True):
        frames = torch.unflatten(video, 0, (moments, -1))
        likeness = torch.zeros(frames.shape[:2], device=frames.device)
        likeness[1:] = (frames[1:] * frames[:-1]).sum(dim=-1)
        novelty.append((1 - likeness).clamp(min=0).flatten())
    return torch.cat(novelty)


def _runs(states: EarlyStates) -> tuple[tuple[int, int], ...]:
    """The moments of each video, and the tokens of each moment."""
    return states.runs or ((states.frames, len(states.video_first) // states.frames),)


def _mass_first(weight: Tensor, keep: int, share: float) -> Tensor:
    """bool ``(m,)``: the fewest tokens with ``share`` of the weight, at most ``keep``; the rest of ``keep`` evenly over
    the others.
    """
    order = _best_first(weight)
    mass = weight[order].double().cumsum(dim=0)
    guided = 0
    if weight.any():
        guided = min(keep, int((mass < share * mass[-1]).sum()) + 1)
    mask = _mask_of(order[:guided], len(weight))
    left = (~mask).nonzero()[:, 0]
    mask[left[_evenly(len(left), keep - guided)]] = True
    return mask


def _attention(name: str, m: int, keep: int, states: EarlyStates | None) -> Tensor:
    """float32 ``(m,)`` on the CPU: the attention of the question, NaN as 0. Raises ValueError without attention."""
    _check_counts(m, keep)
    if states is None or states.attention is None:
        raise ValueError(f"the '{name}' pruner needs the attention of the target's early layer")
    if states.attention.shape != (m,):
        raise ValueError(f"the early states have the attention of {len(states.attention)} video tokens, not {m}")
    return states.attention.float().nan_to_num(nan=0.0).cpu()


class UniformPruner:
    """Evenly spread over the video: token ``floor((i + 1/2) * m / keep)`` for each i below ``keep``."""

    name: ClassVar[str] = "uniform"
    needs_states: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        _check_counts(m, keep)
        return _mask_of(_evenly(m, keep), m)


class RandomPruner:
    """A random subset: the tokens with the smallest hashes. It depends on ``seed`` and m alone, in every version of
    torch."""

    name: ClassVar[str] = "random"
    needs_states: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        _check_counts(m, keep)
        words = hashed_words(seed, [0], torch.arange(m))[0]
        return _mask_of(words.argsort()[:keep], m)


class NonePruner:
    """Keep everything; ``keep`` is ignored."""

    name: ClassVar[str] = "none"
    needs_states: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        return torch.ones(m, dtype=torch.bool)


def load_pruner(name: str) -> Pruner:
    """The pruner registered as ``name``. Raises ConfigError for an unknown name; the error lists the known ones.

    Raises ModelError if its class fails to load.
    """
    pruner: Pruner = load_plugin(ENTRY_POINT_GROUP, name)()
    return pruner


def select_tokens(pruner: Pruner, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
    """The mask of a pruner. Raises ModelError for one that is not bool ``(m,)`` with ``keep`` tokens set."""
    mask: object = pruner.select(m, keep, states, seed)
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == (m,) and int(mask.sum()) == keep:
        return mask.cpu()
    given = type(mask).__name__
    if isinstance(mask, Tensor):
        given = f"{mask.dtype} {tuple(mask.shape)} with {int(mask.count_nonzero())} set"
    raise ModelError(f"pruner '{pruner.name}' gave {given}: a mask must be bool ({m},) with {keep} set")


def default_early_layer(layers: int) -> int:
    """The layer whose output is compared with the input, for a target of ``layers`` layers: a quarter of the depth.

    The mask should come early, so that the draft's prefill ends before the target's. (In the paper even an unpruned
    draft takes only 18% of the target's time, 7.9 s of 44.2 s, so three quarters of the depth are enough.) But not too
    early: attention mixes text and video only layer by layer, so the first layers have little information. At least 1,
    and never the last layer unless there is only one. The paper does not give its layer.
    """
    if layers < 1:
        raise ValueError(f"a model has at least 1 layer, not {layers}")
    return max(1, min(layers - 1, (layers + 2) // 4))


def _check_counts(m: int, keep: int) -> None:
    if not 0 <= keep <= m or (keep == 0 and m > 0):
        raise ValueError(f"cannot keep {keep} of {m} video tokens")


def _best_first(score: Tensor) -> Tensor:
    """int64 ``(m,)`` on the CPU: indices by falling score, equal ones by rising index, NaN last."""
    score = score.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return score.sort(descending=True, stable=True).indices.cpu()


def _evenly(m: int, keep: int) -> Tensor:
    """int64 ``(keep,)``: indices below m at equal distances."""
    return (2 * torch.arange(keep) + 1) * m // (2 * max(1, keep))


def _mask_of(kept: Tensor, m: int) -> Tensor:
    mask = torch.zeros(m, dtype=torch.bool)
    mask[kept] = True
    return mask
