"""A server under load on this machine: answers, memory, and the time to the first token, over rounds of callers.

The server is ``pvlm serve``, or two replicas in Ray Serve, with the bundled pair. Requests go to loopback alone.
"""

from __future__ import annotations

import json
import random
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal

import anyio
import httpx
import msgspec
import numpy as np
import psutil

from benchmarks.server_process import serving
from pvlm.cli.bundled import clips_folder
from pvlm.engine import Engine

Kind = Literal["serve", "ray"]
QUESTIONS = ("Describe the video.", "How many scenes are there?")
MAX_TOKENS = 96
SESSIONS, WAITING = 20, 64
REPLICAS = 2
LEAVING_S = 1.0
"""A caller that hangs up does so within this time."""
RETRY_S = (0.5, 1.5)
REQUEST_S = 300.0
PLACE = "/v1/chat/completions"


class LoadRow(msgspec.Struct, frozen=True, kw_only=True):
    """One round. ``exact``, ``wrong``, ``left``: callers by how they ended; ``refused``: replies with 429, after which
    a caller tried again. Times to the first token are in seconds, from the last try, waiting included.
    ``memory_mb``: of the server and all its processes after the round, shared pages counted once.
    """

    server: Kind
    round: int
    exact: int
    wrong: int
    left: int
    refused: int
    first_token_p50_s: float
    first_token_p99_s: float
    seconds: float
    memory_mb: float
    replaced_processes: int


class Case(msgspec.Struct, frozen=True):
    """A request, and the text of its exact answer."""

    body: dict[str, Any]
    text: str


class Tally:
    """How callers have ended, how often they were refused, and the seconds to their first tokens."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.refused = 0
        self.first_tokens_s: list[float] = []


def measure_load(
    kind: Kind, url: str, root: psutil.Process, *, rounds: int, callers: int, leaving: float
) -> Iterator[LoadRow]:
    """Rounds of so many callers at once, of whom a share of ``leaving`` hang up in the middle.

    ``url``, ``root``: of a `running_server` of this kind.
    """
    cases, workers = _cases(), set[int]()
    for number in range(rounds + 1):
        began_s, tally = time.perf_counter(), Tally()
        anyio.run(call_all, url, cases, callers, leaving, number, tally)
        before, workers = workers, _model_processes(root)
        if number:  # the first round warms up
            yield LoadRow(
                server=kind,
                round=number,
                exact=tally.ends.count("exact"),
                wrong=tally.ends.count("wrong"),
                left=tally.ends.count("left"),
                refused=tally.refused,
                first_token_p50_s=float(np.percentile(tally.first_tokens_s, 50)),
                first_token_p99_s=float(np.percentile(tally.first_tokens_s, 99)),
                seconds=time.perf_counter() - began_s,
                memory_mb=_memory_mb(root),
                replaced_processes=len(before - workers),
            )


def first_tokens(url: str, times: int) -> tuple[float, float]:
    """The time to the first token over HTTP and by `Engine.stream`: medians in seconds over alternating requests about
    a clip, one at a time, after as many that do not count.
    """
    body = {**_cases()[0].body, "stream": True}
    with clips_folder() as clips:
        return anyio.run(_alternate, url, body, clips / "one-scene.mp4", times)


async def _alternate(url: str, body: dict[str, Any], clip: Path, times: int) -> tuple[float, float]:
    over_http: list[float] = []
    by_engine: list[float] = []
    async with Engine.create(threads=1, draft_threads=1) as engine, httpx.AsyncClient(base_url=url) as client:
        for _ in range(2 * times):
            began_s = time.perf_counter()
            async with client.stream("POST", PLACE, json=body) as response:
                async for line in response.aiter_lines():
                    if '"content":"' in line and '"content":""' not in line:
                        break
            over_http.append(time.perf_counter() - began_s)
            await anyio.sleep(0.1)
            began_s = time.perf_counter()
            async with engine.stream(clip, QUESTIONS[0], max_tokens=MAX_TOKENS) as chunks:
                async for chunk in chunks:
                    if chunk.text:
                        break
            by_engine.append(time.perf_counter() - began_s)
            await anyio.sleep(0.1)
    return median(over_http[times:]), median(by_engine[times:])


# ---- callers ------------------------------------------------------------------------------------------------------


def _cases() -> list[Case]:
    """Requests about the bundled clips, with the target's own answers; the first is about the shortest clip."""
    cases = []
    with clips_folder() as clips, Engine.create(method="ar") as engine:
        for name in ("one-scene", "two-scenes", "four-scenes"):
            clip = clips / f"{name}.mp4"
            url = f"data:video/mp4;base64,{b64encode(clip.read_bytes()).decode()}"
            for question in QUESTIONS:
                content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
                body = {"messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS}
                cases.append(Case(body, engine.answer_sync(clip, question, max_tokens=MAX_TOKENS).text))
    return cases


async def call_all(url: str, cases: list[Case], callers: int, leaving: float, seed: int, tally: Tally) -> None:
    """Let callers ask, each until it has an answer or leaves."""
    source = random.Random(seed)
    limits = httpx.Limits(max_connections=None)
    client = httpx.AsyncClient(base_url=url, timeout=REQUEST_S, limits=limits)
    async with client, anyio.create_task_group() as tasks:
        for number in range(callers):
            own, leaves = random.Random(source.random()), source.random() < leaving
            tasks.start_soon(_call, client, cases[number % len(cases)], leaves, own, tally)


async def _call(client: httpx.AsyncClient, case: Case, leaves: bool, source: random.Random, tally: Tally) -> None:
    with anyio.move_on_after(source.uniform(0, LEAVING_S) if leaves else None) as scope:
        while (text := await _answer(client, case, source.random() < 0.5, tally)) is None:
            tally.refused += 1
            await anyio.sleep(source.uniform(*RETRY_S))
        tally.ends.append("exact" if text == case.text else "wrong")
    if scope.cancelled_caught:
        tally.ends.append("left")


async def _answer(client: httpx.AsyncClient, case: Case, stream: bool, tally: Tally) -> str | None:
    """The text; None after a refusal. Raises httpx.HTTPError for any other status."""
    began_s = time.perf_counter()
    pieces: list[str] = []
    async with client.stream("POST", PLACE, json={**case.body, "stream": stream}) as response:
        if response.status_code == 429:
            return None
        response.raise_for_status()
        if not stream:
            whole = json.loads(await response.aread())
            return str(whole["choices"][0]["message"]["content"])
        async for line in response.aiter_lines():
            if line.startswith("data: {") and (piece := json.loads(line[6:])["choices"][0]["delta"].get("content")):
                if not pieces:
                    tally.first_tokens_s.append(time.perf_counter() - began_s)
                pieces.append(piece)
    return "".join(pieces)


# ---- servers ------------------------------------------------------------------------------------------------------


@contextmanager
def running_server(kind: Kind) -> Iterator[tuple[str, psutil.Process]]:
    """The address, and the process whose descendants are the server's."""
    with _SERVERS[kind]() as found:
        yield found


@contextmanager
def _serve() -> Iterator[tuple[str, psutil.Process]]:
    settings = {"threads": 1, "draft-threads": 1, "max-sessions": SESSIONS, "max-waiting": WAITING}
    with serving(*(f"--{name}={value}" for name, value in settings.items())) as (url, process):
        yield url, psutil.Process(process.pid)


@contextmanager
def _ray() -> Iterator[tuple[str, psutil.Process]]:
    import ray
    from ray import serve

    from pvlm.serving.ray import build_app

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(
        "local", num_cpus=2 * REPLICAS, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False,
        logging_level="error", _node_ip_address="127.0.0.1",
        _system_config={"worker_niceness": 0},  # as pvlm serve; Ray's own default is 15
    )  # fmt: skip
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        options = {"num_replicas": REPLICAS}
        settings = {"max_sessions": SESSIONS // REPLICAS, "max_waiting": WAITING // REPLICAS}
        serve.run(build_app({**settings, "deployment": options}))
        yield f"http://127.0.0.1:{port}", psutil.Process()
        serve.shutdown()
    finally:
        ray.shutdown()


_SERVERS: dict[Kind, Callable[[], Any]] = {"serve": _serve, "ray": _ray}


def _model_processes(root: psutil.Process) -> set[int]:
    """The processes of models and replicas."""
    found = root.children(recursive=True)
    return {one.pid for one in found if "pvlm" in " ".join(one.cmdline()) or "ServeReplica" in " ".join(one.cmdline())}


def _memory_mb(root: psutil.Process) -> float:
    family = root.children(recursive=True)
    if root.pid != psutil.Process().pid:
        family.append(root)
    return float(sum(one.memory_full_info().pss for one in family) / 2**20)
