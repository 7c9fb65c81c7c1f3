"""At least 300 answers in storms: each is the reference's text or a clear error, and nothing hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pvlm.actors.actor import Actor
from tests.chaos.faults import KINDS, Faults, Schedule, WorkerChaos, faulty_connections, faulty_workers, told_by_workers
from tests.chaos.storm import (
    EMULATED,
    Figures,
    Strike,
    add_faults,
    emulated_questions,
    kill,
    poison_draft,
    poison_target,
    references,
    stop,
    storm,
    write,
)
from tests.support.pair import PAIR

pytestmark = pytest.mark.anyio
FAULTS = Schedule(every_s=9.0)
"""At each of three ends, the engine's and the two workers': a connection fault every three seconds."""
RARE_FAULTS = Schedule(every_s=45.0)
"""A fault every fifteen seconds: models that load for eight are otherwise never up together."""
UNKEPT = EMULATED | {"prefix_cache_bytes": 0}
"""Its answers take longer, so that the faults meet them."""
CLIPS = Path(str(files("pvlm") / "bundled" / "clips"))


async def faulty_storm(
    name: str,
    tmp_path: Path,
    settings: dict[str, Any],
    asked: list[dict[str, Any]],
    schedule: Schedule,
    *,
    seed: int,
    shard_s: float = 0.0,
    hangs: float = 0.0,
    only_then: dict[str, Any] | None = None,
    **options: Any,
) -> Figures:
    """A storm over connections that are faulty at both ends. ``only_then``: settings that the references go without."""
    figures = Figures(name=name)
    log = tmp_path / "faults"
    if settings["transport"] == "tcp":  # ZeroMQ reads its streams itself
        kinds = tuple(kind for kind in schedule.kinds if kind != "stream")
        schedule = msgspec.structs.replace(schedule, kinds=kinds)
    armed = tmp_path / "armed"
    faults = Faults(schedule, seed, armed=armed)
    chaos = WorkerChaos(schedule=schedule, seed=seed, log=str(log), armed=str(armed), shard_s=shard_s, hangs=hangs)
    with faulty_workers(chaos, tmp_path / "site"):
        questions = await references(settings, asked)
        log.unlink(missing_ok=True)
        with faulty_connections(faults):
            await storm(
                figures, {**settings, **(only_then or {})}, questions, seed=seed, on_open=armed.touch, **options
            )
    add_faults(figures, faults.counts, told_by_workers(log))
    return figures


def lost_twice(figures: Figures) -> int:
    """Answers that have failed because an actor was lost twice in their work, as kills at random bring it about."""
    lost = sum(times for reason, times in figures.reasons.items() if "was lost # times in the work for" in reason)
    assert lost == figures.outcomes.get("ModelError", 0)
    return lost


def settled(figures: Figures, answers: int) -> None:
    assert figures.wrong == []
    assert figures.answers == sum(figures.outcomes.values()) == answers


@pytest.mark.parametrize(("transport", "answers"), [("ipc", 24), ("tcp", 24)])
async def test_a_short_storm(transport: str, answers: int, tmp_path: Path) -> None:
    """Some of what `make chaos` takes minutes for."""
    settings = {**EMULATED, "transport": transport}
    figures = await faulty_storm(
        f"short {transport}",
        tmp_path,
        settings,
        emulated_questions([40]),
        FAULTS,
        seed=2,  # the engine's end has its first fault within a second
        answers=answers,
        strikes=[kill],
        every_s=6.0,
    )
    settled(figures, answers)
    assert figures.outcomes["exact"] + lost_twice(figures) == answers
    assert figures.faults.keys() & set(KINDS)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("transport", "seed"), [("ipc", 11), ("tcp", 12)])
async def test_workers_are_killed_and_stopped_and_connections_fail(transport: str, seed: int, tmp_path: Path) -> None:
    settings = {**EMULATED, "transport": transport}
    figures = await faulty_storm(
        f"{transport} emulated",
        tmp_path,
        settings,
        emulated_questions(),
        FAULTS,
        seed=seed,
        shard_s=0.5,
        answers=110,
        strikes=[kill, stop],
    )
    write(figures)
    settled(figures, 110)
    assert figures.outcomes["exact"] >= 100


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_the_bundled_pair_in_a_storm(tmp_path: Path) -> None:
    """Real models and files, a slow disk under both; a reader that is too slow is an error that says so."""
    asked = [
        {"video": str(path), "question": "Describe the video.", "options": {"max_tokens": 80, "method": method, **more}}
        for path in sorted(CLIPS.glob("*.mp4"))
        for method, more in [("parallel", {}), ("sd", {}), ("parallel", {"temperature": 1.0, "seed": 3})]
    ]
    figures = await faulty_storm(
        "ipc bundled pair",
        tmp_path,
        {**PAIR, "backend": "slow-torch", "transport": "ipc"},
        asked,
        RARE_FAULTS,
        seed=21,
        shard_s=0.3,
        only_then={"video_reader": "slow", "decode_timeout_s": 8.0},
        answers=50,
        strikes=[kill, stop],
        every_s=4.0,
    )
    add_faults(figures, {"slow-read": figures.outcomes.get("VideoError", 0)})
    write(figures)
    settled(figures, 50)
    late = sum(times for reason, times in figures.reasons.items() if "decoding took longer than" in reason)
    assert figures.outcomes["exact"] + late + lost_twice(figures) == 50
    assert figures.outcomes["exact"] >= 25


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_workers_that_may_not_be_started_again(tmp_path: Path) -> None:
    """When the restarts are used up, answers end with `TargetLost`, and none hangs."""
    figures = await faulty_storm(
        "ipc few restarts",
        tmp_path,
        {**EMULATED, "transport": "ipc", "target_restarts": 1, "draft_restarts": 1},
        emulated_questions(),
        FAULTS,
        seed=31,
        answers=20,
        strikes=[kill],
        every_s=0.5,
    )
    write(figures)
    settled(figures, 20)
    assert set(figures.outcomes) <= {"exact", "TargetLost", "ModelError"}
    lost_twice(figures)


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_poison(tmp_path: Path) -> None:
    """However often it is asked, the other answers are exact, with as few restarts as an engine has by default."""
    figures = await faulty_storm(
        "ipc poison",
        tmp_path,
        UNKEPT | {"backend": "poisoned", "transport": "ipc", "target_restarts": 3, "draft_restarts": 3},
        emulated_questions(),
        Schedule(),
        seed=51,
        answers=60,
        strikes=[poison_target, poison_draft],
        every_s=3.0,
    )
    write(figures)
    settled(figures, 60)
    assert figures.outcomes == {"exact": 60}
    assert {"poison for the target", "poison for the draft"} <= figures.faults.keys()


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_models_that_never_load(tmp_path: Path) -> None:
    """Half of those that are started again hang while they load."""
    figures = await faulty_storm(
        "ipc hanging loads",
        tmp_path,
        UNKEPT | {"transport": "ipc", "hang_timeout_s": 1.5},
        emulated_questions(),
        Schedule(),
        seed=61,
        hangs=0.5,
        answers=100,
        strikes=[kill],
        every_s=1.5,
    )
    write(figures)
    settled(figures, 100)
    assert figures.outcomes["exact"] + lost_twice(figures) == 100
    assert figures.faults["hang-load"] > 0


@contextmanager
def explosive(figures: Figures) -> Iterator[Strike]:
    """In a thread: an actor that fails outside any session, or that is late with everything for a moment."""
    lit: dict[str, str] = {}
    original = Actor.turn

    def turn(self: Actor, timeout_s: float | None = None) -> None:
        match lit.pop(self.role, ""):
            case "fail":
                raise RuntimeError(f"the {self.role} went off")
            case "stall":
                time.sleep(0.3)
        original(self, timeout_s)

    async def light(engine: Any, choose: Any, figures: Figures) -> None:
        role, what = choose.choice(["target", "draft"]), choose.choice(["fail", "stall"])
        lit[role] = what
        figures.count("faults", f"{what} {role}")

    Actor.turn = turn  # type: ignore[method-assign]
    try:
        yield light
    finally:
        Actor.turn = original  # type: ignore[method-assign]


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_actors_in_threads_fail_and_stall(tmp_path: Path) -> None:
    """What applies without a connection and without processes."""
    figures = Figures(name="inproc emulated")
    settings = {**EMULATED, "backend": "emulated", "transport": "inproc"}
    questions = await references(settings, emulated_questions())
    with explosive(figures) as light:
        await storm(figures, settings, questions, answers=110, seed=41, strikes=[light], every_s=0.3)
    write(figures)
    settled(figures, 110)
    assert figures.outcomes["exact"] == 110
