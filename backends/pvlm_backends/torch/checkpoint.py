"""Weights on disk: memory-mapped safetensors, in one file or several, under one set of names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pvlm_protocols.backend import CheckpointError

from ..processing.files import read_optional_settings

# The names of each transformers version, prefix by prefix, to those of its version 5 modules without "model.".
_RENAMES = (
    ("model.", ""),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "language_model."),
    ("vision_tower.vision_model.", "vision_tower."),
)


class Checkpoint:
    """The weights of a checkpoint's folder.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the files that it names.
        dtype: what weights are converted to.
        device: where they go.
        on_progress: gets the fraction of the weights that were taken.

    Raises:
        CheckpointError: there are no safetensors, or they are damaged.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        self.folder = folder
        self._dtype = dtype
        self._device = device
        self._on_progress = on_progress
        self._places: dict[str, tuple[Any, str]] = {}
        for path in _weight_files(folder):
            try:
                file = safe_open(str(path), framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from error
            for name in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 (not a dict)
                self._places[_canonical(name)] = (file, name)
        self._taken: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @property
    def parameters(self) -> int:
        """Numbers in the weights taken so far."""
        return sum(self._taken.values())

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """A weight by its canonical name. Raises CheckpointError where it is missing or of another shape."""
        if name not in self._places:
            raise CheckpointError(f"{self.folder} holds no weight {name!r}")
        file, stored_name = self._places[name]
        try:
            weight: torch.Tensor = file.get_tensor(stored_name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder}: weight {stored_name!r} cannot be read: {error}") from error
        if weight.shape != shape:
            raise CheckpointError(
                f"{self.folder}: weight {stored_name!r} has shape {tuple(weight.shape)}; config.json says {shape}"
            )
        self._taken[name] = weight.numel()
        if self._on_progress is not None:
            self._on_progress(len(self._taken) / len(self._places))
        return weight.to(self._device, self._dtype)


def _weight_files(folder: Path) -> list[Path]:
    index = read_optional_settings(folder, "model.safetensors.index.json")
    if index is not None:
        names = sorted(set((index.get("weight_map") or {}).values()))
        paths = [folder / name for name in names]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which model.safetensors.index.json names")
        if paths:
            return paths
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if pickled := sorted(path.name for path in folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder} holds weights as pickle only ({pickled[0]}), which can run any code when loaded; convert them "
            "to safetensors, or let the 'hf' backend read them with allow_pickle"
        )
    raise CheckpointError(f"{folder} holds no weights (model.safetensors)")


def _canonical(name: str) -> str:
    for prefix, replacement in _RENAMES:
        if name.startswith(prefix):
            name = replacement + name[len(prefix) :]
    return name
