"""The server's application on toy models, and as a process of its own with the bundled pair."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from pvlm import Engine
from pvlm.cli.bundled import clips_folder
from pvlm.serving import ServerConfig, create_app
from pvlm.telemetry.prometheus import PrometheusMetrics
from tests.support.plugin import DRAFT, TARGET, toy_plugin

TOY: dict[str, Any] = {"target": TARGET, "draft": DRAFT, "backend": "toy", "transport": "inproc", "window": 4}
SLOW = {**TOY, "target": f"{TARGET}@20", "draft": f"{DRAFT}@5"}
"""20 ms for a pass of the target."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_plugin(tmp_path_factory.mktemp("site")):
        yield


@pytest.fixture(scope="session")
def clip() -> Iterator[Path]:
    with clips_folder() as folder:
        yield folder / "one-scene.mp4"


@pytest.fixture(scope="session")
def data_url(clip: Path) -> str:
    return f"data:video/mp4;base64,{b64encode(clip.read_bytes()).decode()}"


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.01)


def asking(*parts: str | dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A request with one message: texts, and other parts as they are."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"messages": [{"role": "user", "content": content}], **fields}


def video(url: str | None, **fields: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}, **fields}


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """The URL of an application in this process."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none"))
    running = asyncio.ensure_future(server.serve())
    try:
        await until(lambda: server.started)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def serving(
    settings: dict[str, Any] = TOY, **config: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Engine, Starlette]]:
    """A client of an application around an open engine."""
    registry = CollectorRegistry()
    async with Engine.create(metrics=PrometheusMetrics(registry), **settings) as engine:
        app = create_app(engine, ServerConfig(**config), registry=registry)
        async with listening(app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            yield client, engine, app


@pytest.fixture(scope="module")
async def toy(anyio_backend: str) -> AsyncIterator[tuple[httpx.AsyncClient, Engine, Starlette]]:
    async with serving() as served:
        yield served


@pytest.fixture(scope="module")
def client(toy: tuple[httpx.AsyncClient, Engine, Starlette]) -> httpx.AsyncClient:
    return toy[0]


async def asked(client: httpx.AsyncClient, request: dict[str, Any], **headers: str) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=request, headers=headers)


async def refused(client: httpx.AsyncClient, request: dict[str, Any]) -> tuple[int, str | None, str]:
    """Status, field and message of a refusal."""
    response = await asked(client, request)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["message"]


class ServerProcess:
    """``pvlm serve`` as a process."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("w") as output:
            command = [sys.executable, "-m", "pvlm", "serve", "--port", "0", *arguments]
            self.process = subprocess.Popen(command, env=os.environ, stdout=output, stderr=subprocess.STDOUT)

    def url(self) -> str:
        """Where it serves, once it does."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if found := re.search(r"serving at (http://\S+)", self.log.read_text()):
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text())

    def wait_until_quiet(self) -> None:
        """Until nothing was noted for 0.3 s: the note of a request comes after its answer."""
        noted = -1
        while (now := self.log.stat().st_size) != noted:
            noted = now
            time.sleep(0.3)

    def end(self) -> int:
        """Ask it to end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
