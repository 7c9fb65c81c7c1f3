"""Packs many questions after one video: every block of question and answer sees the video and
itself only, and its positions start anew where the video ends, as if it were asked alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from .attention import Layout
from .frame_heads import NAME_PARTS, name_labels
from .pair import FRAME_SIZE, TOKENS_PER_FRAME
from .rendering import render
from .tokenizer import END, START, VIDEO
from .vision import normalized
from .world import Clip, Question, questions

_FILLER_TEXT = (
    "The the is are of in at from has there There object objects scene scenes background "
    "video else happens starts shows on first be"
)
FILLERS = frozenset(_FILLER_TEXT.split())
FILLER_WEIGHT = 0.2
# One word decides these answers, which a description's many words would drown out.
HARD_KINDS = frozenset({"which_scene", "color", "yes_no"})
HARD_WEIGHT = 5.0
_TELL_SCENES = frozenset({"describe", "scene"})
# Here a name in the answer is a step on the way to the next one; what else is true of the thing is in the way.
_GO_ON = frozenset({"list", "last"})
# In training the kinds that are hard are asked more often.
KIND_WEIGHTS = {
    "which_scene": 4.0,
    "color": 4.0,
    "yes_no": 4.0,
    "action": 3.0,
    "scene": 3.0,
    "list": 5.0,
    "last": 2.0,
    "place": 2.0,
}
_IGNORED = -1


@dataclass
class Asked:
    """One block: which clip and question it is, and where its answer is in the batch."""

    scenes: int
    question: Question
    positions: slice


@dataclass
class Batch:
    """Packed clips. ``answers`` lists (row, column) of the tokens that predict answer tokens.

    ``names`` lists those that end a thing's name in a question or answer, where the context does not
    say which scene it is in and the answer does not go on to other things; ``name_labels`` says what is
    true of the thing.
    """

    clips: list[Clip]
    pixels: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    layout: Layout
    video_at: torch.Tensor
    newline_at: torch.Tensor
    answers: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    asked: list[Asked]
    names: torch.Tensor
    name_labels: torch.Tensor


class Packer:
    """Turns clips and questions into batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.video, self.end = tokenizer.convert_tokens_to_ids([VIDEO, END])
        self.before = self.encode(f"{START}user\n")
        self.after = self.encode("\n")
        self.turn = self.encode(f"{END}\n{START}assistant\n")
        self.weight = torch.tensor(
            [FILLER_WEIGHT if tokenizer.decode([i]).strip() in FILLERS else 1.0 for i in range(len(tokenizer))]
        )

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def pack(self, clips: list[Clip], asked: list[list[Question]], noise: random.Random | None) -> Batch:
        """One row per clip, holding its video and then each of its questions with the answer.

        All clips must have the same number of frames.
        """
        if len({clip.frames for clip in clips}) != 1:
            raise ValueError("the clips of a batch must have the same number of frames")
        rows: list[list[int]] = []
        positions: list[list[int]] = []
        blocks: list[list[int]] = []
        video_at: list[tuple[int, int]] = []
        newline_at: list[tuple[int, int]] = []
        answers: list[tuple[int, int]] = []
        labels: list[int] = []
        hard: list[bool] = []
        names: list[tuple[int, int]] = []
        referents: list[list[int]] = []
        found: list[Asked] = []
        for row, (clip, wanted) in enumerate(zip(clips, asked, strict=True)):
            tokens = clip.frames * TOKENS_PER_FRAME
            first = len(self.before)
            ids = [*self.before, *([self.video] * (tokens + 1)), *self.after]
            video_at += [(row, first + i) for i in range(tokens)]
            newline_at.append((row, first + tokens))
            start = len(ids)
            known = {tuple(self.encode(f" {name}")): labels for name, labels in name_labels(clip).items()}
            places, block = list(range(start)), [0] * start
            for number, question in enumerate(wanted, 1):
                asking = [*self.encode(question.text), *self.turn]
                answer = [*self.encode(question.answer), self.end]
                begin = len(ids) + len(asking) - 1
                taken = slice(len(labels), len(labels) + len(answer))
                found.append(Asked(len(clip.scenes), question, taken))
                answers += [(row, begin + i) for i in range(len(answer))]
                labels += answer
                hard += [question.kind in HARD_KINDS] * len(answer)
                piece = [*asking, *answer[:-1]]
                read = len(asking) if question.kind in _GO_ON else len(piece)
                for end in range(2, read + 1) if question.kind not in _TELL_SCENES else ():
                    if (referent := known.get(tuple(piece[end - 2 : end]))) is not None:
                        names.append((row, len(ids) + end - 1))
                        referents.append(referent)
                ids += piece
                places += range(start, start + len(piece))
                block += [number] * len(piece)
            rows.append(ids)
            positions.append(places)
            blocks.append(block)
        label_ids = torch.tensor(labels)
        return Batch(
            clips=clips,
            pixels=normalized_clips(clips, noise),
            ids=_padded(rows, self.tokenizer.pad_token_id),
            positions=_padded(positions, 0),
            layout=Layout.of(_padded(blocks, _IGNORED), prefix=start),
            video_at=torch.tensor(video_at),
            newline_at=torch.tensor(newline_at),
            answers=torch.tensor(answers),
            labels=label_ids,
            weights=self.weight[label_ids] * torch.where(torch.tensor(hard), HARD_WEIGHT, 1.0),
            asked=found,
            names=torch.tensor(names, dtype=torch.long).reshape(-1, 2),
            name_labels=torch.tensor(referents, dtype=torch.long).reshape(-1, NAME_PARTS),
        )


def normalized_clips(clips: list[Clip], noise: random.Random | None) -> torch.Tensor:
    """The pixels of all frames of all clips, one after the other; each clip has its own noise."""
    return torch.cat([normalized(render(clip, FRAME_SIZE), noise) for clip in clips])


def _padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *([fill] * (length - len(row)))] for row in rows])


def draw_questions(clip: Clip, rng: random.Random, count: int) -> list[Question]:
    """The description and up to ``count - 1`` other questions; hard kinds are drawn more often."""
    by_kind = _questions_by_kind(clip, rng)
    chosen = by_kind.pop("describe")
    while len(chosen) < count and by_kind:
        kind = rng.choices(list(by_kind), [KIND_WEIGHTS.get(kind, 1.0) for kind in by_kind])[0]
        chosen.append(by_kind[kind].pop())
        if not by_kind[kind]:
            del by_kind[kind]
    return chosen


def choose_questions(clip: Clip, rng: random.Random, count: int) -> list[Question]:
    """The description and ``count - 1`` other questions of as many kinds as possible."""
    by_kind = _questions_by_kind(clip, rng)
    chosen = by_kind.pop("describe")
    kinds: list[str] = []
    while len(chosen) < count and by_kind:
        if not kinds:
            kinds = sorted(by_kind, key={kind: rng.random() for kind in by_kind}.__getitem__)
        kind = kinds.pop()
        if kind in by_kind:
            chosen.append(by_kind[kind].pop())
            if not by_kind[kind]:
                del by_kind[kind]
    return chosen


def _questions_by_kind(clip: Clip, rng: random.Random) -> dict[str, list[Question]]:
    """All questions but their order drawn at random."""
    by_kind: dict[str, list[Question]] = {}
    for question in questions(clip, rng):
        by_kind.setdefault(question.kind, []).append(question)
    for kind, group in by_kind.items():
        if kind != "describe":
            rng.shuffle(group)
    return by_kind
