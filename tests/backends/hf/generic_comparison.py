"""What `generate` itself answers with a family that pvlm has no folder for, and what the engine does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from pvlm import Answer, Engine

QUESTION = "What happens first in the video?"
MAX_TOKENS = 24
INPROC: dict[str, Any] = {"transport": "inproc", "backend": "hf", "threads": 1, "draft_threads": 1}
METHODS = ["ar", "sd", "parallel"]


def conversation(*visuals: NDArray[np.uint8] | Image.Image, question: str = QUESTION) -> list[dict[str, Any]]:
    """A question about videos and images, in the form of transformers and of `messages`."""
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": one} if isinstance(one, Image.Image) else {"type": "video", "video": one}
        for one in visuals
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def inputs(folder: Path, messages: list[dict[str, Any]], *fps: float) -> dict[str, torch.Tensor]:
    """What the checkpoint's own processor makes of it; ``fps``: frames a second of each video."""
    videos = [part["video"] for turn in messages for part in turn["content"] if part["type"] == "video"]
    metadata = [
        {
            "total_num_frames": len(video),
            "fps": rate,
            "duration": len(video) / rate,
            "frames_indices": list(range(len(video))),
        }
        for video, rate in zip(videos, fps, strict=True)
    ]
    arguments = {"do_sample_frames": False, "video_metadata": metadata} if videos else {}
    found = AutoProcessor.from_pretrained(folder).apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=arguments,
    )
    return dict(found)


def generated(folder: Path, given: dict[str, torch.Tensor]) -> tuple[int, ...]:
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    output = model.generate(**given, max_new_tokens=MAX_TOKENS, do_sample=False)
    return tuple(output[0, given["input_ids"].shape[1] :].tolist())


async def check_methods(target: Path, draft: Path, expected: tuple[int, ...], **asked: Any) -> Answer:
    """Every method answers as `generate` does. Returns the last answer."""
    async with Engine.create(target=str(target), draft=str(draft), **INPROC) as engine:
        for method in METHODS:
            answer = await engine.answer(max_tokens=MAX_TOKENS, method=method, **asked)
            assert answer.tokens == expected, method
            assert answer.stats.draft_lost == ""
            assert (answer.stats.video_tokens, answer.stats.kept_video_tokens) == (0, 0)
            assert answer.stats.drafted_tokens > 0 or method != "sd"
    return answer
