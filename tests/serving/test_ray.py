"""Two replicas in Ray Serve on this machine, on toy models: streams, callers that leave, and a replica that dies."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import openai
import psutil
import pytest
import yaml

from pvlm import Answer, ConfigError, Engine
from pvlm.config import engine_config
from tests.serving.conftest import SLOW, asked, asking, video
from tests.serving.test_application import events_of
from tests.style.tree import ROOT

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'pvlm[ray]'")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),  # Ray starts a dozen processes
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
EXAMPLE = ROOT / "examples" / "ray" / "serve.yaml"
STORE = 80 << 20
"""Bytes of Ray's object store, which are the least that Ray takes."""
OPTIONS = {"max_tokens": 20, "ignore_eos": True}
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "20",  # on a busy machine, else another replica is taken
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "20",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The URL of two replicas."""
    import ray
    from ray import serve

    from pvlm.serving.ray import build_app

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(
            "local", num_cpus=2, object_store_memory=STORE, include_dashboard=False, log_to_driver=False,
            logging_level="error", _node_ip_address="127.0.0.1", _system_config={"worker_niceness": 0},
        )  # fmt: skip
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            options = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 1}, "health_check_period_s": 1}
            serve.run(build_app({**SLOW, "deployment": options}))
            yield f"http://127.0.0.1:{port}"
        finally:
            ray.shutdown()


@pytest.fixture
async def client(cluster: str) -> Any:
    async with httpx.AsyncClient(base_url=cluster, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def reference() -> str:
    with Engine.create(**SLOW) as engine:
        answer: Answer = engine.answer_sync(None, "Why?", **OPTIONS)
        return answer.text


def replicas() -> set[int]:
    """The process ids of the replicas that this process has started."""
    found = psutil.Process().children(recursive=True)
    return {one.pid for one in found if "ServeReplica" in " ".join(one.cmdline())}


async def streamed(client: httpx.AsyncClient) -> str | int:
    """The text of a stream, or the status of a refusal."""
    request = asking("Why?", stream=True, **OPTIONS)
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        if not response.is_success:
            return response.status_code
        return "".join([event["choices"][0]["delta"].get("content", "") for event in await events_of(response)])


async def test_a_stream_passes_through(client: httpx.AsyncClient, reference: str) -> None:
    whole = await asked(client, asking("Why?", **OPTIONS))
    assert whole.json()["choices"][0]["message"]["content"] == reference
    assert await streamed(client) == reference
    request = asking("Why?", stream=True, max_tokens=4000, ignore_eos=True)  # it takes a minute
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert b"data: " in await anext(response.aiter_raw())
    assert (await asked(client, asking("Why?", n=2))).json()["error"]["param"] == "n"


async def test_requests_of_a_session_meet_the_replica_that_keeps_the_video(
    client: httpx.AsyncClient, data_url: str
) -> None:
    async def code(url: str | None, uuid: str, session: str) -> str | None:
        """Why a request without a question is refused, which is after its video was found or kept."""
        response = await asked(client, asking(video(url, uuid=uuid), ""), **{"X-Session-Id": session})
        found: str | None = response.json()["error"]["code"]
        return found

    sessions = "abcdef"
    assert {await code(data_url, session, session) for session in sessions} == {None}
    assert {await code(None, session, session) for session in 3 * sessions} == {None}
    assert await code(None, "unknown", "a") == "unknown_uuid"
    # On other ways some requests miss it, so there are two replicas.
    assert "unknown_uuid" in {await code(None, "a", f"other-{number}") for number in range(20)}


async def test_a_caller_that_leaves_frees_its_work(client: httpx.AsyncClient) -> None:
    async def running() -> float:
        metrics = (await client.get("/metrics", headers=headers)).text
        found = re.search(r"^pvlm:num_requests_running (\S+)", metrics, re.M)
        assert found is not None
        return float(found[1])

    headers = {"X-Session-Id": "a"}
    request = asking("Why?", max_tokens=4000, ignore_eos=True, stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=request, headers=headers) as response:
        await anext(response.aiter_raw())
        with anyio.fail_after(20):
            while not await running():  # the other replica may be asked while this one is busy
                await anyio.sleep(0.05)
    with anyio.fail_after(20):
        while await running():
            await anyio.sleep(0.05)


async def test_a_replica_that_dies_is_replaced(cluster: str, client: httpx.AsyncClient, reference: str) -> None:
    """One of two is killed in the middle of 50 requests. A client that tries again, as OpenAI's does, gets the exact
    answer; another one gets it too, or an error.
    """
    whole: list[str | None] = []
    streams: list[str | int] = []

    async def ask() -> None:
        reply = await patient.chat.completions.create(model="0@20", messages=messages, extra_body=OPTIONS)
        whole.append(reply.choices[0].message.content)

    async def listen() -> None:
        try:
            streams.append(await streamed(client))
        except httpx.TransportError as error:  # the stream was broken off
            streams.append(type(error).__name__)

    messages = asking("Why?")["messages"]
    killed = min(replicas())
    patient = openai.AsyncOpenAI(base_url=f"{cluster}/v1", api_key="none")
    async with patient, anyio.create_task_group() as tasks:
        for _ in range(25):
            tasks.start_soon(ask)
            tasks.start_soon(listen)
        while not whole and not streams:
            await anyio.sleep(0.01)
        os.kill(killed, signal.SIGKILL)
    assert whole == 25 * [reference]
    counted = Counter(streams)
    assert counted.total() == 25
    assert 0 < counted[reference] < 25
    assert set(counted) <= {reference, 500, 503, "RemoteProtocolError"}
    with anyio.fail_after(60):
        while len(replicas() - {killed}) < 2:
            await anyio.sleep(0.1)
    assert [await streamed(client) for _ in range(4)] == 4 * [reference]


async def test_a_request_that_no_replica_takes_waits_before_the_next_try(anyio_backend: str) -> None:
    from pvlm.serving.ray import SessionRouter

    router = SessionRouter.__new__(SessionRouter)
    metadata, context = SimpleNamespace(session_id=""), SimpleNamespace(should_backoff=False)
    pending = SimpleNamespace(metadata=metadata, routing_context=context)
    (chosen,) = await router.choose_replicas(["a", "b", "c"], pending)
    assert len(set(chosen)) == 2
    assert context.should_backoff


def test_a_replica_reserves_what_its_models_use() -> None:
    from pvlm.serving.ray import deployment_options

    def resources(**settings: Any) -> tuple[float, int]:
        found = deployment_options(engine_config(settings), {})["ray_actor_options"]
        return found["num_cpus"], found["num_gpus"]

    assert resources() == (2, 0)
    assert resources(threads=6, draft_threads=2) == (8, 0)
    assert resources(threads=6, draft=None) == (6, 0)
    assert resources(device="cuda:0", draft_device="cuda:1") == (1, 2)
    assert resources(device="cuda:0,cuda:1", draft_device="cuda:2") == (1, 3)
    assert resources(device="cuda") == (1, 1)
    assert resources(device="cuda", draft_device="cpu", draft_threads=4) == (4, 1)

    small = engine_config({"max_sessions": 3, "max_waiting": 7})
    scaled = deployment_options(small, {"autoscaling_config": {"max_replicas": 9}})
    assert scaled["autoscaling_config"] == {"max_replicas": 9, "target_ongoing_requests": 3}
    assert (scaled["max_ongoing_requests"], scaled["max_queued_requests"]) == (10, 7)
    assert "autoscaling_config" not in deployment_options(small, {"num_replicas": 2})


def test_settings_are_the_engine_s_and_the_server_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from pvlm.serving.ray import build_app, settings_of

    monkeypatch.setenv("PVLM_API_KEY", "one two")
    typed = {"window": "4", "prune_ratio": "0.9", "threads": "2", "request_metrics": "true", "max_body_bytes": "100"}
    engine, server, options = settings_of({**typed, "deployment": {"num_replicas": 3}})
    assert (engine.window, engine.prune_ratio, engine.threads, engine.affinity) == (4, 0.9, 2, ())
    assert (server.request_metrics, server.max_body_bytes, server.api_keys) == (True, 100, ("one", "two"))
    assert options == {"num_replicas": 3}
    assert settings_of({"api_keys": ["three"]})[1].api_keys == ("three",)
    for wrong in ({"targt": "x"}, {"threads": "many"}, {"max_body_bytes": "0"}, {"api_keys": "one"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            build_app(wrong)


def test_the_example_is_a_valid_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    from pvlm.serving.ray import build_app

    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(EXAMPLE.read_text())).applications
    assert application.import_path == "pvlm.serving.ray:build_app"
    build_app(application.args)
