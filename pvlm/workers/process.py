"""A worker process that an engine starts: ``pvlm worker --role draft ... --life-line``. It connects, loads one model,
and serves until told to stop. `pvlm.workers.remote_worker` has those that people start.
"""

from __future__ import annotations

import gc
import os

import msgspec

from pvlm.actors.failure import dying
from pvlm.actors.mark import Mark, SharedMark
from pvlm.children import leave_with_parent
from pvlm.transports.sockets import connect
from pvlm.workers.factory import load_backend, make_actor
from pvlm.workers.memory import kept_bytes
from pvlm.workers.scheduling import take_long_slices
from pvlm_protocols.backend import LoadOptions, Role


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker is started with, beside its role."""

    model: str
    backend: str
    connect: str
    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    affinity: tuple[int, ...] = ()
    """Cores to stay on; empty: any."""
    trust_remote_code: bool = False
    allow_pickle: bool = False
    prefix_cache_bytes: int | None = None
    """For kept prefixes; None: by memory."""
    keys: str | None = None
    """Directory made by ``pvlm keys new``, for an engine on another host."""
    life_line: bool = True
    """Leave when standard input ends, as engines that start it want it; else a person has, and it stays."""
    mark: int | None = None
    """Descriptor of the memory where an engine that starts it reads the mark of its actor."""

    def load_options(self, role: Role) -> LoadOptions:
        return LoadOptions(
            model=self.model,
            role=role,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )

    def arguments(self, role: Role) -> list[str]:
        """The command line by which an engine starts it. What a person looks for in ``ps`` comes first."""
        arguments = [
            "--role",
            role,
            "--model",
            self.model,
            "--backend",
            self.backend,
            "--connect",
            self.connect,
        ]
        arguments += ["--device", self.device, "--dtype", self.dtype]
        if self.threads is not None:
            arguments += ["--threads", str(self.threads)]
        if self.affinity:
            arguments += ["--affinity", ",".join(map(str, self.affinity))]
        if self.trust_remote_code:
            arguments.append("--trust-remote-code")
        if self.allow_pickle:
            arguments.append("--allow-pickle")
        if self.prefix_cache_bytes is not None:
            arguments += ["--prefix-cache-bytes", str(self.prefix_cache_bytes)]
        if self.mark is not None:
            arguments += ["--mark", str(self.mark)]
        return [*arguments, "--life-line"]


def run_worker(role: Role, spec: WorkerSpec) -> int:
    """Serve until `Stop`. Returns the exit status: 0 after `Stop`, 1 if the model could not be loaded or the actor
    failed.
    """
    leave_with_parent()
    if spec.affinity:
        os.sched_setaffinity(0, spec.affinity)
    # A target without cores of its own may share one with the engine. It goes on at once after a verdict whose outcome
    # is prepared, so a long slice would keep the engine from hearing of it.
    if spec.device == "cpu" and (spec.affinity or role == "draft"):
        take_long_slices()
    mark = _mark(spec)
    mailbox = connect(spec.connect)
    import_for_good()
    try:
        backend, info = load_backend(spec.backend, spec.load_options(role), mailbox.post)
    except Exception as error:
        mailbox.post(dying(role, error))
        mailbox.close()
        return 1
    try:
        make_actor(role, backend, mailbox, info, mark, kept_bytes(spec.prefix_cache_bytes, info.device)).run()
    except Exception:
        return 1  # the actor has told the engine
    finally:
        mailbox.close()
        backend.close()
    return 0


def import_for_good() -> None:
    """Import what each worker needs, and leave it out of all garbage collections of this process.

    A worker starts and ends in a fifth less of processor time, and a collection between two tokens is short.
    """
    gc.disable()
    import pvlm.actors.draft
    import pvlm.actors.target  # noqa: F401

    gc.freeze()
    gc.enable()


def _mark(spec: WorkerSpec) -> Mark:
    if spec.mark is None:
        return Mark()
    mark = SharedMark(spec.mark)
    os.close(spec.mark)
    return mark
