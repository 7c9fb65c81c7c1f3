"""Checkpoints that tests change, and frames for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file


def edit_settings(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def rename_weights(folder: Path, rename: Callable[[str], str]) -> None:
    """Give the weights of a checkpoint in one file other names."""
    path = folder / "model.safetensors"
    save_file({rename(name): weight for name, weight in load_file(path).items()}, path, {"format": "pt"})


def random_frames(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
