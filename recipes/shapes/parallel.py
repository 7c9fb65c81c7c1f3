"""Several training processes with one thread each, which share every step.

On a busy machine this wastes less than threads do: the processes wait for each other once a step,
threads at every operation.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed, multiprocessing, nn

_PATIENCE = timedelta(days=1)  # a stopped run (SIGSTOP) must not fail when it continues


def run(work: Callable[[Any], None], argument: Any, count: int) -> None:
    """Do the work in this process, or in ``count`` new ones; SIGTERM is passed on to them.

    The work must be importable by name, as new processes do not see the main module's functions.
    """
    if count == 1:
        work(argument)
        return
    with TemporaryDirectory() as folder:
        arguments = (work, argument, count, Path(folder) / "meeting")
        context = multiprocessing.start_processes(_work_as_one, arguments, count, join=False)

        def pass_on(*_: object) -> None:
            for process in context.processes:
                process.terminate()

        signal.signal(signal.SIGTERM, pass_on)
        while not context.join():
            pass


def _work_as_one(rank: int, work: Callable[[Any], None], argument: Any, count: int, meeting_place: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    join(rank, count, meeting_place)
    work(argument)


def join(rank: int, processes: int, meeting_place: Path) -> None:
    """Become one of ``processes``; they meet by a file that does not exist before."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=processes,
        timeout=_PATIENCE,
    )


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process; the first one, 0, reports and saves."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def first_says(value: float) -> float:
    """The first process's value."""
    if processes() == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64)
    distributed.broadcast(box, 0)
    return box.item()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' tensors, in place."""
    if processes() > 1:
        distributed.all_reduce(tensor)
    return tensor


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over the processes."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = total(torch.cat([gradient.flatten() for gradient in gradients])) / processes()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
