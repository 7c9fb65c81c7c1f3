"""Where the layers of a model go, if it has several devices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from pvlm_protocols.backend import BackendError


def place_layers(
    before: int, layers: Sequence[int], after: int, devices: Sequence[torch.device]
) -> tuple[torch.device, ...]:
    """Choose a device for each layer of a model, in order, so that all devices hold about the same.

    The model is a line that is cut into equal parts. A layer goes to the part in which its middle lies.

    Args:
        before: size of the embeddings and the vision tower, which are on the first device; in bytes or in numbers.
        layers: size of each layer, in the same unit.
        after: size of the head, which is on the last device.
        devices: the devices, in order.

    Raises:
        BackendError: there are more devices than layers.
    """
    if len(devices) > len(layers):
        names = ",".join(map(str, devices))
        raise BackendError(f"{len(devices)} devices ({names}) are more than the model's {len(layers)} layers")
    total = before + sum(layers) + after
    starts = accumulate(layers, initial=before)
    middles = [start + size / 2 for start, size in zip(starts, layers, strict=False)]
    return tuple(devices[min(int(middle * len(devices) / total), len(devices) - 1)] for middle in middles)
