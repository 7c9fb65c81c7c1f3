"""The weights of a checkpoint on disk: safetensors in one file or several, read through a small mapped window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pvlm_protocols.backend import CheckpointError

from .processing.files import WEIGHTS, WEIGHTS_INDEX, check_no_pointer, missing_part, weight_map

_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}

_SLICE_BYTES = 2 << 20
"""Copied at a time: small enough for temporaries, with enough rows for a transposed copy to use the caches."""
_MAPPED_BYTES = 16 << 20
"""A file is mapped anew after so many bytes, because its pages count as resident until it is unmapped."""

_PROGRESS_STEP = 0.002


@dataclass(frozen=True)
class StoredWeight:
    """A weight that is not read yet."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: F32, BF16, F16."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * _ITEM_BYTES.get(self.dtype, 0)


class WeightFiles:
    """The weights by their stored names, copied in slices to their final place.

    Reading needs `_MAPPED_BYTES` beside the memory of the loaded weights, and no second copy. An object is not
    thread-safe.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the files that it names.
        on_progress: called with the fraction of the bytes that were read.

    Raises:
        CheckpointError: the folder has no safetensors, or they are damaged or incomplete.
    """

    def __init__(self, folder: Path, on_progress: Callable[[float], None] | None = None) -> None:
        self.folder = folder
        self._on_progress = on_progress
        self._weights: dict[str, StoredWeight] = {}
        index = weight_map(folder)
        for path in _weight_files(folder, set(index.values())):
            file = _open(path)
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if index.get(name, path.name) != path.name:  # a stale copy
                    continue
                described = file.get_slice(name)
                self._weights[name] = StoredWeight(path, tuple(described.get_shape()), described.get_dtype())
        self.lacking = {name: file for name, file in index.items() if name not in self._weights}
        """Weights that the index names and no file holds, each with the file that should hold it."""
        self._total = sum(weight.nbytes for weight in self._weights.values())
        self._read = self._reported = 0
        self._mapped: tuple[Path, Any] | None = None
        self._mapped_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __getitem__(self, name: str) -> StoredWeight:
        return self._weights[name]

    def fill(self, destination: torch.Tensor, name: str, *shape: int) -> None:
        """Copy a weight into ``destination``, which may have any strides, dtype and device.

        Args:
            destination: has the weight's shape; or its leading dimensions split the weight's first one.
            name: as stored.
            shape: the weight's expected shape; by default the destination's.

        Raises:
            CheckpointError: the weight has another shape or no floating-point dtype, or cannot be read.
        """
        weight = self._weights[name]
        if weight.shape != (shape or tuple(destination.shape)):
            raise CheckpointError(
                f"{self.folder}: weight {name!r} has shape {weight.shape}; "
                f"config.json says {shape or tuple(destination.shape)}"
            )
        if weight.dtype not in _ITEM_BYTES:
            raise CheckpointError(
                f"{self.folder}: weight {name!r} is stored as {weight.dtype}; only {', '.join(_ITEM_BYTES)} are "
                "supported, so a quantised checkpoint is not"
            )
        split = weight.shape[0] // len(destination)  # rows of the file in one of the destination
        step = max(1, _SLICE_BYTES * len(destination) // max(1, weight.nbytes))
        for start in range(0, len(destination), step):
            place = destination[start : start + step]
            part = self._slice(name, weight, start * split, (start + len(place)) * split)
            place.copy_(part.to(place.device).view(place.shape))
            self._report(part.nbytes)

    def _slice(self, name: str, weight: StoredWeight, start: int, stop: int) -> torch.Tensor:
        if self._mapped is None or self._mapped[0] != weight.path or self._mapped_bytes >= _MAPPED_BYTES:
            self._mapped = None  # unmaps the old one first
            self._mapped = (weight.path, _open(weight.path))
            self._mapped_bytes = 0
        try:
            part: torch.Tensor = self._mapped[1].get_slice(name)[start:stop]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{weight.path}: weight {name!r} cannot be read: {error}") from error
        self._mapped_bytes += part.nbytes
        return part

    def _report(self, count: int) -> None:
        self._read += count
        if self._on_progress is not None and self._read - self._reported >= self._total * _PROGRESS_STEP:
            self._reported = self._read
            self._on_progress(min(1.0, self._read / self._total))  # a weight may be read twice


def _open(path: Path) -> Any:
    try:
        check_no_pointer(path)
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _weight_files(folder: Path, names: set[str]) -> list[Path]:
    if missing := [name for name in sorted(names) if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {WEIGHTS_INDEX} names")
    if names:
        return [folder / name for name in sorted(names)]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if pickled := sorted(path.name for path in folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder} holds weights as pickle only ({pickled[0]}), which can run any code when loaded; convert them "
            "to safetensors, or, if you trust their source, let the backend 'hf' read them with allow_pickle"
        )
    raise missing_part(folder, f"weights ({WEIGHTS})")
