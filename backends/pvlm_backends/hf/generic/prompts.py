"""Prompts by the checkpoint's own `AutoProcessor`: what `generate` takes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.processing_utils import ProcessorMixin

from pvlm_protocols.backend import (
    BackendError,
    CheckpointError,
    FramesMissing,
    ModelInfo,
    Prompt,
    PromptError,
    Turn,
    Visual,
)

from .processor import GenericProcessor
from .session import GenericSession, check_passes, plain_prompt

_PROBE = "What happens first in the video, and what happens after that?"
_PROBED = 6
_HIDDEN = "\ue000"
_TICKS = 1000
"""Frames are counted in milliseconds, because those of a video need no constant rate."""


class GenericPrompts:
    """Turns questions and frames into the model's keyword arguments.

    Args:
        folder: the checkpoint's folder.
        processor: the half of it for text.
        trust_remote_code: run the code that comes with the checkpoint.

    Raises:
        CheckpointError: transformers has no processor for images or videos there, or it has no chat template.
        BackendError: a package that the processor needs is missing.
    """

    def __init__(self, folder: Path, processor: GenericProcessor, *, trust_remote_code: bool = False) -> None:
        self.processor = processor
        self._folder = folder
        self._inner: Any = _load(folder, trust_remote_code)
        tokens = (getattr(self._inner, f"{kind}_token", None) for kind in ("image", "video", "audio"))
        special = getattr(self._inner.tokenizer, "all_special_tokens", ())
        self._special = sorted({token for token in (*tokens, *special) if token}, key=len, reverse=True)
        try:
            self._rendered((Turn("user", ("What happens?",)),))
        except PromptError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    def open(self, model: Any, info: ModelInfo, prompt: Prompt, capacity: int, find: object = None) -> GenericSession:
        """Build the prompt. ``find`` is not called: no prefix is kept.

        Raises PromptError as `inputs` does, or where the model has too few positions; and FramesMissing.
        """
        if any(visual.missing for turn in prompt.conversation for visual in turn.parts if isinstance(visual, Visual)):
            raise FramesMissing("the pixels of a video are missing, and no prefix of it is kept")
        inputs = self.inputs(prompt)
        self.processor.check_model(info, plain_prompt(inputs["input_ids"]), capacity)
        return GenericSession(model, inputs, capacity, info.vocab_size)

    def check(self, model: Any, info: ModelInfo) -> None:
        """Raise CheckpointError for a model from which tokens cannot be taken back exactly."""
        check_passes(model, self.inputs(Prompt(_PROBE)), self.processor.encode(_PROBE)[:_PROBED], info.vocab_size)

    def inputs(self, prompt: Prompt) -> dict[str, Any]:
        """Return ``input_ids``, int64 ``(1, P)``, and the model's other keyword arguments, on the CPU.

        Raises:
            PromptError: the question is empty, a text holds a special token, the processor takes no videos or no
                images, or it fails on the prompt.
        """
        turns = prompt.conversation
        if not turns[-1].text.strip():
            raise PromptError("the question is empty")
        rendered = self._rendered(turns)
        visuals = [part for turn in turns for part in turn.parts if isinstance(part, Visual)]
        videos = [visual for visual in visuals if visual.kind == "video"]
        images = [Image.fromarray(visual.frames[0]) for visual in visuals if visual.kind == "image"]
        arguments: dict[str, Any] = {}
        if videos:
            self._check("video", "give it images")
            arguments["videos"] = [[visual.frames for visual in videos]]
            arguments["video_metadata"] = [self._metadata(visual) for visual in videos]
            arguments["do_sample_frames"] = False
        if images:
            self._check("image", "give it a video")
            arguments["images"] = [images]
        start = self._inner.tokenizer.bos_token
        if start is not None and rendered.startswith(start):  # else the tokenizer may write it a second time
            arguments["add_special_tokens"] = False
        try:
            found = self._inner(text=[rendered], return_tensors="pt", **arguments)
        except Exception as error:  # of other people's code
            raise PromptError(f"the checkpoint's own processor fails on this prompt: {error}") from error
        return {name: value for name, value in found.items() if value is not None}

    def _rendered(self, turns: Sequence[Turn]) -> str:
        rendered, framed = self._by_template(turns), self._by_template(turns, _HIDDEN)
        if token := next((one for one in self._special if rendered.count(one) != framed.count(one)), None):
            raise PromptError(
                f"a text of the prompt holds the special token {token!r}, which would change the prompt's structure; "
                "write it differently"
            )
        return rendered

    def _by_template(self, turns: Sequence[Turn], instead: str | None = None) -> str:
        """``instead``: in place of each text."""
        messages = [{"role": turn.role, "content": [_content(part, instead) for part in turn.parts]} for turn in turns]
        try:
            rendered: str = self._inner.apply_chat_template(messages, add_generation_prompt=True)
        except Exception as error:  # a template may raise anything
            raise PromptError(f"the chat template failed on this prompt: {error}") from error
        return rendered

    def _check(self, kind: str, instead: str) -> None:
        """Raise PromptError if the processor does not take videos, or images."""
        if getattr(self._inner, f"{kind}_processor", None) is None:
            raise PromptError(f"the processor of {self._folder} takes no {kind}s; {instead}")

    def _metadata(self, video: Visual) -> dict[str, Any]:
        """As transformers' readers of videos give it."""
        count = len(video.frames)
        if video.timestamps_s and len(video.timestamps_s) != count:
            raise PromptError(f"there are {count} frames, but {len(video.timestamps_s)} timestamps")
        rate = self.processor.frame_defaults.fps or 2.0
        times = video.timestamps_s or tuple(index / rate for index in range(count))
        step = (times[-1] - times[0]) / (count - 1) if count > 1 else 1 / rate
        height, width = video.frames.shape[1:3]
        return {
            "total_num_frames": max(count, round(count * step * _TICKS)),
            "fps": float(_TICKS),
            "duration": count * step,
            "frames_indices": [round(time_s * _TICKS) for time_s in times],
            "height": height,
            "width": width,
        }


def _content(part: str | Visual, instead: str | None) -> dict[str, str]:
    if isinstance(part, Visual):
        return {"type": part.kind}
    return {"type": "text", "text": part if instead is None else instead}


def _load(folder: Path, trust_remote_code: bool) -> ProcessorMixin:
    try:
        processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # ImportError, OSError, ValueError, RuntimeError, ...
        if "torchvision" in str(error).lower():
            raise BackendError(_without_torchvision(folder, error)) from error
        if isinstance(error, ImportError):
            raise BackendError(f"the processor of {folder} needs a package that is missing: {_line(error)}") from error
        raise CheckpointError(f"transformers cannot load the processor of {folder}: {_line(error)}") from error
    if not isinstance(processor, ProcessorMixin):  # AutoProcessor returns a tokenizer where there is nothing else
        raise CheckpointError(f"{folder} has no processor for images or videos; pvlm runs models that see")
    return processor


def _without_torchvision(folder: Path, error: Exception) -> str:
    try:
        found = (
            f"torchvision {version('torchvision')} does not import beside torch {torch.__version__} ({_line(error)})"
        )
        remedy = "install the release that fits this torch"
    except PackageNotFoundError:
        found, remedy = "torchvision is missing", f"pip install the release that fits torch {torch.__version__}"
    return f"the video processor of {folder} needs torchvision, but {found}: {remedy}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
