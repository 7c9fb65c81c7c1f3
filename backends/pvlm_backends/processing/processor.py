"""The processor that all families share: text, end tokens, and a prompt around a video's placeholders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import CheckpointError, FrameDefaults, ModelInfo, Prompt, PromptError

from .chat import ChatTemplate
from .generation import end_token_ids, ignored_generation_options
from .prompt import PreparedPrompt, Rows
from .tokenizer import TextTokenizer

# Takes the question's place while the template's own text is measured; no template and no question holds its letters.
_SENTINEL = "\ue000question\ue001"


@dataclass(frozen=True)
class VideoPart:
    """The n tokens that replace the video's single token in a prompt. Counts begin at the first of them."""

    pixels: NDArray[np.float32]
    """As the family's vision tower takes them; the first dimension counts moments."""
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


class VideoProcessor(ABC):
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
        self._folder = folder
        self._tokenizer = TextTokenizer(folder)
        self._template = ChatTemplate.from_folder(folder)
        self.video_token_id = video_token_id(config)
        self._video_token = self._special_token(self.video_token_id)
        self._end_token_ids = end_token_ids(folder, config)
        self._ignored = ignored_generation_options(folder)

    @property
    @abstractmethod
    def frame_defaults(self) -> FrameDefaults:
        """The frames that are taken by default."""

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self._end_token_ids

    @property
    def tokenizer_fingerprint(self) -> str:
        """Equal for tokenizers that give the same ids to every text without added tokens."""
        return self._tokenizer.fingerprint

    @property
    def ignored_generation_options(self) -> tuple[str, ...]:
        """``name=value`` of the logits processors in generation_config.json; pvlm applies none of them."""
        return self._ignored

    @abstractmethod
    def resize(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize uint8 ``(T, H, W, 3)`` for the tower, by the checkpoint's filter. Raises PromptError."""

    @abstractmethod
    def video_grid(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        """Return the grid of the video tokens of resized frames: times, rows and columns, time slowest."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of a text; see `pvlm_protocols.backend.TextEncoding`."""
        return self._tokenizer.encode(text)[0]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of answer tokens without special tokens; incomplete UTF-8 at the end reads as U+FFFD."""
        return self._tokenizer.decode(tokens)

    def tokens_as_text(self) -> Sequence[str]:
        """The vocabulary by id."""
        return self._tokenizer.tokens_as_text

    def prepare_for(self, model: ModelInfo, prompt: Prompt, capacity: int) -> PreparedPrompt:
        """Build a prompt with which ``model`` can answer in ``capacity`` tokens.

        Raises:
            PromptError: as `prepare`; or the model lacks the embedding of a token, or has too few positions.
            CheckpointError: as `prepare`.
        """
        prepared = self.prepare(prompt)
        largest = int(prepared.ids.max())
        if largest >= model.vocab_size:  # on a GPU, the look-up would end the whole process
            raise PromptError(
                f"the prompt holds the token {self.tokens_as_text()[largest]!r}, whose id {largest} has no embedding: "
                f"the model's ids end at {model.vocab_size - 1}; the token was added to the tokenizer alone"
            )
        prepared.check_positions(capacity, model.max_positions)
        return prepared

    def prepare(self, prompt: Prompt) -> PreparedPrompt:
        """Build a prompt: one user message with the video, if any, and the question.

        Raises:
            PromptError: the question is empty or holds special tokens, or the frames are not as `resize` returns them.
            CheckpointError: the chat template has no single place for the video, or changes the question.
        """
        question = self._checked_question(prompt.question)
        content = [] if prompt.frames is None else [{"type": "video"}]
        text = self._template.render([*content, {"type": "text", "text": question}])
        ids, offsets = self._tokenizer.encode(text)
        first, last = self._question_in(text, content)
        rows = [row for row, (start, stop) in enumerate(offsets) if start < last and stop > first]
        if not rows:
            raise PromptError(f"the question {question!r} leaves no token in the chat template")
        asked = (rows[0], rows[-1] + 1)
        if prompt.frames is None:
            none = np.arange(0)
            return PreparedPrompt(np.array(ids, np.int64), None, none, none, asked, self._text_positions(0, len(ids)))

        if ids.count(self.video_token_id) != 1:
            raise CheckpointError(
                f"{self._folder}: the chat template writes {self._video_token!r} "
                f"{ids.count(self.video_token_id)} times for one video"
            )
        video = self._video_part(prompt.frames, prompt.timestamps_s)
        at = ids.index(self.video_token_id)
        longer = len(video.ids) - 1
        before = self._text_positions(0, at)
        after = self._text_positions(at + video.advance, len(ids) - at - 1)
        return PreparedPrompt(
            ids=np.array([*ids[:at], *video.ids, *ids[at + 1 :]], np.int64),
            pixels=video.pixels,
            placeholders=at + video.placeholders,
            video=at + video.video,
            question=(asked[0] + longer, asked[1] + longer) if asked[0] > at else asked,
            positions=np.concatenate([before, at + video.positions, after], axis=1),
        )

    @abstractmethod
    def _video_part(self, frames: NDArray[np.uint8], timestamps_s: Sequence[float]) -> VideoPart:
        """Return the video's tokens. Raises PromptError if the frames are not as `resize` returns them."""

    def _single_run(
        self, pixels: NDArray[np.float32], prunable: int, positions: NDArray[np.int64], advance: int
    ) -> VideoPart:
        """A video without text between its placeholders, of which the first so many may be pruned."""
        count = positions.shape[1]
        ids = np.full(count, self.video_token_id)
        return VideoPart(pixels, ids, np.arange(count), np.arange(prunable), positions, advance)

    def _text_positions(self, first: int, count: int) -> NDArray[np.int64]:
        """``(axes, count)``: a text token has the same position on all axes."""
        return np.tile(np.arange(first, first + count), (self.axes, 1))

    def _checked_question(self, question: str) -> str:
        if not question.strip():
            raise PromptError("the question is empty")
        if found := [token for token in self._tokenizer.special_tokens if token in question]:
            raise PromptError(
                f"the question holds the special token {found[0]!r}, which would change the prompt's structure; "
                "write it differently"
            )
        return question

    def _question_in(self, text: str, content: list[dict[str, str]]) -> tuple[int, int]:
        """The question's place in the rendered ``text``: first character, and one more than the last."""
        around = self._template.render([*content, {"type": "text", "text": _SENTINEL}])
        before, found, after = around.partition(_SENTINEL)
        if not found or not (text.startswith(before) and text.endswith(after)):
            raise CheckpointError(f"{self._folder}: the chat template does not hold the question's text as it stands")
        return len(before), len(text) - len(after)

    def _special_token(self, index: int) -> str:
        for token, token_index in self._tokenizer.special_tokens.items():
            if token_index == index:
                return token
        raise CheckpointError(f"{self._folder}: the video token's id {index} is no special token of tokenizer.json")


def video_token_id(config: Mapping[str, Any]) -> int:
    """Return the id of the video's placeholder, under its old key or its new one. Raises CheckpointError."""
    for key in ("video_token_index", "video_token_id"):
        if isinstance(config.get(key), int):
            return int(config[key])
    raise CheckpointError("config.json names neither video_token_index nor video_token_id")
