"""The load options that every plug-in over torch reads: devices, dtype, and extra options."""

from __future__ import annotations

from collections.abc import Collection

import torch

from pvlm_protocols.backend import BackendError, LoadOptions

RANDOM_WEIGHTS = "random_weights"
"""Extra option, for timing: use random weights and read none of the folder's."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_devices(options: LoadOptions) -> tuple[torch.device, ...]:
    """Return the devices of ``options``, and set torch's number of threads if ``options`` names one.

    Raises:
        BackendError: a device is unknown or cannot be used.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return tuple(_device(name.strip()) for name in options.device.split(","))


def _device(name: str) -> torch.device:
    if not name:
        raise BackendError("device has an empty name: separate several by single commas, as in 'cuda:0,cuda:1'")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that CUDA was compiled in
        raise BackendError(f"device {name!r} cannot be used: {error}") from error
    return device


def choose_dtype(options: LoadOptions, device: torch.device, checkpoint_dtype: str) -> torch.dtype:
    """Return the dtype of ``options``. For ``auto`` it is float32 on the CPU, and the checkpoint's own elsewhere.

    Raises:
        BackendError: the dtype is not supported.
    """
    name = options.dtype
    if name == "auto":
        name = "float32" if device.type == "cpu" else checkpoint_dtype
    if name not in _DTYPES:
        raise BackendError(f"dtype {name!r} is not supported; supported: auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def check_extra_options(options: LoadOptions, known: Collection[str] = ()) -> None:
    """Raise BackendError for an extra option that is not among ``known``."""
    if unknown := sorted(set(options.extra) - set(known)):
        raise BackendError(f"unknown backend option {unknown[0]!r}; known: {', '.join(known) or 'none'}")
