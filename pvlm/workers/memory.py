"""How much memory kept prefixes may take, where no setting says it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

HOST_SHARE = 10
"""Kept prefixes may take this part of the host's memory: a tenth."""
DEVICE_SHARE = 4
"""And on a GPU a quarter of what the model leaves free."""

_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Of a container."""


def host_bytes() -> int:
    """Memory of this host, or of the container that this process is in."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # another system, or no limit ("max")
        most = min(most, int(_LIMIT.read_text()))
    return most


def kept_bytes(setting: int | None, devices: str = "cpu") -> int:
    """Resolve `EngineConfig.prefix_cache_bytes`. Call it when the model is loaded.

    Args:
        setting: the bytes; None: by the memory of the devices.
        devices: of the model, separated by commas.
    """
    if setting is not None:
        return setting
    names = devices.split(",")
    if not all(name.startswith("cuda") for name in names):
        return host_bytes() // HOST_SHARE
    import torch

    return sum(torch.cuda.mem_get_info(name)[0] for name in names) // DEVICE_SHARE
