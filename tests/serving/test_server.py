"""`pvlm serve` as a process: how it starts and ends. On toy models."""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path

import anyio
import httpx
import pytest

from pvlm.cli import main
from pvlm.serving.server import Server, bind
from tests.serving.conftest import SLOW, ServerProcess, asked, asking, serving, until

pytestmark = pytest.mark.anyio
TOYS = ["--target", "0@20", "--draft", "1.0@5", "--backend", "toy", "--transport", "inproc", "--window", "4"]


async def test_sigterm_lets_answers_end_and_sends_new_ones_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PVLM_API_KEY", "")  # as a compose file sets it where there is none
    server = ServerProcess(tmp_path / "log", *TOYS, "--log-json", "--drain-timeout", "5")
    found: list[httpx.Response] = []

    async def ask(tokens: int, stream: bool = False) -> None:
        request = asking("Why?", max_tokens=tokens, ignore_eos=True, stream=stream)
        found.append(await client.post("/v1/chat/completions", json=request))

    try:
        url = await anyio.to_thread.run_sync(server.url)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, 40)
            tasks.start_soon(ask, 4000, True)
            await anyio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            await until(lambda: "server_draining" in server.log.read_text())
            await ask(1)
        assert await anyio.to_thread.run_sync(server.process.wait, 20) == 0
    finally:
        server.kill()
    _, short, long = found
    assert [response.status_code for response in found] == [503, 200, 200]
    assert short.json()["usage"]["completion_tokens"] == 40
    assert json.loads(long.text.split("\n\n")[-3][6:])["error"]["code"] == "stopping"
    assert "Traceback" not in server.log.read_text()


async def test_a_connection_that_does_not_ask_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvlm.serving.server.ASKING_S", 0.3)
    request = b"GET /version HTTP/1.1\r\nHost: x\r\n"
    with bind("127.0.0.1", 0) as bound:
        async with serving(SLOW) as (_, _, app), anyio.create_task_group() as tasks:
            server = Server(app, 0)
            tasks.start_soon(server.serve, [bound])
            await until(lambda: server.started)
            host, port = bound.getsockname()
            for sent in (b"", request, request + b"\r\n" + request):
                async with await anyio.connect_tcp(host, port) as stream:
                    await stream.send(sent)
                    with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
                        while await stream.receive():
                            pass
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as client:
                assert (await asked(client, asking("Why?", max_tokens=30, ignore_eos=True))).status_code == 200
            server.should_exit = True


def test_a_taken_port_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pvlm: error: cannot listen at 127.0.0.1, port ")


def test_invalid_settings_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--allowed-local-media-path", str(tmp_path / "missing")]) == 1
    assert "which is no folder" in capsys.readouterr().err
    assert main(["serve", "--allowed-media-networks", "here", "--port", "0"]) == 1
    assert "allowed_media_networks" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.delitem(sys.modules, "pvlm.serving.application", raising=False)
    assert main(["serve"]) == 1
    assert "pip install 'pvlm[serve]'" in capsys.readouterr().err
