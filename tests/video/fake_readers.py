"""Readers that do what no reader should; loaded in the decoder process by import path."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class WellBehaved:
    num_frames = 10
    fps = 10.0
    timestamps = None

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, indices: Sequence[int]) -> np.ndarray:
        return np.stack([np.full((4, 6, 3), index, np.uint8) for index in indices])

    def finish(self) -> None:
        pass


class Sleeping(WellBehaved):
    """Writes its process id into the file that it is to read, and sleeps."""

    def read(self, indices: Sequence[int]) -> np.ndarray:
        Path(self.path).write_text(str(os.getpid()))
        time.sleep(60)
        return super().read(indices)


class Crashing(WellBehaved):
    def read(self, indices: Sequence[int]) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGSEGV)
        return super().read(indices)


class Leaving(WellBehaved):
    def read(self, indices: Sequence[int]) -> np.ndarray:
        sys.stderr.write("so long")
        sys.stderr.flush()
        os._exit(7)


class Failing(WellBehaved):
    def read(self, indices: Sequence[int]) -> np.ndarray:
        raise RuntimeError(f"frames {list(indices)} are not to my taste")


class Printing(WellBehaved):
    """Prints to both streams, far more than a pipe holds."""

    def read(self, indices: Sequence[int]) -> np.ndarray:
        sys.stdout.write("x" * 500_000)
        sys.stderr.write("y" * 500_000)
        return super().read(indices)


class Short(WellBehaved):
    def read(self, indices: Sequence[int]) -> np.ndarray:
        return super().read(indices)[:-1]


class Wide(WellBehaved):
    def read(self, indices: Sequence[int]) -> np.ndarray:
        return np.zeros((len(indices), 1000, 1000, 3), np.uint8)


class Hungry(WellBehaved):
    """Asks for more memory than frames may take, and never uses it."""

    def read(self, indices: Sequence[int]) -> np.ndarray:
        assert np.empty(13 << 30, np.uint8).size
        return super().read(indices)


class Long(WellBehaved):
    num_frames = 20_000
    fps = 100.0


class Broad(WellBehaved):
    def read(self, indices: Sequence[int]) -> np.ndarray:
        return np.zeros((len(indices), 2, 20_000, 3), np.uint8)


class Empty(WellBehaved):
    num_frames = 0


class Timeless(WellBehaved):
    fps = None  # type: ignore[assignment]


class Huge(WellBehaved):
    frame_size = (16_000, 16_000)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        raise AssertionError("a frame was decoded")


class Chatting(WellBehaved):
    """Writes to the socket to the parent."""

    def read(self, indices: Sequence[int]) -> np.ndarray:
        for name in os.listdir("/proc/self/fd"):
            if "socket" in os.readlink(f"/proc/self/fd/{name}") if os.path.exists(f"/proc/self/fd/{name}") else False:
                os.write(int(name), b'["bytes", -5]\n')
        return super().read(indices)
