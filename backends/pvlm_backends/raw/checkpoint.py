"""A checkpoint's weights under one set of names, whoever saved them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from pvlm_protocols.backend import CheckpointError

from ..processing.files import WEIGHTS_INDEX
from ..weights import WeightFiles

# The names of each transformers version, prefix by prefix, to those of its version 5 modules without "model.".
_RENAMES = (
    ("model.", ""),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "language_model."),
    ("vision_tower.vision_model.", "vision_tower."),
    # Qwen2.5-VL as released: the text model's parts stand beside "visual.".
    ("layers.", "language_model.layers."),
    ("embed_tokens.", "language_model.embed_tokens."),
    ("norm.", "language_model.norm."),
)


class WeightSource(ABC):
    """Weights by their canonical names.

    A weight that stays as it is stored is taken; parts of a fused one are filled into what `empty` gives, so that no
    weight is in memory twice::

        fused = weights.empty(width, 2 * inner)                  # stored (in, out)
        weights.fill(fused[:, :inner].t(), "mlp.gate_proj.weight")
        weights.fill(fused[:, inner:].t(), "mlp.up_proj.weight")

    Args:
        folder: where they come from.
        dtype: what weights are converted to.
        device: where they go unless another device is given.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.folder = folder
        self._dtype = dtype
        self._device = device
        self._taken: dict[str, int] = {}

    @property
    def parameters(self) -> int:
        """Numbers in the weights taken so far."""
        return sum(self._taken.values())

    def empty(self, *shape: int, device: torch.device | None = None) -> torch.Tensor:
        """Room for weights."""
        return torch.empty(shape, dtype=self._dtype, device=self._device if device is None else device)

    def take(self, name: str, *shape: int, device: torch.device | None = None) -> torch.Tensor:
        """A weight by its canonical name. Raises CheckpointError where it is missing or of another shape."""
        weight = self.empty(*shape, device=device)
        self.fill(weight, name)
        return weight

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def numel(self, prefix: str = "") -> int:
        """Numbers in all stored weights whose canonical names start with ``prefix``."""

    @abstractmethod
    def fill(self, destination: torch.Tensor, name: str, *shape: int) -> None:
        """Copy a weight into ``destination``, a view of what `empty` gave: a part of it, transposed, permuted.

        Args:
            destination: of the weight's shape; or its leading dimensions split the weight's first one, as heads do.
            name: canonical.
            shape: the weight's own, where the destination splits it.

        Raises:
            CheckpointError: the weight is missing, of another shape or dtype, or cannot be read.
        """


class Checkpoint(WeightSource):
    """The weights of a checkpoint's folder.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the files that it names.
        dtype: what weights are converted to.
        device: where they go unless another device is given.
        on_progress: gets the fraction of the bytes that were read.

    Raises:
        CheckpointError: there are no safetensors, they are damaged, or files are missing.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__(folder, dtype, device)
        self._files = WeightFiles(folder, on_progress)
        self._stored_names = {_canonical(name): name for name in self._files}

    def __contains__(self, name: str) -> bool:
        return name in self._stored_names

    def numel(self, prefix: str = "") -> int:
        """See `WeightSource.numel`."""
        return sum(self._files[stored].numel for name, stored in self._stored_names.items() if name.startswith(prefix))

    def fill(self, destination: torch.Tensor, name: str, *shape: int) -> None:
        """See `WeightSource.fill`."""
        if name not in self._stored_names:
            self._raise_missing(name)
        self._files.fill(destination, self._stored_names[name], *shape)
        self._taken[name] = destination.numel()

    def _raise_missing(self, name: str) -> NoReturn:
        for stored_name, file in self._files.lacking.items():
            if _canonical(stored_name) == name:
                raise CheckpointError(
                    f"{self.folder / file} lacks the weight {stored_name!r}, which {WEIGHTS_INDEX} has there"
                )
        raise CheckpointError(f"{self.folder} holds no weight {name!r}")


def _canonical(name: str) -> str:
    for prefix, replacement in _RENAMES:
        if name.startswith(prefix):
            name = replacement + name[len(prefix) :]
    return name
