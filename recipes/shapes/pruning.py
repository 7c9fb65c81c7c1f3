"""Scores of video tokens side by side: how often the draft agrees with the target when it sees the best by each.

Teacher forcing: the draft reads the target's greedy answer and names its first choice at every position. That is the
acceptance rate of greedy decoding, but for the tokens that are never drafted, at a tenth of the cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from pvlm.config import bundled
from pvlm.speculation.masks import kept_count
from pvlm.speculation.pruning import load_pruner, temporal_novelty, visual_text_gain
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import Backend, EarlyStates, LoadOptions, Prompt

from .clips import read_clip, write_clip
from .rendering import render
from .world import NUMBERS, Clip, sample_clip

RATIOS = (0.5, 0.75, 0.9, 0.95)
LAYERS = (1, 2, 3, 4)
SHOWN_RATIO = 0.9
SIDE = 4  # tokens in a row and in a column of a frame
MAX_ANSWER_TOKENS = 390

Choice = Callable[["Seen", int], Tensor]
"""From a prompt, and how many tokens to keep, to a mask, bool ``(m,)``."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A prompt, the target's answer to it, and its early states by layer; ``seed`` is the clip's.

    ``things``: bool ``(m,)``, the video tokens in whose part of the frame there is something.
    """

    seed: int
    prompt: Prompt
    things: Tensor
    answer: list[int]
    early: dict[int, EarlyStates]

    @property
    def m(self) -> int:
        """Number of video tokens."""
        return len(self.early[1].video_first)


# ---- scores -----------------------------------------------------------------------------------------------------


def gain(layer: int, *, since: int = 0, centred: bool = False, last: bool = False) -> Callable[[Seen], Tensor]:
    """UV-Prune's, or the change since a later layer, without the mean of the states, or for the last word alone."""

    def score(seen: Seen) -> Tensor:
        before, after = seen.early[layer], seen.early[layer]
        if since:
            before = seen.early[since]
        first = (before.video_last, before.question_last) if since else (after.video_first, after.question_first)
        states = [*first, after.video_last, after.question_last]
        if last:
            states[1], states[3] = states[1][-1:], states[3][-1:]
        if centred:
            states = [state - state.mean(dim=0) for state in states]
        return visual_text_gain(EarlyStates(layer, states[0], states[2], states[1], states[3]))

    return score


def least(score: Callable[[Seen], Tensor]) -> Callable[[Seen], Tensor]:
    """The other way round."""
    return lambda seen: -score(seen)


def alignment(seen: Seen, layer: int = 0) -> Tensor:
    """Mean cosine with the question's tokens, of the decoder's input or after a layer."""
    states = seen.early[max(1, layer)]
    video, question = states.video_last, states.question_last
    if layer == 0:
        video, question = states.video_first, states.question_first
    return normalize(video, dim=-1) @ normalize(question, dim=-1).mean(dim=0)


def change(seen: Seen) -> Tensor:
    """How far the first two layers turn a token."""
    return 1 - cosine_similarity(seen.early[2].video_first, seen.early[2].video_last, dim=-1)


def oddity(seen: Seen) -> Tensor:
    """How little a token is like the mean of all."""
    states = normalize(seen.early[1].video_first, dim=-1)
    return 1 - states @ normalize(states.mean(dim=0), dim=0)


def attention(layer: int) -> Callable[[Seen], Tensor]:
    """What the question's tokens give in a layer."""
    return lambda seen: attention_of(seen.early[layer])


def attention_of(states: EarlyStates) -> Tensor:
    """Early attention that was asked for."""
    assert states.attention is not None
    return states.attention


def novelty(seen: Seen) -> Tensor:
    """What changed since the frame before."""
    return temporal_novelty(seen.early[1])


# ---- rules ------------------------------------------------------------------------------------------------------


def ranked(score: Tensor) -> Tensor:
    return score.sort(descending=True, stable=True).indices


def evenly(m: int, keep: int) -> Tensor:
    return (2 * torch.arange(keep) + 1) * m // (2 * max(1, keep))


def filled(first: Tensor, keep: int, m: int, rest: Tensor | None = None) -> Tensor:
    """``first``, and the other places evenly, or by the score ``rest``."""
    mask = torch.zeros(m, dtype=torch.bool)
    mask[first] = True
    left = (~mask).nonzero()[:, 0]
    count = keep - len(first)
    mask[left[evenly(len(left), count) if rest is None else ranked(rest[left])[:count]]] = True
    return mask


def best(score: Callable[[Seen], Tensor], seen: Seen, keep: int, share: float = 1.0) -> Tensor:
    """The best, for a ``share`` of the places; the others evenly."""
    return filled(ranked(score(seen))[: round(keep * share)], keep, seen.m)


def best_of_each_frame(score: Callable[[Seen], Tensor], seen: Seen, keep: int) -> Tensor:
    """As many of each frame, but for one."""
    frames = seen.early[1].frames
    by_frame = score(seen).view(frames, -1)
    counts = torch.full((frames,), keep // frames)
    counts[evenly(frames, keep % frames)] += 1
    mask = torch.zeros_like(by_frame, dtype=torch.bool)
    for frame, count in enumerate(counts.tolist()):
        mask[frame, ranked(by_frame[frame])[:count]] = True
    return mask.flatten()


def mass(
    score: Callable[[Seen], Tensor],
    share: float,
    seen: Seen,
    keep: int,
    rest: Callable[[Seen], Tensor] | None = None,
) -> Tensor:
    """The best that hold a share of the score; the others evenly, or by another score."""
    scores = score(seen)
    order = ranked(scores)
    held = scores[order].double().cumsum(dim=0)
    first = order[: min(keep, int((held < share * held[-1]).sum()) + 1)]
    return filled(first, keep, seen.m, None if rest is None else rest(seen))


def by_name(name: str, layer: int, seen: Seen, keep: int) -> Tensor:
    """A pruner of pvlm."""
    return load_pruner(name).select(seen.m, keep, seen.early[layer], seen.seed)


CHOICES: dict[str, Choice] = {
    "random": partial(by_name, "random", 1),
    "uniform": partial(by_name, "uniform", 1),
    **{f"uv, layer {layer}": partial(by_name, "uv", layer) for layer in LAYERS},
    "uv, last question token": partial(best, gain(2, last=True)),
    "uv, centred": partial(best, gain(2, centred=True)),
    "uv, the same number in each frame": partial(best_of_each_frame, gain(2)),
    "uv for half of the places": partial(best, gain(2), share=0.5),
    "gain from layer 1 to 2": partial(best, gain(2, since=1)),
    "least gain": partial(best, least(gain(2))),
    "least gain for half of the places": partial(best, least(gain(2)), share=0.5),
    "alignment at the input": partial(best, alignment),
    "change from the input to layer 2": partial(best, change),
    "unlike the mean token": partial(best, oddity),
    "attention, layer 2": partial(by_name, "attention", 2),
    "attention, layer 3": partial(by_name, "attention", 3),
    "attention, layer 3, each frame": partial(best_of_each_frame, attention(3)),
    "specvlm, layer 2": partial(by_name, "specvlm", 2),
    "specvlm, layer 3": partial(by_name, "specvlm", 3),
    "novelty alone": partial(best, novelty),
    "novelty for 40% of its mass": partial(mass, novelty, 0.4),
    "novelty for 60% of its mass": partial(by_name, "novelty", 1),
    "novelty for 80% of its mass": partial(mass, novelty, 0.8),
    "novelty for 60%, then attention, layer 3": partial(mass, novelty, 0.6, rest=attention(3)),
}


# ---- measuring --------------------------------------------------------------------------------------------------


def load(model: str) -> Backend:
    """A checkpoint, on one thread."""
    return TorchBackend.load(LoadOptions(model, threads=1))


def prompts(target: Backend, clips: int, seed: int, kind: str) -> Iterator[Seen]:
    """Clips of four to eight scenes of eight frames, with the target's answer to a question of a kind each."""
    processor = TorchBackend.processor(bundled("target"))
    with TemporaryDirectory() as folder:
        for number in range(seed, seed + clips):
            scenes = 4 + number % 5
            clip = sample_clip(random.Random(number), scenes, 8 * scenes)
            path = Path(folder) / f"{number}.mp4"
            write_clip(path, render(clip))
            asked = (
                f"What happens in scene {NUMBERS[1 + number // 5 % 4]}?" if kind == "scene" else "Describe the video."
            )
            prompt = Prompt(asked, processor.resize(read_clip(path)))
            yield Seen(number, prompt, things(clip), answer(target, prompt), early_states(target, prompt))


def things(clip: Clip) -> Tensor:
    """bool ``(m,)``: whether a thing's circle reaches into a token's square of the frame."""
    touched = torch.zeros(clip.frames, SIDE, SIDE, dtype=torch.bool)
    for frame, state in enumerate(clip.states):
        for thing in state.things:
            if thing.visible:
                edges = torch.arange(SIDE + 1) / SIDE
                across = (edges[:-1] - thing.x).clamp(min=0) + (thing.x - edges[1:]).clamp(min=0)
                down = (edges[:-1] - thing.y).clamp(min=0) + (thing.y - edges[1:]).clamp(min=0)
                touched[frame] |= torch.hypot(down[:, None], across) < thing.radius
    return touched.flatten()


def answer(target: Backend, prompt: Prompt) -> list[int]:
    """Greedy."""
    session = target.open(prompt, MAX_ANSWER_TOKENS)
    tokens = [int(session.prefill().argmax())]
    while tokens[-1] not in target.info.end_token_ids and len(tokens) < MAX_ANSWER_TOKENS:
        tokens.append(int(session.extend(tokens[-1:])[0].argmax()))
    return tokens


def early_states(target: Backend, prompt: Prompt) -> dict[int, EarlyStates]:
    """By layer."""
    found: list[EarlyStates] = []
    for layer in LAYERS:
        session = target.open(prompt, 1)
        session.prefill(early_layer=layer, on_early_layer=found.append, early_attention=True)
    return dict(zip(LAYERS, found, strict=True))


def hits(draft: Backend, seen: Seen, mask: Tensor) -> Tensor:
    """bool: at which positions of the answer the draft's first choice is the target's token."""
    session = draft.open(seen.prompt, len(seen.answer))
    first = session.prefill(mask)[None].clone()
    rows = [first, session.extend(seen.answer[:-1])] if len(seen.answer) > 1 else [first]
    session.close()
    return torch.cat(rows).argmax(dim=-1) == torch.tensor(seen.answer)


@dataclass(eq=False)
class Comparison:
    """``agreement``: by choice and kind of question, at each of `RATIOS`. ``on_things``: by choice, the share of the
    tokens kept at `SHOWN_RATIO` in whose square there is something. ``alignments``: of tokens with something in their
    square and of plain ones, at the input and after each of `LAYERS`. The last two over descriptions.
    """

    agreement: dict[str, dict[str, list[float]]]
    on_things: dict[str, float]
    alignments: dict[bool, list[float]]


def compare(target: Backend, draft: Backend, clips: int, seed: int, names: list[str] | None = None) -> Comparison:
    """Over two prompts a clip: its description, and a question about one scene."""
    chosen = {name: choice for name, choice in CHOICES.items() if names is None or name in names}
    result = Comparison({name: {} for name in chosen}, {}, {})
    for kind in ("describe", "scene"):
        counted: dict[tuple[str, float], list[Tensor]] = {(name, ratio): [] for name in chosen for ratio in RATIOS}
        touched: dict[str, list[float]] = {name: [] for name in chosen}
        aligned: dict[bool, list[Tensor]] = {True: [], False: []}
        for seen in prompts(target, clips, seed, kind):
            for (name, ratio), collected in counted.items():
                mask = chosen[name](seen, kept_count(seen.m, ratio))
                collected.append(hits(draft, seen, mask))
                if ratio == SHOWN_RATIO:
                    touched[name].append(float(seen.things[mask].float().mean()))
            scores = torch.stack([alignment(seen, layer) for layer in (0, *LAYERS)])
            for something, collected in aligned.items():
                collected.append(scores[:, seen.things == something].mean(dim=1))
        for name in chosen:
            result.agreement[name][kind] = [float(torch.cat(counted[name, ratio]).float().mean()) for ratio in RATIOS]
        if kind == "describe":
            result.on_things = {name: sum(shares) / len(shares) for name, shares in touched.items()}
            result.alignments = {key: torch.stack(scores).mean(dim=0).tolist() for key, scores in aligned.items()}
    return result


def report(result: Comparison) -> None:
    """A Markdown table, and the alignments below it."""
    print(
        "| chosen by | describe, mean | "
        + " | ".join(f"{ratio:g}" for ratio in RATIOS)
        + " | scene, mean | on things |"
    )
    print("|---" * (len(RATIOS) + 4) + "|")
    for name, kinds in result.agreement.items():
        describe, scene = kinds["describe"], kinds["scene"]
        cells = [sum(describe) / len(describe), *describe, sum(scene) / len(scene), result.on_things[name]]
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    print()
    for something, means in result.alignments.items():
        what = "with something in it" if something else "plain"
        print(f"alignment of tokens, {what}, at the input and after layers 1 to {LAYERS[-1]}: "
              + ", ".join(f"{mean:.3f}" for mean in means))  # fmt: skip
