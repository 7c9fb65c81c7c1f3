"""What runs below a test."""

from __future__ import annotations

from multiprocessing import resource_tracker

import psutil


def children() -> list[psutil.Process]:
    """Processes below this one, zombies included, but for Python's own that stays once multiprocessing was used."""
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    return [child for child in psutil.Process().children(recursive=True) if child.pid != tracker]
