"""Checks and choices that every plug-in over torch makes when it loads a model or opens a prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate

import torch

from pvlm_protocols.backend import BackendError, LoadOptions, PromptError

from .processing import PreparedPrompt

RANDOM_WEIGHTS = "random_weights"
"""Extra option: the folder's weights, if there are any, are not read; random ones take their place. For timing."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_devices(options: LoadOptions) -> tuple[torch.device, ...]:
    """The devices of ``options``, separated by commas there; also sets this process's number of threads, where one is
    asked for.

    Raises:
        BackendError: there is no such device.
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


def place_layers(
    before: int, layers: Sequence[int], after: int, devices: Sequence[torch.device]
) -> tuple[torch.device, ...]:
    """A device for each layer of a model, in order, so that all devices hold about the same.

    The model is laid out as a line and cut into equal parts; a layer goes where its middle lies.

    Args:
        before: size of what is on the first device anyway, embeddings and vision tower; in bytes or in numbers.
        layers: size of each layer.
        after: size of what is on the last device, the head.
        devices: where to.

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


def choose_dtype(options: LoadOptions, device: torch.device, checkpoint_dtype: str) -> torch.dtype:
    """The dtype of ``options``; for ``auto``, float32 on the CPU and the checkpoint's own elsewhere.

    Raises:
        BackendError: there is no such dtype.
    """
    name = options.dtype
    if name == "auto":
        name = "float32" if device.type == "cpu" else checkpoint_dtype
    if name not in _DTYPES:
        raise BackendError(f"dtype {name!r} is not supported; supported: auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def check_extra_options(options: LoadOptions, known: Collection[str] = ()) -> None:
    """Raise BackendError for an option that the plug-in does not know."""
    if unknown := sorted(set(options.extra) - set(known)):
        raise BackendError(f"unknown backend option {unknown[0]!r}; known: {', '.join(known) or 'none'}")


def check_positions(prompt: PreparedPrompt, capacity: int, max_positions: int) -> None:
    """Raise PromptError where prompt and answer exceed the model's positions."""
    # Three-axis positions count time: a long video of few tokens may reach further than its tokens do.
    taken = max(len(prompt), prompt.next_position)
    if taken + capacity > max_positions:
        raise PromptError(
            f"the prompt takes {taken} positions ({prompt.video_tokens} of its {len(prompt)} tokens are the video's) "
            f"and {capacity} are reserved for the answer: {taken + capacity} exceed the model's {max_positions}; "
            "sample fewer frames or lower max_tokens"
        )
