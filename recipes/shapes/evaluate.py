"""Measures a pair on unseen clips, through the whole path: rendered, encoded to mp4, decoded.

``measure`` asks any answerer, so that other engines can be measured the same way: an answerer
takes the path of an mp4 file and a question, and returns the answer's text.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from .clips import read_clip, write_clip
from .packing import Packer, choose_questions
from .pair import FRAME_SIZE, video_tokens
from .rendering import render
from .vision import normalized
from .world import KINDS, Clip, Question, sample_clip

Answerer = Callable[[Path, str], str]


@dataclass(frozen=True)
class Sample:
    """An mp4 file with its truth and the questions to ask about it."""

    clip: Clip
    path: Path
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Result:
    """One question, the true answer and what was said."""

    sample: Sample
    question: Question
    said: str

    @property
    def scenes(self) -> int:
        """The number of scenes of the clip."""
        return len(self.sample.clip.scenes)

    @property
    def exact(self) -> bool:
        """Whether the answer is right to the letter."""
        return self.said == self.question.answer


def write_samples(folder: Path, scenes: Iterable[int], clips: int, asked: int, seed: int) -> list[Sample]:
    """Write ``clips`` mp4 files for each number of scenes; each gets a description's question
    and ``asked - 1`` others, every kind equally likely.
    """
    samples = []
    for count in scenes:
        rng = random.Random(seed + count)
        for number in range(clips):
            clip = sample_clip(rng, count)
            path = folder / f"{count:02d}-scenes-{number:04d}.mp4"
            write_clip(path, render(clip))
            samples.append(Sample(clip, path, tuple(choose_questions(clip, rng, asked))))
    return samples


def measure(answer: Answerer, samples: Sequence[Sample]) -> list[Result]:
    """Ask everything."""
    return [
        Result(sample, question, answer(sample.path, question.text))
        for sample in samples
        for question in sample.questions
    ]


def load_frames(path: Path) -> torch.Tensor:
    """Decode a file and resize its frames as the preprocessors' settings say."""
    frames = torch.from_numpy(read_clip(path)).permute(0, 3, 1, 2).float()
    resized = F.interpolate(frames, (FRAME_SIZE, FRAME_SIZE), mode="bicubic", antialias=True)
    return normalized(resized.round_().clamp_(0, 255).permute(0, 2, 3, 1))


class TeacherForced:
    """A model's scores along given answers, by the modules of transformers; a video is read once in a row."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.packer = Packer(AutoTokenizer.from_pretrained(folder))
        self._read: tuple[Path | None, Any, int] = (None, None, 0)

    @torch.no_grad()
    def scores(self, path: Path, ids: list[int]) -> torch.Tensor:
        """The scores after each of ``ids``, which follow the video."""
        cache, start = self._video_cache(path)
        hidden = self.model.model.language_model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.arange(start, start + len(ids))[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.model.lm_head(hidden[0])

    @torch.no_grad()
    def _video_cache(self, path: Path) -> tuple[Any, int]:
        """The decoder's cache after the video, and its length."""
        if self._read[0] != path:
            tokens = video_tokens(self.model, load_frames(path)[None])
            embed = self.model.model.language_model.embed_tokens
            before, after = (embed(torch.tensor([ids])) for ids in (self.packer.before, self.packer.after))
            embeds = torch.cat([before, tokens, after], dim=1)
            output = self.model.model.language_model(inputs_embeds=embeds, use_cache=True)
            self._read = (path, output.past_key_values, embeds.shape[1])
        return copy.deepcopy(self._read[1]), self._read[2]


def report(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Print exact answers by kind and number of scenes, and return them."""
    lengths = sorted({result.scenes for result in results})
    groups: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for result in results:
        for kind in (result.question.kind, "all", "all but describe"):
            if kind != "all but describe" or result.question.kind != "describe":
                groups[kind, result.scenes].append(result.exact)
    print("exact answers".ljust(18), *(f"{n} scene{'s' * (n > 1)}".rjust(14) for n in lengths))
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for kind in (*KINDS, "all but describe", "all"):
        cells = []
        figures[kind] = {}
        for length in lengths:
            exact = groups[kind, length]
            share = sum(exact) / len(exact) if exact else float("nan")
            cells.append((f"{100 * share:.1f}% of {len(exact)}" if exact else "-").rjust(14))
            figures[kind][str(length)] = {"exact": share, "asked": len(exact)}
        print(kind.ljust(18), *cells)
    return figures


def agreement(draft: TeacherForced, results: Sequence[Result]) -> dict[str, float]:
    """Along the target's own answers, how often the draft's first choice is the target's token."""
    packer = draft.packer
    same: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        asked = [*packer.encode(result.question.text), *packer.turn]
        said = [*packer.encode(result.said), packer.end]
        scores = draft.scores(result.sample.path, [*asked, *said[:-1]])[len(asked) - 1 :]
        hits = (scores.argmax(-1) == torch.tensor(said)).tolist()
        describes = result.question.kind == "describe"
        for key in (f"{result.scenes} scenes", "describe" if describes else "other", "all"):
            same[key] += hits
    return {key: sum(hits) / len(hits) for key, hits in same.items()}
