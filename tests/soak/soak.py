"""A soak: mixed answers on one engine for a long time, while its workers are killed now and then."""

from __future__ import annotations

import gc
import math
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass

import anyio
import msgspec
import psutil
from prometheus_client import CollectorRegistry

from pvlm import ActorHealth, Engine
from pvlm.telemetry.prometheus import PrometheusMetrics
from pvlm_protocols.backend import Role
from tests.soak.asking import STREAM_IDLE_S, Asking, cases
from tests.soak.watching import WORKER_WARM_UP_S, Growth, Sample, Watch, growths
from tests.support.processes import children

CALLERS = 6
MAX_SESSIONS = 4
PATIENCE_S = 120.0
"""The longest time for an answer, and for the return of a killed worker; longer is a hang."""


FREED_S = 30.0
"""The longest time after the last answer until both models are free of it."""


@dataclass(frozen=True)
class Plan:
    """``kill_pause_s``: shortest and longest pause between two kills, the logarithm of which is uniform: so some
    workers are killed while they start, and some live long enough to be seen growing.
    """

    seconds: float = 1800.0
    seed: int = 0
    rest_every_s: float = 10.0
    kill_pause_s: tuple[float, float] = (3.0, 300.0)
    host_warm_up_s: float = 300.0
    cases: int | None = None
    """How many of `asking.cases`; None: all."""


class Report(msgspec.Struct, kw_only=True):
    """What came of it. ``wrong`` and ``leaked`` are empty if all is well."""

    seed: int
    seconds: float
    answers: int
    outcomes: dict[str, int]
    compared: dict[str, int]
    """Answers that were compared with their reference."""
    wrong: list[str]
    leaked: list[str]
    kills: dict[str, list[float]]
    """When, in seconds, by role."""
    restarts: dict[str, int]
    faults: dict[str, int]
    growth: list[Growth]
    samples: list[Sample]


async def soak(plan: Plan) -> Report:
    """Seeded, but what happens when is up to the machine."""
    registry = CollectorRegistry()
    config = {
        "max_sessions": MAX_SESSIONS,
        "stream_idle_timeout_s": STREAM_IDLE_S,
        "threads": 1,
        "draft_threads": 1,
        "draft_restarts": 1_000_000,  # they count restarts in a row, and a worker may be killed within seconds
        "target_restarts": 1_000_000,
    }
    async with Engine.create(config, metrics=PrometheusMetrics(registry)) as engine:
        soaking = _Soaking(engine, plan, registry)
        await soaking.run()
        restarts = {role: health.restarts for role, health in (await engine.health()).items()}
    soaking.nothing_is_left()
    asking = soaking.asking
    samples = soaking.watch.samples
    return Report(
        seed=plan.seed,
        seconds=soaking.now_s,
        answers=asking.outcomes.total(),
        outcomes=dict(sorted(asking.outcomes.items())),
        compared=dict(sorted(asking.compared.items())),
        wrong=asking.wrong,
        leaked=soaking.leaked,
        kills=soaking.kills,
        restarts=restarts,
        faults=_faults(registry),
        growth=growths(samples, plan.host_warm_up_s, WORKER_WARM_UP_S),
        samples=samples,
    )


class _Soaking:
    def __init__(self, engine: Engine, plan: Plan, registry: CollectorRegistry) -> None:
        self.asking = Asking(engine, cases()[: plan.cases])
        self.watch = Watch()
        self.kills: dict[str, list[float]] = {"target": [], "draft": []}
        self.leaked: list[str] = []
        self._engine = engine
        self._plan = plan
        self._registry = registry
        self._began_s = time.monotonic()
        self._asked = 0
        self._open = anyio.Event()
        """Set while questions may be asked; at rest there is another that is not."""

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def _over(self) -> bool:
        return self.now_s >= self._plan.seconds

    async def run(self) -> None:
        await self.asking.take_references()
        self._began_s = time.monotonic()
        await self._rest()
        async with anyio.create_task_group() as tasks:
            for caller in range(CALLERS):
                tasks.start_soon(self._ask, random.Random(f"{self._plan.seed} {caller}"))
            killer = anyio.CancelScope()
            tasks.start_soon(self._kill, random.Random(f"{self._plan.seed} killer"), killer)
            while not self._over:
                await anyio.sleep(min(self._plan.rest_every_s, self._plan.seconds - self.now_s))
                await self._rest()
            killer.cancel()

    async def _ask(self, rng: random.Random) -> None:
        while not self._over:
            await self._open.wait()
            self._asked += 1
            try:
                with anyio.fail_after(PATIENCE_S):
                    await self.asking.once(rng)
            finally:
                self._asked -= 1

    async def _kill(self, rng: random.Random, scope: anyio.CancelScope) -> None:
        shortest, longest = self._plan.kill_pause_s
        with scope:
            while True:
                await anyio.sleep(math.exp(rng.uniform(math.log(shortest), math.log(longest))))
                await self._open.wait()
                if self._over:  # the last look has been
                    return
                victims: list[Role] = ["target", "draft"]
                if rng.random() > 0.1:
                    victims = [rng.choice(victims)]
                for role in victims:
                    if (pid := self._engine.processes.get(role)) is not None:
                        os.kill(pid, signal.SIGKILL)
                        self.kills[role].append(self.now_s)

    async def _rest(self) -> None:
        """Let every answer come to its end, and look at what is left then.

        A caller that was cancelled twice does not wait until its answer is freed, so that is waited for here.
        """
        self._open = anyio.Event()
        with anyio.fail_after(PATIENCE_S):
            while self._asked or not _all_run(found := await self._engine.health()):
                await anyio.sleep(0.05)
        with anyio.move_on_after(FREED_S):
            while self._places_taken() or any(health.sessions for health in found.values()):
                await anyio.sleep(0.05)
                found = await self._engine.health()
        if taken := self._places_taken():
            self.leaked.append(f"{taken} places of {MAX_SESSIONS} at {self.now_s:.0f} s")
        for role, health in found.items():
            if health.sessions != 0:
                self.leaked.append(f"{health.sessions} sessions at the {role} at {self.now_s:.0f} s: {health}")
        gc.collect()
        self.watch.look(self.now_s, {"host": os.getpid(), **self._engine.processes})
        running = [child for child in children() if "pvlm.video.decoding" not in " ".join(_command(child))]
        if len(running) != 2:
            self.leaked.append(f"{len(running)} processes instead of 2 at {self.now_s:.0f} s: {running}")
        self._open.set()

    def _places_taken(self) -> int:
        return int(self._registry.get_sample_value("pvlm:num_requests_running") or 0)

    def nothing_is_left(self) -> None:
        """Call it when the engine is closed."""
        if left := children():
            self.leaked.append(f"processes are left: {left}")


def _command(process: psutil.Process) -> list[str]:
    """A decoder process waits ahead of need, beside the workers. Empty for a process that has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _all_run(found: dict[Role, ActorHealth]) -> bool:
    return all(health.state == "running" for health in found.values())


def _faults(registry: CollectorRegistry) -> dict[str, int]:
    found: Counter[str] = Counter()
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == "pvlm:faults_total":
                found[f"{sample.labels['kind']} {sample.labels['role']}".strip()] += int(sample.value)
    return dict(sorted(found.items()))
