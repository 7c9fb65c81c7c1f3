"""A checkpoint's weights under canonical names: those of transformers 5's modules, without ``model.``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from pvlm_protocols.backend import CheckpointError

from .processing.files import WEIGHTS_INDEX
from .weights import WeightFiles


class WeightSource(ABC):
    """Weights by their canonical names.

    `take` returns a weight as it is stored. `fill` copies the parts of a fused weight into a tensor of `empty`, so that
    no weight is in memory twice::

        fused = weights.empty(width, 2 * inner)                  # stored (in, out)
        weights.fill(fused[:, :inner].t(), "mlp.gate_proj.weight")
        weights.fill(fused[:, inner:].t(), "mlp.up_proj.weight")

    Args:
        dtype: of the loaded weights.
        device: where they go unless another device is given.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._taken: dict[str, int] = {}

    @property
    def parameters(self) -> int:
        """Numbers in the weights loaded so far."""
        return sum(self._taken.values())

    def empty(self, *shape: int, device: torch.device | None = None) -> torch.Tensor:
        """An uninitialised tensor of this shape, for `fill`."""
        return torch.empty(shape, dtype=self._dtype, device=self._device if device is None else device)

    def take(self, name: str, *shape: int, device: torch.device | None = None) -> torch.Tensor:
        """Return a weight. Raises CheckpointError if it is missing or has another shape."""
        weight = self.empty(*shape, device=device)
        self.fill(weight, name)
        return weight

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def numel(self, prefix: str = "") -> int:
        """Count the numbers in all stored weights whose canonical names start with ``prefix``."""

    @abstractmethod
    def fill(self, destination: torch.Tensor, name: str, *shape: int) -> None:
        """Copy a weight into ``destination``, which may be any view of a tensor of `empty`.

        Args:
            destination: has the weight's shape; or its leading dimensions split the weight's first one, as heads do.
            name: canonical.
            shape: the weight's own, if the destination splits it.

        Raises:
            CheckpointError: the weight is missing, of another shape or dtype, or cannot be read.
        """


class Checkpoint(WeightSource):
    """The weights of a checkpoint's folder.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the files that it names.
        prefixes: stored prefixes of names, each with its canonical one. They are replaced one after another.
        dtype: of the loaded weights.
        device: where they go unless another device is given.
        on_progress: called with the fraction of the bytes that were read.

    Raises:
        CheckpointError: the folder has no safetensors, or they are damaged or incomplete.
    """

    def __init__(
        self,
        folder: Path,
        prefixes: Sequence[tuple[str, str]],
        dtype: torch.dtype,
        device: torch.device,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__(dtype, device)
        self._folder = folder
        self._prefixes = prefixes
        self._files = WeightFiles(folder, on_progress)
        self._stored_names = {self._canonical(name): name for name in self._files}

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
            if self._canonical(stored_name) == name:
                raise CheckpointError(
                    f"{self._folder / file} lacks the weight {stored_name!r}, which {WEIGHTS_INDEX} has there"
                )
        raise CheckpointError(f"{self._folder} holds no weight {name!r}")

    def _canonical(self, name: str) -> str:
        for prefix, replacement in self._prefixes:
            if name.startswith(prefix):
                name = replacement + name[len(prefix) :]
        return name
