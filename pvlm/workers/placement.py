"""Which cores an actor runs on, and the worker specification that follows."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pvlm.config import EngineConfig
from pvlm.workers.process import WorkerSpec
from pvlm_protocols.backend import Role


def share_cores(cores: Sequence[int], role: Role, *, alone: bool) -> tuple[int, ...]:
    """The cores of an actor: the target alone has all; else the draft has a quarter, at least one, and the target the
    rest.

    Both on one core, if there is only one.
    """
    if alone or len(cores) < 2:
        return tuple(cores)
    for_draft = max(1, len(cores) // 4)
    return tuple(cores[-for_draft:] if role == "draft" else cores[:-for_draft])


def worker_spec(config: EngineConfig, role: Role, model: str, backend: str, *, alone: bool) -> WorkerSpec:
    """What the worker of a role is started with. ``alone``: there is no other on this host.

    Actors on a CPU get cores and as many threads; in one process (transport inproc), where both are the host
    application's, only threads that were asked for.
    """
    is_draft = role == "draft"
    device = (config.draft_device if is_draft else None) or config.device
    threads = config.draft_threads if is_draft else config.threads
    affinity = config.draft_affinity if is_draft else config.affinity
    if config.transport == "inproc":
        affinity = ()
    elif device == "cpu":
        if affinity is None:
            affinity = share_cores(sorted(os.sched_getaffinity(0)), role, alone=alone)
        threads = threads or len(affinity) or None
    return WorkerSpec(
        model=model,
        backend=backend,
        connect="",
        device=device,
        dtype=(config.draft_dtype if is_draft else None) or config.dtype,
        threads=threads,
        affinity=affinity or (),
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        prefix_cache_bytes=config.prefix_cache_bytes,
    )
