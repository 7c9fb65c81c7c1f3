"""How a model on the CPU shares its core with who coordinates it."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

SLICE_S = 0.05
"""Linux takes 0.1 to 100 ms. Its default is 1 to 3 ms."""

_GET = {"x86_64": 315, "aarch64": 275}
_SET = {"x86_64": 314, "aarch64": 274}
"""Numbers of sched_getattr and sched_setattr, which the C library has by name since glibc 2.41 only."""


class _Attributes(ctypes.Structure):
    """``struct sched_attr`` in its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("slice_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


def take_long_slices(slice_s: float = SLICE_S) -> bool:
    """Have this thread, and those that it starts, take the core for longer at a time. Returns whether that was done.

    A process that wakes up interrupts one on its core if that one's slices are longer than its own (Linux 6.12 and
    newer; older kernels ignore it). So the engine, which has no core to itself where two models take them all, need
    not wait until a model's slice is over before it can send a window on. The model's share of the core stays the same.
    """
    if (attributes := _attributes(0)) is None or attributes.policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return False
    attributes.slice_ns = round(slice_s * 1e9)
    return _call(_SET, 0, attributes, 0) == 0


def slice_of(thread: int) -> float | None:
    """A thread's slices in seconds (0: this thread's), None where the system does not report it."""
    attributes = _attributes(thread)
    return None if attributes is None else attributes.slice_ns / 1e9


def _attributes(thread: int) -> _Attributes | None:
    attributes = _Attributes()
    size = ctypes.sizeof(attributes)
    return attributes if _call(_GET, thread, attributes, size, 0) == 0 else None


def _call(numbers: Mapping[str, int], thread: int, attributes: _Attributes, *more: int) -> int:
    """0, or -1 where there is no such system call, or it is not allowed."""
    number = numbers.get(platform.machine())
    if number is None:
        return -1
    result: int = ctypes.CDLL(None).syscall(number, thread, ctypes.byref(attributes), *more)
    return result
