"""The web application: with the real engine as its own process, and with a slow one where timing matters."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import anyio
import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from pvlm import Answer, Chunk, EngineBusy, TargetLost, VideoError

from .conftest import EXAMPLES, QUESTION

pytestmark = pytest.mark.anyio
ASK = {"question": QUESTION}


def load_web_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("web_app", EXAMPLES / "web_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


web_app = load_web_app()


async def events_of(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Server-sent events, each as soon as it arrives."""
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.01)


# ---- as its own process, with the bundled pair --------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("web_app") / "log"
    with log.open("w") as output:
        command = [sys.executable, EXAMPLES / "web_app.py"]
        server = subprocess.Popen(command, env={**os.environ, "PORT": "0"}, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield _url_in(log, server)
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        assert "Traceback" not in log.read_text()
        assert "Application shutdown complete" in log.read_text()
    finally:
        server.kill()
        server.wait()


def _url_in(log: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        told = log.read_text()
        if found := re.search(r"http://127\.0\.0\.1:\d+", told):
            return found.group()
        assert server.poll() is None, told
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


@pytest.fixture(scope="module")
def video(clip: Path) -> bytes:
    return clip.read_bytes()


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=90) as client:
        yield client


async def test_many_callers_get_the_target_s_answer(client: httpx.AsyncClient, video: bytes, reference: Answer) -> None:
    texts: list[str] = []

    async def ask() -> None:
        response = await client.post("/answer", params=ASK, content=video)
        assert response.status_code == 200, response.text
        found = response.json()
        assert found["finish_reason"] == reference.finish_reason
        assert found["stats"]["new_tokens"] == len(reference.tokens)
        texts.append(found["text"])

    async def listen() -> None:
        async with client.stream("POST", "/stream", params=ASK, content=video) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            events = [event async for event in events_of(response)]
        names = [name for name, _ in events]
        assert names == ["text"] * (len(events) - 1) + ["done"]
        assert len(events) > 3
        assert events[-1][1]["stats"]["method"] == "parallel"
        texts.append("".join(text for _, text in events[:-1]))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
            tasks.start_soon(listen)
    assert texts == [reference.text] * 6


async def test_the_engine_goes_on_when_a_caller_leaves(
    client: httpx.AsyncClient, video: bytes, reference: Answer
) -> None:
    async with client.stream("POST", "/stream", params=ASK, content=video) as response:
        async for name, _ in events_of(response):
            assert name == "text"
            break
    response = await client.post("/answer", params={**ASK, "max_tokens": 5}, content=video)
    assert response.json()["finish_reason"] == "length"
    assert reference.text.startswith(response.json()["text"])


async def test_metrics_and_health_can_be_asked_for(client: httpx.AsyncClient, video: bytes) -> None:
    await client.post("/answer", params={**ASK, "max_tokens": 5}, content=video)
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert found["pvlm:generation_tokens_total"] >= 5
    assert found["pvlm:num_requests_running"] == 0
    response = await client.get("/health")
    assert response.status_code == 200
    assert {role: health["state"] for role, health in response.json().items()} == {
        "target": "running",
        "draft": "running",
    }


@pytest.mark.parametrize("path", ["/answer", "/stream"])
async def test_errors_are_told_in_json(client: httpx.AsyncClient, path: str) -> None:
    async def error_of(video: bytes, **query: str) -> tuple[int, str]:
        response = await client.post(path, params=query, content=video)
        assert response.json()["message"]
        return response.status_code, response.json()["error"]

    assert await error_of(b"no video at all", **ASK) == (422, "VideoError")
    assert await error_of(b"", **ASK) == (422, "VideoError")
    assert await error_of(b"video") == (400, "OptionError")
    assert await error_of(b"video", **ASK, temperature="-1") == (400, "OptionError")
    assert await error_of(b"video", **ASK, max_tokens="many") == (400, "OptionError")
    assert await error_of(b"video", **ASK, device="cuda") == (400, "OptionError")
    assert (await client.get(path)).status_code == 405


# ---- in this process, with an engine that waits to be told --------------------------------------------------------


class SlowEngine:
    """Says "one ", then waits for `go`, then says "two"."""

    def __init__(self, error: Exception | None = None, *, before_text: bool = False, at_once: int = 4) -> None:
        self.turns = anyio.Semaphore(at_once)
        self.go = anyio.Event()
        self.running = self.finished = self.left_early = 0
        self.error = error
        self.before_text = before_text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @asynccontextmanager
    async def stream(self, video: bytearray, question: str, **options: Any) -> AsyncIterator[Any]:
        async with self.turns, self._written() as chunks:
            yield chunks

    @asynccontextmanager
    async def _written(self) -> AsyncIterator[Any]:
        self.running += 1
        whole = SimpleNamespace(text="one two", finish_reason="stop", stats={})
        chunks = self._chunks()
        try:
            yield _Chunks(chunks, whole)
            self.finished += 1
        except BaseException:
            self.left_early += 1
            raise
        finally:
            await chunks.aclose()
            self.running -= 1

    async def _chunks(self) -> AsyncIterator[Chunk]:
        if self.error is not None and self.before_text:
            raise self.error
        yield Chunk("one ", (1,))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        yield Chunk("two", (2,))

    async def answer(self, video: bytearray, question: str, **options: Any) -> Any:
        async with self.stream(video, question, **options) as chunks:
            async for _ in chunks:
                pass
        return chunks.answer


class _Chunks:
    def __init__(self, chunks: AsyncIterator[Chunk], answer: SimpleNamespace) -> None:
        self._chunks = chunks
        self.answer = answer

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        await until(lambda: server.started)
        host, port = server.servers[0].sockets[0].getsockname()
        try:
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=20) as client:
                yield client
        finally:
            server.should_exit = True


async def test_a_piece_is_sent_when_it_is_there() -> None:
    engine = SlowEngine()
    async with (
        serving(web_app.create_app(engine)) as client,
        client.stream("POST", "/stream", params=ASK, content=b"video") as response,
    ):
        events = events_of(response)
        assert await anext(events) == ("text", "one ")
        assert engine.running == 1
        engine.go.set()
        assert await anext(events) == ("text", "two")
        assert await anext(events) == ("done", {"finish_reason": "stop", "stats": {}})
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert (engine.running, engine.finished) == (0, 1)


async def test_a_caller_for_whom_there_is_no_place_is_sent_away() -> None:
    engine = SlowEngine(at_once=1)
    app = web_app.create_app(engine, callers=3)
    statuses: list[int] = []
    async with serving(app) as client:

        async def ask() -> None:
            response = await client.post("/answer", params=ASK, content=b"video")
            statuses.append(response.status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask)
            await until(lambda: app.state.places.free == 0 and engine.running == 1)
            for path in ("/answer", "/stream"):
                refused = await client.post(path, params=ASK, content=b"video")
                assert refused.status_code == 503
                assert "try again" in refused.json()["message"]
                assert refused.headers["retry-after"] == "5"
            assert engine.running == 1
            engine.go.set()
    assert statuses == [200, 200, 200]
    assert app.state.places.free == 3


@pytest.mark.parametrize("path", ["/answer", "/stream"])
@pytest.mark.parametrize("waiting", [False, True], ids=["in its turn", "waiting"])
async def test_the_answer_of_a_caller_who_leaves_is_cancelled(path: str, waiting: bool) -> None:
    engine = SlowEngine(at_once=1)
    app = web_app.create_app(engine, callers=2)
    async with serving(app) as client, anyio.create_task_group() as others:
        if waiting:
            others.start_soon(lambda: client.post("/answer", params=ASK, content=b"video"))
            await until(lambda: engine.running == 1)

        async def ask() -> None:
            async with client.stream("POST", path, params=ASK, content=b"video") as response:
                async for _ in response.aiter_lines():
                    pass

        async with anyio.create_task_group() as leaving:
            leaving.start_soon(ask)
            free = 0 if waiting else 1
            await until(lambda: app.state.places.free == free and engine.running == 1)
            await anyio.sleep(0.1)
            leaving.cancel_scope.cancel()
        await until(lambda: app.state.places.free == free + 1)
        assert engine.left_early == (0 if waiting else 1)
        engine.go.set()
        assert (await client.post("/answer", params=ASK, content=b"video")).status_code == 200
    assert (engine.running, engine.finished) == (0, 2 if waiting else 1)


async def test_an_error_after_the_first_piece_is_an_event() -> None:
    engine = SlowEngine(TargetLost("the target is gone"))
    engine.go.set()
    async with serving(web_app.create_app(engine)) as client:
        response = await client.post("/stream", params=ASK, content=b"video")
        assert response.status_code == 200
        events = [event async for event in events_of(response)]
        assert events == [("text", "one "), ("error", {"error": "TargetLost", "message": "the target is gone"})]
        assert (await client.post("/answer", params=ASK, content=b"video")).status_code == 503


async def test_an_engine_that_is_busy_is_a_status() -> None:
    engine = SlowEngine(EngineBusy("4 answers are being written"), before_text=True)
    async with serving(web_app.create_app(engine)) as client:
        assert (await client.post("/answer", params=ASK, content=b"video")).status_code == 503


async def test_an_error_before_it_is_a_status() -> None:
    engine = SlowEngine(VideoError("<5 bytes>", "it is damaged"), before_text=True)
    app = web_app.create_app(engine)
    async with serving(app) as client:
        response = await client.post("/stream", params=ASK, content=b"video")
    assert response.status_code == 422
    assert "damaged" in response.json()["message"]
    assert app.state.places.free == 20


async def test_a_video_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "MAX_VIDEO_BYTES", 1 << 20)
    engine = SlowEngine()
    async with serving(web_app.create_app(engine)) as client:
        response = await client.post("/answer", params=ASK, content=bytes((1 << 20) + 1))
    assert response.status_code == 413
    assert (response.json()["message"], engine.running) == ("the video has more than 1 MiB", 0)


async def test_an_upload_that_is_broken_off_leaves_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    engine = SlowEngine()
    app = web_app.create_app(engine)
    sent = anyio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"video"
        sent.set()
        await anyio.sleep_forever()

    async with serving(app) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post("/answer", params=ASK, content=endless()))
            await sent.wait()
            await until(lambda: app.state.places.free == 19)
            tasks.cancel_scope.cancel()
        await until(lambda: app.state.places.free == 20)
    assert engine.left_early == 0
    assert "Exception in ASGI application" not in capfd.readouterr().err


async def test_a_caller_who_leaves_while_a_piece_is_sent() -> None:
    """One who reads slowly: the generator stands between two pieces, and is ended before the request is."""
    engine = SlowEngine()
    app = web_app.create_app(engine)
    app.state.engine, app.state.places = engine, web_app.Places(1)
    sending = anyio.Event()
    body = [{"type": "http.request", "body": b"video", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sending.set()
            await anyio.sleep_forever()

    query = str(httpx.QueryParams(ASK)).encode()
    scope = {"type": "http", "method": "POST", "path": "/stream", "query_string": query, "headers": []}
    with anyio.fail_after(20):
        await app(scope, receive, send)
    assert (engine.running, engine.left_early, app.state.places.free) == (0, 1, 1)
