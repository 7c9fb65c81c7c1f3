"""LLaVA-OneVision: frames to pixels, a question and frames to a prompt.

Follows transformers' ``LlavaOnevisionProcessor`` and its Pillow image processor number for number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvlm_protocols.backend import CheckpointError, FrameDefaults, Prompt, PromptError

from .chat import ChatTemplate
from .files import read_optional_settings
from .generation import end_token_ids, ignored_generation_options
from .prompt import PreparedPrompt
from .tokenizer import TextTokenizer

MODEL_TYPE = "llava_onevision"

_UNIFORM_FRAMES = 32
_CONSECUTIVE_FRAMES = 128
# Of transformers' LlavaOnevisionVideoProcessor, for checkpoints that leave a value out.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Letters that no template and no question holds: stands for the question while the template's own text is measured.
_SENTINEL = "\ue000question\ue001"


class LlavaOnevisionProcessor:
    """Text and frames of a LLaVA-OneVision checkpoint.

    Args:
        folder: the checkpoint's folder.
        config: its config.json.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for what is not supported.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        check_model_type(folder, config)
        self._folder = folder
        self._tokenizer = TextTokenizer(folder)
        self._template = ChatTemplate.from_folder(folder)
        self.video_token_id = token_id(config, "video")
        self._video_token = self._special_token(self.video_token_id)
        vision = config.get("vision_config") or {}
        self._image_size: int = vision.get("image_size", 384)
        # The tower's grid of patches, halved by the pooling, rounded up.
        self._side = math.ceil(self._image_size // vision.get("patch_size", 14) / 2)
        self.tokens_per_frame = self._side * self._side
        self._end_token_ids = end_token_ids(folder, config)
        self._ignored = ignored_generation_options(folder)
        settings = _frame_settings(folder)
        self._check_size(settings)
        self._resample = Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC))
        self._levels = _normalized_levels(settings)
        self._frame_defaults = _frame_defaults(settings)

    @property
    def frame_defaults(self) -> FrameDefaults:
        """Consecutive frames where the checkpoint says ``"do_sample_frames": false``, else 32 uniform ones."""
        return self._frame_defaults

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self._end_token_ids

    @property
    def tokenizer_fingerprint(self) -> str:
        """Equal for two checkpoints whose tokenizers give every text the same ids."""
        return self._tokenizer.fingerprint

    @property
    def ignored_generation_options(self) -> tuple[str, ...]:
        """``name=value`` of the logits processors that generation_config.json asks for and nobody applies."""
        return self._ignored

    def resize(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize uint8 ``(T, H, W, 3)`` to the tower's size with the checkpoint's own filter. Raises PromptError."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise PromptError(f"frames must be uint8 (T, H, W, 3), T >= 1, not {frames.dtype} {frames.shape}")
        side = self._image_size
        if frames.shape[1:3] == (side, side):
            return frames
        resized = np.empty((len(frames), side, side, 3), np.uint8)
        for index, frame in enumerate(frames):
            resized[index] = np.asarray(Image.fromarray(frame).resize((side, side), self._resample))
        return resized

    def video_grid(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        """``(T, side, side)``: every frame has the pooled grid of the tower."""
        return len(frames), self._side, self._side

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of answer tokens, special tokens left out; incomplete UTF-8 at the end reads as U+FFFD."""
        return self._tokenizer.decode(tokens)

    def tokens_as_text(self) -> Sequence[str]:
        """The vocabulary by id."""
        return self._tokenizer.tokens_as_text

    def prepare(self, prompt: Prompt) -> PreparedPrompt:
        """Ids, pixels and spans of a prompt: one user message of the video, if any, and the question.

        Raises:
            PromptError: the question is empty or holds special tokens, or the frames are not as `resize` leaves them.
        """
        question = self._checked_question(prompt.question)
        frames = prompt.frames
        video_part = [] if frames is None else [{"type": "video"}]
        text = self._template.render([*video_part, {"type": "text", "text": question}])
        ids, offsets = self._tokenizer.encode(text)
        first, last = self._question_in(text, video_part)
        rows = [row for row, (start, stop) in enumerate(offsets) if start < last and stop > first]
        if not rows:
            raise PromptError(f"the question {question!r} leaves no token in the chat template")
        question_span = (rows[0], rows[-1] + 1)
        if frames is None:
            return PreparedPrompt(np.array(ids, np.int64), None, (0, 0), (0, 0), question_span)

        if ids.count(self.video_token_id) != 1:
            raise CheckpointError(
                f"{self._folder}: the chat template writes {self._video_token!r} "
                f"{ids.count(self.video_token_id)} times for one video"
            )
        pixels = self.normalize(frames)
        at = ids.index(self.video_token_id)
        count = len(frames) * self.tokens_per_frame
        expanded = [*ids[:at], *[self.video_token_id] * (count + 1), *ids[at + 1 :]]  # one more for the newline
        if question_span[0] > at:
            question_span = (question_span[0] + count, question_span[1] + count)
        video = (at, at + count)
        return PreparedPrompt(np.array(expanded, np.int64), pixels, (at, at + count + 1), video, question_span)

    def normalize(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resized frames, uint8 ``(T, H, W, 3)``, to pixels, float32 ``(T, 3, H, W)``. Raises PromptError."""
        side = self._image_size
        if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) == 0 or frames.shape[1:] != (side, side, 3):
            raise PromptError(
                f"frames must be uint8 (T, {side}, {side}, 3), T >= 1, as `resize` leaves them, "
                f"not {frames.dtype} {frames.shape}"
            )
        return np.stack([levels[frames[..., channel]] for channel, levels in enumerate(self._levels)], axis=1)

    def _checked_question(self, question: str) -> str:
        if not question.strip():
            raise PromptError("the question is empty")
        if found := [token for token in self._tokenizer.special_tokens if token in question]:
            raise PromptError(
                f"the question holds the special token {found[0]!r}, which would change the prompt's structure; "
                "write it differently"
            )
        return question

    def _question_in(self, text: str, video_part: list[dict[str, str]]) -> tuple[int, int]:
        """Where the question stands in the rendered ``text``."""
        around = self._template.render([*video_part, {"type": "text", "text": _SENTINEL}])
        before, found, after = around.partition(_SENTINEL)
        if not found or not (text.startswith(before) and text.endswith(after)):
            raise CheckpointError(f"{self._folder}: the chat template does not hold the question's text as it stands")
        return len(before), len(text) - len(after)

    def _special_token(self, index: int) -> str:
        for token, token_index in self._tokenizer.special_tokens.items():
            if token_index == index:
                return token
        raise CheckpointError(f"{self._folder}: the video token's id {index} is no special token of tokenizer.json")

    def _check_size(self, settings: dict[str, Any]) -> None:
        size = settings.get("size", {"height": 384, "width": 384})
        sides = {size.get("height"), size.get("width")} if isinstance(size, dict) else {size}
        if settings.get("do_resize", True) is False or settings.get("do_center_crop") or sides != {self._image_size}:
            raise CheckpointError(
                f"{self._folder}: frames must be resized to the tower's {self._image_size} x {self._image_size} px, "
                f"but its settings say size={size!r}, do_resize={settings.get('do_resize', True)!r}, "
                f"do_center_crop={settings.get('do_center_crop', False)!r}"
            )


def check_model_type(folder: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError unless config.json is LLaVA-OneVision's."""
    found = config.get("model_type")
    if found != MODEL_TYPE:
        raise CheckpointError(f"{folder} is a {found!r} checkpoint; supported: {MODEL_TYPE!r}")


def token_id(config: dict[str, Any], kind: str) -> int:
    """The placeholder's id for ``kind`` ("image" or "video"), under the old key or the new. Raises CheckpointError."""
    for key in (f"{kind}_token_index", f"{kind}_token_id"):
        if isinstance(config.get(key), int):
            return int(config[key])
    raise CheckpointError(f"config.json names neither {kind}_token_index nor {kind}_token_id")


def _frame_settings(folder: Path) -> dict[str, Any]:
    """How the checkpoint wants frames prepared: its video settings, else its image settings."""
    nested = read_optional_settings(folder, "processor_config.json") or {}
    settings = (
        read_optional_settings(folder, "video_preprocessor_config.json")
        or nested.get("video_processor")
        or read_optional_settings(folder, "preprocessor_config.json")
        or nested.get("image_processor")
    )
    if not settings:
        raise CheckpointError(f"{folder} holds neither video_preprocessor_config.json nor preprocessor_config.json")
    return dict(settings)


def _frame_defaults(settings: dict[str, Any]) -> FrameDefaults:
    if settings.get("do_sample_frames") is False:
        return FrameDefaults(num_frames=settings.get("num_frames") or _CONSECUTIVE_FRAMES, consecutive=True)
    return FrameDefaults(num_frames=_UNIFORM_FRAMES)


def _normalized_levels(settings: dict[str, Any]) -> NDArray[np.float32]:
    """float32 ``(3, 256)``: what each of the 256 levels of each channel becomes.

    A byte has 256 values, so normalising is a table. The roundings are transformers': rescaling in float64, then
    float32.
    """
    levels = np.arange(256, dtype=np.float64)
    if settings.get("do_rescale", True):
        levels = levels * settings.get("rescale_factor", 1 / 255)
    table = np.repeat(levels.astype(np.float32)[None], 3, axis=0)
    if settings.get("do_normalize", True):
        mean = np.array(settings.get("image_mean", _CLIP_MEAN), np.float32).reshape(-1, 1)
        std = np.array(settings.get("image_std", _CLIP_STD), np.float32).reshape(-1, 1)
        table = (table - mean) / std
    return table
