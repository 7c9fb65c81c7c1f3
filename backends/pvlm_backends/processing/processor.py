"""The processor that all families share: a prompt around a video's placeholders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import CheckpointError, FrameDefaults, ModelInfo, Prompt, PromptError, Visual
from pvlm_protocols.prompt import VisualKind

from .chat import ChatTemplate, ChatText, Span
from .prompt import Pixels, PreparedPrompt, Rows
from .text import TextProcessor


@dataclass(frozen=True)
class VideoPart:
    """The n tokens that replace the single token of a video or an image. Counts begin at the first of them."""

    pixels: Callable[[], NDArray[np.float32]]
    """Makes them as the family's vision tower takes them; the first dimension counts moments."""
    moments: int
    """Of a video, each with as many prunable tokens; 1 for an image."""
    ids: NDArray[np.int64]
    """``(n,)``: placeholders, and the text between them, if there is any."""
    placeholders: Rows
    """Those that the tower's output replaces."""
    video: Rows
    """Those of the placeholders that may be pruned, as many for each moment; the others are structure."""
    positions: NDArray[np.int64]
    """``(axes, n)``."""
    advance: int
    """Position of the text after the video."""


class VideoProcessor(TextProcessor, ABC):
    """Text and frames of a checkpoint. A family defines how frames are resized and which tokens a video has.

    Args:
        folder: the checkpoint's folder.
        config: its config.json.

    Raises:
        CheckpointError: a file is missing or damaged, or has an unsupported value.
    """

    axes: ClassVar[int] = 1
    """Numbers in a token's position."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        self._template = ChatTemplate.from_folder(folder)
        self.video_token_id = token_id(config, "video_token_index", "video_token_id")
        image_token_id = token_id(config, "image_token_index", "image_token_id")
        self._placeholders: dict[VisualKind, tuple[int, str]] = {
            "video": (self.video_token_id, self._special_token(self.video_token_id)),
            "image": (image_token_id, self._special_token(image_token_id)),
        }

    @property
    @abstractmethod
    def frame_defaults(self) -> FrameDefaults:
        """The frames that are taken by default."""

    @abstractmethod
    def resize(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize uint8 ``(T, H, W, 3)`` for the tower, by the checkpoint's filter. Raises PromptError."""

    @abstractmethod
    def video_grid(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        """Return the grid of the video tokens of resized frames: times, rows and columns, time slowest."""

    def prepare_for(self, model: ModelInfo, prompt: Prompt, capacity: int) -> PreparedPrompt:
        """Build a prompt with which ``model`` can answer in ``capacity`` tokens.

        Raises:
            PromptError: as `prepare`; or the model lacks the embedding of a token, or has too few positions.
            CheckpointError: as `prepare`.
        """
        prepared = self.prepare(prompt)
        self.check_model(model, prepared, capacity)
        return prepared

    def prepare(self, prompt: Prompt) -> PreparedPrompt:
        """Build a prompt by the checkpoint's own chat template: one user message with the question, or a conversation.

        Raises:
            PromptError: the question is empty, a text holds special tokens, or frames are not as `resize` returns them.
            CheckpointError: the chat template has no single place for each video and image, or changes a text.
        """
        turns = prompt.conversation
        if not turns[-1].text.strip():
            raise PromptError("the question is empty")
        text = ChatText(self._template, turns, str(self._folder))
        ids, offsets = self._tokenizer.encode(text.rendered)
        self._check_texts(ids, offsets, text.spans)
        asked = _rows_in(offsets, text.asked)
        if not len(asked):
            raise PromptError(f"the question {turns[-1].text!r} leaves no token in the chat template")
        visuals = [part for turn in turns for part in turn.parts if isinstance(part, Visual)]
        places = self._places(ids, visuals)
        parts = [self._part(visual) for visual in visuals]

        joined = _Joined(self.axes, ids)
        for row, index in places:
            joined.replace(row, parts[index], index)
        joined.finish()
        first = dict(zip((index for _, index in places), joined.begins, strict=True))
        begins = [rows[0] for spans in text.users if len(rows := _rows_in(offsets, spans))]
        return PreparedPrompt(
            ids=np.concatenate(joined.ids).astype(np.int64),
            visuals=tuple(
                Pixels(
                    visuals[index].kind,
                    parts[index].pixels,
                    visuals[index].size,
                    first[index],
                    visuals[index].digest,
                    visuals[index].missing,
                )
                for _, index in places
            ),
            placeholders=_concatenated(joined.placeholders),
            video=_concatenated([joined.video[index] for index in range(len(visuals))]),
            runs=tuple((part.moments, len(part.video) // part.moments) for part in parts),
            question=joined.moved(asked),
            positions=np.concatenate(joined.positions, axis=1),
            begins=joined.moved(np.unique(np.array(begins, np.int64))),
        )

    @abstractmethod
    def resize_image(self, image: NDArray[np.uint8], images: int) -> NDArray[np.uint8]:
        """See `pvlm_protocols.backend.Conversations`. Raises PromptError."""

    def _part(self, visual: Visual) -> VideoPart:
        if visual.kind == "image":
            return self._image_part(visual.frames, visual.size)
        return self._video_part(visual.frames, visual.timestamps_s)

    @abstractmethod
    def _video_part(self, frames: NDArray[np.uint8], timestamps_s: Sequence[float]) -> VideoPart:
        """Return the video's tokens. Raises PromptError if the frames are not as `resize` returns them."""

    @abstractmethod
    def _image_part(self, frames: NDArray[np.uint8], size: tuple[int, int]) -> VideoPart:
        """Return an image's tokens. Raises PromptError if the frames are not as `resize_image` returns them."""

    def _single_run(
        self,
        pixels: Callable[[], NDArray[np.float32]],
        moments: int,
        prunable: int,
        positions: NDArray[np.int64],
        advance: int,
        kind: VisualKind = "video",
    ) -> VideoPart:
        """A video or image without text between its placeholders, of which the first so many may be pruned."""
        count = positions.shape[1]
        ids = np.full(count, self._placeholders[kind][0])
        return VideoPart(pixels, moments, ids, np.arange(count), np.arange(prunable), positions, advance)

    def _text_positions(self, first: int, count: int) -> NDArray[np.int64]:
        """``(axes, count)``: a text token has the same position on all axes."""
        return text_positions(self.axes, first, count)

    def _check_texts(self, ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span]) -> None:
        """Raise PromptError if a special token is in a text, or begins or ends in one."""
        special = {index: token for token, index in self._tokenizer.special_tokens.items()}
        for index, (start, stop) in zip(ids, offsets, strict=True):
            if index in special and any(start < last and stop > first for first, last in spans):
                raise PromptError(
                    f"a text of the prompt holds the special token {special[index]!r}, which would change the prompt's "
                    "structure; write it differently"
                )

    def _places(self, ids: Sequence[int], visuals: Sequence[Visual]) -> list[tuple[int, int]]:
        """The token of each video and image, and its index in ``visuals``, in the order of the tokens."""
        places: list[tuple[int, int]] = []
        for kind, (index, token) in self._placeholders.items():
            rows = [row for row, found in enumerate(ids) if found == index]
            given = [number for number, visual in enumerate(visuals) if visual.kind == kind]
            if len(rows) != len(given):
                raise CheckpointError(
                    f"{self._folder}: the chat template writes {token!r} {len(rows)} times for {len(given)} {kind}s"
                )
            places += zip(rows, given, strict=True)
        return sorted(places)

    def _special_token(self, index: int) -> str:
        for token, token_index in self._tokenizer.special_tokens.items():
            if token_index == index:
                return token
        raise CheckpointError(f"{self._folder}: the placeholder's id {index} is no special token of tokenizer.json")


def token_id(config: Mapping[str, Any], *keys: str) -> int:
    """Return the id of a token from config.json, under the first of the keys that it has. Raises CheckpointError."""
    for key in keys:
        if isinstance(config.get(key), int):
            return int(config[key])
    raise CheckpointError(f"config.json names no {' or '.join(keys)}")


def text_positions(axes: int, first: int, count: int) -> NDArray[np.int64]:
    """``(axes, count)``: a text token has the same position on all axes."""
    return np.tile(np.arange(first, first + count), (axes, 1))


class _Joined:
    """A prompt whose placeholders are replaced one after the other."""

    def __init__(self, axes: int, rendered: Sequence[int]) -> None:
        self.ids: list[NDArray[np.int64]] = []
        self.positions: list[NDArray[np.int64]] = []
        self.placeholders: list[Rows] = []
        self.video: dict[int, Rows] = {}
        """By the index of the video or image."""
        self.begins: list[int] = []
        """The first row of each part."""
        self._axes = axes
        self._rendered = np.array(rendered, np.int64)
        self._moved = np.arange(len(rendered))
        self._next = 0  # of the rendered tokens
        self._rows = 0  # of the prompt's tokens so far
        self._position = 0

    def replace(self, row: int, part: VideoPart, index: int) -> None:
        """Append the text before a rendered token, and what replaces the token."""
        self._append_text(row)
        self.begins.append(self._rows)
        self.ids.append(part.ids)
        self.positions.append(self._position + part.positions)
        self.placeholders.append(self._rows + part.placeholders)
        self.video[index] = self._rows + part.video
        self._moved[row + 1 :] += len(part.ids) - 1
        self._rows += len(part.ids)
        self._position += part.advance
        self._next = row + 1

    def finish(self) -> None:
        """Append the rest."""
        self._append_text(len(self._rendered))

    def moved(self, rows: Rows) -> Rows:
        """Return where rendered tokens are in the prompt."""
        return self._moved[rows]

    def _append_text(self, stop: int) -> None:
        count = stop - self._next
        self.ids.append(self._rendered[self._next : stop])
        self.positions.append(text_positions(self._axes, self._position, count))
        self._rows += count
        self._position += count
        self._next = stop


def _rows_in(offsets: Sequence[Span], spans: Sequence[Span]) -> Rows:
    """The tokens of which a character lies in one of the spans."""
    inside = [any(start < last and stop > first for first, last in spans) for start, stop in offsets]
    return np.flatnonzero(inside)


def _concatenated(rows: Sequence[Rows]) -> Rows:
    return np.concatenate([np.arange(0), *rows])
