"""Models on the CPU take their cores for long, so that their engine gets a word in."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from pvlm import Engine
from pvlm.workers.process import WorkerSpec, run_worker
from pvlm.workers.scheduling import SLICE_S, slice_of, take_long_slices
from tests.coordination.harness import Mailbox
from tests.support.pair import PAIR
from tests.workers.conftest import workers

changeable = pytest.mark.skipif(not slice_of(0), reason="this kernel has no time slices that can be chosen")


@changeable
@pytest.mark.anyio
@pytest.mark.usefixtures("_nothing_left")
async def test_models_take_longer_slices_than_their_engine() -> None:
    before = slice_of(0)
    async with Engine.create(PAIR):
        assert [slice_of(process.pid) for process in workers().values()] == [SLICE_S, SLICE_S]
        assert slice_of(0) == before, "this process is not pvlm's to change"


@changeable
@pytest.mark.anyio
@pytest.mark.usefixtures("_nothing_left")
async def test_a_target_without_cores_of_its_own_gives_way_to_nobody() -> None:
    """After a hit it goes on at once. Its draft gives way: what it has just sent is to be forwarded."""
    async with Engine.create({**PAIR, "affinity": (), "draft_affinity": ()}) as engine:
        found = {role: slice_of(pid) for role, pid in engine.processes.items()}
    assert found["draft"] == SLICE_S
    assert found["target"] == slice_of(0)


@changeable
def test_of_a_thread_nothing_else_is_changed() -> None:
    seen: list[float | None] = []

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 5)  # Linux: of this thread
        assert take_long_slices(0.02)
        seen.extend([slice_of(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [0.02, 5, os.SCHED_OTHER]
    assert slice_of(0) != 0.02


def test_where_there_is_no_such_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert slice_of(0) is None
    assert not take_long_slices()


def test_what_a_worker_imports_is_left_out_of_garbage_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it loads its model; what loading leaves behind is collected."""
    frozen: list[int] = []

    def load(*_: object) -> None:
        frozen.append(gc.get_freeze_count())
        raise RuntimeError("no model here")

    for name in ("leave_with_parent", "take_long_slices"):
        monkeypatch.setattr(f"pvlm.workers.process.{name}", lambda: None)
    monkeypatch.setattr("pvlm.workers.process.connect", lambda _: Mailbox())
    monkeypatch.setattr("pvlm.workers.process.load_backend", load)
    before = gc.get_freeze_count()
    assert run_worker("draft", WorkerSpec(model="none", backend="torch", connect="ipc://nowhere")) == 1
    assert gc.isenabled()
    assert frozen[0] > before
