"""What is tested of each Qwen family alike: its processor, its checkpoints, and its answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from accelerate.utils import check_device_map
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from pvlm_backends.families import load_processor
from pvlm_backends.hf.model import device_map
from pvlm_backends.processing.patches import PatchProcessor
from pvlm_protocols.backend import Backend, CheckpointError, EarlyStates, LoadOptions, Prompt
from tests.backends.conftest import BACKENDS
from tests.support.checkpoints import edit_settings, random_frames

from .comparison import (
    ANSWER,
    QUESTION,
    check_early_attention,
    check_early_states,
    check_logits,
    check_pruned_logits,
    distance,
    greedy_answer,
    rows_of,
)
from .qwen2_5_vl.reference import QwenReference

Processor = TypeVar("Processor", bound=PatchProcessor)


@dataclass(frozen=True)
class QwenFamily:
    """``checkpoint`` makes one in a folder; ``checkpoints``: its arguments by name; ``side``: pixels of a token."""

    checkpoint: Callable[..., Path]
    reference: Callable[[Path], QwenReference]
    side: int
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)

    def frames(self, count: int, height: int, width: int) -> NDArray[np.uint8]:
        """Frames of ``height`` by ``width`` tokens."""
        return random_frames(count, height * self.side, width * self.side)


# ---- answers --------------------------------------------------------------------------------------------------------


def check_answer(backend: Backend, reference: QwenReference, prompt: Prompt, second_per_grid: float = 1.0) -> None:
    expected = reference.logits(QUESTION, prompt.frames, ANSWER, second_per_grid=second_per_grid)
    check_logits(backend.open(prompt, 16), expected)


def check_pruning(
    backend: Backend,
    reference: QwenReference,
    prompt: Prompt,
    share: float,
    compact_positions: bool,
    second_per_grid: float = 1.0,
) -> None:
    """About ``share`` of the tokens are kept, and nothing of the second pair of frames: a gap at its time."""
    session = backend.open(prompt, 16)
    keep = torch.rand(session.video_tokens, generator=torch.Generator().manual_seed(1)) < share
    keep[len(keep) // 3 : 2 * len(keep) // 3] = False

    def logits(**pruning: Any) -> torch.Tensor:
        return reference.logits(QUESTION, prompt.frames, ANSWER, second_per_grid=second_per_grid, **pruning)

    original, compact = (logits(keep=keep, compact_positions=closed) for closed in (False, True))
    assert not torch.allclose(original, compact, atol=1e-2)
    check_pruned_logits(session, keep, compact_positions, compact if compact_positions else original, logits())


def check_early(backend: Backend, reference: QwenReference, frames: NDArray[np.uint8], early_layer: int) -> None:
    """States and attention of a layer; of five frames, two share their tokens."""
    found: list[EarlyStates] = []
    session = backend.open(Prompt(QUESTION, frames), 4)
    session.prefill(early_layer=early_layer, on_early_layer=found.append, early_attention=True)
    ids = reference.inputs(QUESTION, frames)["input_ids"][0]
    video = ids == reference.model.config.video_token_id
    question = rows_of(ids, reference.tokenizer(QUESTION)["input_ids"])
    assert found[0].frames == 3
    check_early_states(found[0], early_layer, reference.hidden_states(QUESTION, frames), video, question)
    check_early_attention(found[0], reference.attention(QUESTION, frames)[early_layer - 1], video, question)


def check_greedy_text(backend: Backend, reference: QwenReference, frames: NDArray[np.uint8]) -> None:
    end = backend.info.end_token_ids
    session = backend.open(Prompt(QUESTION, frames, (0.0, 0.25, 0.5, 0.75)), 24)
    assert greedy_answer(session, end) == reference.generate(QUESTION, frames, 24, end, second_per_grid=0.5)


def check_nearness(
    backend: type[Backend],
    folder: Path,
    reference: QwenReference,
    frames: NDArray[np.uint8],
    dtype: str,
    nearness: float,
) -> None:
    session = backend.load(LoadOptions(str(folder), dtype=dtype)).open(Prompt(QUESTION, frames), 16)
    assert distance(session, reference.logits(QUESTION, frames, ANSWER)) < nearness


# ---- processors -----------------------------------------------------------------------------------------------------


def changes_of(kind: type[Processor], checkpoint: Path, folder: Path) -> Callable[..., Processor]:
    """The processor of a copy of a checkpoint with other settings, such as ``("preprocessor_config.json", fps=1)``."""
    for path in checkpoint.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())

    def load(name: str, **changes: Any) -> Processor:
        if not (folder / name).exists():
            (folder / name).write_text("{}")
        edit_settings(folder / name, **changes)
        found = load_processor(str(folder))
        assert isinstance(found, kind)
        return found

    return load


def check_prompt_ids(processor: PatchProcessor, reference: QwenReference, question: str) -> None:
    """Without a video, and with one of 2 * 3 * 4 tokens."""
    side = processor.token_side
    for frames in (None, random_frames(3, 3 * side, 4 * side)):
        prepared = processor.prepare(Prompt(question, frames))
        assert prepared.ids.tolist() == reference.inputs(question, frames)["input_ids"][0].tolist()
        assert reference.tokenizer.decode(prepared.ids[prepared.question]).strip() == question.strip()
        assert prepared.video_tokens == (0 if frames is None else 2 * 3 * 4)
        for rows in (prepared.placeholders, prepared.video):
            np.testing.assert_array_equal(rows, np.flatnonzero(prepared.ids == 4))


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def logits(backend: type[Backend], folder: Path, prompt: Prompt, **options: Any) -> torch.Tensor:
    """After the prompt, by a checkpoint that is loaded for it."""
    return backend.load(LoadOptions(str(folder), **options)).open(prompt, 1).prefill().clone()


def check_refused_by_torch(folder: Path, part: str, changes: dict[str, Any], message: str) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings[part].update(changes)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        BACKENDS["torch"].load(LoadOptions(str(folder)))


def check_missing_weight(backend: type[Backend], folder: Path, name: str, message: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        backend.load(LoadOptions(str(folder)))


def check_meta(folder: Path, prompt: Prompt) -> None:
    """Shapes without numbers; a tensor left on the CPU would be an error."""
    session = BACKENDS["torch"].load(LoadOptions(str(folder), device="meta")).open(prompt, 2)
    assert session.prefill(torch.arange(session.video_tokens) % 2 == 0).is_meta
    assert session.extend([5, 6]).is_meta


def map_over_two_devices(folder: Path) -> dict[str, str]:
    """The device map that gives every parameter of transformers' model a place."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = device_map(model, [torch.device("cuda", index) for index in range(2)])
    check_device_map(model, found)
    return found
