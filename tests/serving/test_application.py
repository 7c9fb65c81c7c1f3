"""The application over HTTP, on toy models in this process."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import AsyncIterator
from functools import partial
from io import StringIO
from typing import Any

import anyio
import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount

from pvlm import Engine, VideoError, configure_logging
from pvlm.serving import ServerConfig, create_app
from pvlm.serving.bodies import read_json_body
from pvlm.serving.keeping import KeptMedia
from pvlm.serving.refusals import Refusal
from tests.serving.conftest import SLOW, TOY, asked, asking, refused, serving, until, video

pytestmark = pytest.mark.anyio
Served = tuple[httpx.AsyncClient, Engine, Starlette]


async def events_of(response: httpx.Response) -> list[Any]:
    lines = [line async for line in response.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# ---- answers ------------------------------------------------------------------------------------------------------


async def test_a_whole_answer_is_the_engine_s(toy: Served, data_url: str, clip: Any) -> None:
    client, engine, _ = toy
    response = await asked(client, asking(video(data_url), "Why?", max_tokens=20, model="0"))
    found = response.json()
    expected = await engine.answer(clip, "Why?", max_tokens=20)
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["choices"][0]["finish_reason"] == expected.finish_reason
    assert found["usage"]["completion_tokens"] == len(expected.tokens)
    assert found["usage"]["prompt_tokens"] == expected.stats.prompt_tokens
    assert found["id"] == f"chatcmpl-{response.headers['x-request-id']}"


async def test_a_stream_has_the_same_text(toy: Served) -> None:
    client, engine, _ = toy
    request = asking("Why?", max_tokens=20, stream=True, stream_options={"include_usage": True})
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = await events_of(response)
    expected = await engine.answer(None, "Why?", max_tokens=20)
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(pieces) == expected.text
    assert len(pieces) > 3
    assert events[-1]["usage"]["completion_tokens"] == len(expected.tokens)


async def test_seed_and_stop_reach_the_engine(toy: Served) -> None:
    client, engine, _ = toy
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1.0, "seed": 4}
    texts = [(await asked(client, asking("Why?", **options))).json()["choices"][0]["message"]["content"] for _ in "ab"]
    whole = (await engine.answer(None, "Why?", **options)).text
    assert texts == [whole, whole]
    stop = whole[5:7]
    cut = (await asked(client, asking("Why?", **options, stop=[stop]))).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")


async def test_figures_come_where_they_were_asked_for() -> None:
    async with serving(spec_decode_metrics="detailed", request_metrics=True) as (client, _, _):
        metrics = (await asked(client, asking("Why?", max_tokens=20))).json()["metrics"]
    steps = metrics["speculative_decoding"]
    assert len(steps["per_step_accepted"]) == len(steps["per_step_drafted"]) == steps["num_spec_steps"] > 0
    assert all(a <= d for a, d in zip(steps["per_step_accepted"], steps["per_step_drafted"], strict=True))
    assert metrics["time_to_first_token_ms"] > 0


# ---- what else there is -------------------------------------------------------------------------------------------


async def test_models_version_metrics_and_health(client: httpx.AsyncClient) -> None:
    await asked(client, asking("Why?", max_tokens=4))
    models = (await client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["0"]
    assert (await client.get("/v1/models/0")).json() == models["data"][0]
    assert (await client.get("/v1/models/gpt")).status_code == 404
    assert set((await client.get("/version")).json()) == {"version"}
    assert "pvlm:generation_tokens_total" in (await client.get("/metrics")).text
    health = await client.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok", "target": "running", "draft": "running"})


async def test_served_names_are_the_model_s() -> None:
    async with serving(served_model_names=("mine", "too")) as (client, _, _):
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["mine", "too"]
        for given, named in (("too", "too"), (None, "mine")):
            assert (await asked(client, asking("Why?", max_tokens=2, model=given))).json()["model"] == named
        assert await refused(client, asking("Why?", model="0")) == (404, "model", "there is no model '0': use 'mine'")


async def test_errors_are_openai_s(client: httpx.AsyncClient) -> None:
    assert (await refused(client, asking("Why?", temperature=-1)))[:2] == (400, "temperature")
    assert (await refused(client, asking("Why?", fps=2)))[:2] == (400, "fps")
    assert (await refused(client, asking("")))[0] == 400
    assert (await refused(client, asking("Why?", mm_processor_kwargs={"fps": 2})))[:2] == (400, "fps")
    for stream in (False, True):
        request = asking(video("data:video/mp4;base64,bm9uZQ=="), "Why?", stream=stream)
        status, _, message = await refused(client, request)
        assert (status, message.startswith("cannot read the video: ")) == (400, True)
    for response in (await client.get("/nothing"), await client.get("/v1/chat/completions")):
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert (await client.get("/v1/chat/completions")).status_code == 405


async def test_a_key_is_needed_where_there_are_keys() -> None:
    async with serving(api_keys=("one", "two")) as (client, _, _):
        for headers in (
            {},
            {"Authorization": "Basic one"},
            {"Authorization": "Bearer three"},
            {"Authorization": "one"},
        ):
            response = await client.get("/v1/models", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
            assert (await asked(client, asking("Why?"), **headers)).status_code == 401
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer two"})).status_code == 200
        assert (await client.get("/health")).status_code == 200


async def test_a_key_is_needed_below_another_application_too() -> None:
    inner = create_app(Engine.create(**TOY), ServerConfig(api_keys=("one",)), registry=CollectorRegistry())
    outer = Starlette(routes=[Mount("/inner", inner)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://app") as client:
        for path in ("/inner/v1/models", "/inner//v1/models", "/inner/v1/", "/inner/v1/../v1/models"):
            assert (await client.get(path)).status_code in (401, 404)
        assert (await client.get("/inner/v1/models")).status_code == 401
        assert (await client.get("/inner/v1/models", headers={"Authorization": "Bearer one"})).status_code == 200


# ---- kept videos --------------------------------------------------------------------------------------------------


async def test_a_video_is_kept_for_the_key_that_brought_it(data_url: str) -> None:
    async with serving(api_keys=("one", "two"), max_kept_bytes=20_000) as (client, _, _):

        async def status(url: str | None, uuid: str, key: str = "one", **fields: Any) -> int:
            request = asking(video(url, uuid=uuid), "Why?", max_tokens=2, **fields)
            return (await asked(client, request, Authorization=f"Bearer {key}")).status_code

        assert await status(None, "clip") == 400
        assert await status(data_url, "clip") == 200
        assert await status(None, "clip") == 200
        assert await status(None, "clip", "two") == 400
        assert await status(None, "clip", cache_salt="mine") == 400
        assert await status(None, "other") == 400


def test_what_is_kept_is_bounded() -> None:
    kept = KeptMedia(10)
    for name in "abc":
        kept.keep(("", "", name), name.encode() * 4)
    assert [kept.find(("", "", name)) for name in "abc"] == [None, b"bbbb", b"cccc"]
    kept.find(("", "", "b"))
    kept.keep(("", "", "d"), b"dddd")
    assert kept.find(("", "", "c")) is None
    kept.keep(("", "", "b"), bytes(11))
    assert kept.find(("", "", "b")) is None
    assert kept.find(("", "", "d")) == b"dddd"


# ---- bodies -------------------------------------------------------------------------------------------------------


async def post(client: httpx.AsyncClient, body: Any, kind: str = "application/json") -> httpx.Response:
    return await client.post("/v1/chat/completions", content=body, headers={"Content-Type": kind})


async def test_a_body_is_limited_while_it_is_read() -> None:
    async with serving(max_body_bytes=2000, max_held_bytes=3000, body_timeout_s=0.2) as (client, _, app):
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                yield bytes(500)
                sent += 500

        async def stalling() -> AsyncIterator[bytes]:
            yield b"{"
            await anyio.sleep(0.5)

        assert (await post(client, bytes(2001))).status_code == 413
        try:
            assert (await post(client, endless())).status_code == 413
        except httpx.TransportError:  # the server had answered, and closed the connection
            pass
        assert sent < 1 << 22
        assert (await post(client, stalling())).status_code == 408
        app.state.workload.take(1500)
        full = await post(client, json.dumps(asking("Why?" + 1600 * " ")))
        assert (full.status_code, full.headers["retry-after"]) == (429, "5")
        app.state.workload.bytes -= 1500
        assert (app.state.workload.requests, app.state.workload.bytes) == (0, 0)


async def test_a_body_of_unknown_length_is_read_up_to_the_limit() -> None:
    taken: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(500), "more_body": True}

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(Refusal) as caught:
        await read_json_body(scope, receive, limit=2000, timeout_s=20, take=taken.append)
    assert (caught.value.status, taken) == (413, 4 * [500])


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_only_json_is_read(client: httpx.AsyncClient, kind: str) -> None:
    """So no page of another site can send a request from somebody's browser without being asked first."""
    assert (await post(client, json.dumps(asking("Why?")), kind)).status_code == 415


async def test_an_upload_that_is_broken_off_leaves_nothing(toy: Served) -> None:
    client, _, app = toy
    sent = anyio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        sent.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(post, client, endless()))
        await sent.wait()
        await until(lambda: app.state.workload.bytes == 1)
        tasks.cancel_scope.cancel()
    await until(lambda: app.state.workload.requests == 0)
    assert app.state.workload.bytes == 0


# ---- callers that leave, and too many of them ---------------------------------------------------------------------


async def running(engine: Engine) -> int:
    return (await engine.health())["target"].sessions


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_that_leaves_frees_its_work(stream: bool) -> None:
    async with serving({**SLOW, "max_sessions": 1}) as (client, engine, app):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(asked, client, asking("Why?", max_tokens=4000, ignore_eos=True, stream=stream)))
            with anyio.fail_after(20):
                while not await running(engine):
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(5):  # the answer itself would take a minute
            while await running(engine) or app.state.workload.requests:
                await anyio.sleep(0.01)
        assert (await asked(client, asking("Why?", max_tokens=2))).status_code == 200


async def test_beyond_the_queue_there_is_429() -> None:
    async with serving({**SLOW, "max_sessions": 1, "max_waiting": 1}) as (client, _, app):
        statuses = []

        async def ask() -> None:
            statuses.append((await asked(client, asking("Why?", max_tokens=30, ignore_eos=True))).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
            await until(lambda: app.state.workload.requests == 2)
            response = await asked(client, asking("Why?"))
            assert (response.status_code, response.headers["retry-after"]) == (429, "5")
            assert response.json()["error"]["code"] == "queue_full"
    assert statuses == [200, 200]


async def test_running_answers_end_while_new_ones_are_sent_away() -> None:
    async with serving(SLOW) as (client, _, app), anyio.create_task_group() as tasks:
        found = []

        async def ask() -> None:
            found.append(await asked(client, asking("Why?", max_tokens=20, ignore_eos=True)))

        tasks.start_soon(ask)
        await until(lambda: app.state.workload.requests == 1)
        async with anyio.create_task_group() as draining:
            draining.start_soon(app.state.workload.drain, 20)
            await until(lambda: app.state.workload.draining)
            refused = await asked(client, asking("Why?"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
            assert (await client.get("/health")).status_code == 503
        assert app.state.workload.requests == 0
    assert [response.status_code for response in found] == [200]


@pytest.mark.parametrize("stream", [True, False])
async def test_what_takes_too_long_is_cut_off_with_an_error(stream: bool) -> None:
    async with serving(SLOW) as (client, engine, app), anyio.create_task_group() as tasks:
        found = []

        async def ask() -> None:
            found.append(await asked(client, asking("Why?", max_tokens=4000, ignore_eos=True, stream=stream)))

        tasks.start_soon(ask)
        with anyio.fail_after(20):
            while not await running(engine):
                await anyio.sleep(0.01)
        await anyio.sleep(0.5)  # the first piece has been sent
        await app.state.workload.drain(0)
        assert app.state.workload.requests == 0
    (response,) = found
    if stream:
        *_, last, end = response.text.strip().split("\n\n")
        assert (json.loads(last[6:])["error"]["code"], end) == ("stopping", "data: [DONE]")
    else:
        assert response.status_code == 503


# ---- nonsense -----------------------------------------------------------------------------------------------------

STRANGE = (None, True, -1, 0, 2**70, 0.5, 1e308, "", "x", "\0", [], [[]], {}, {"type": "text"}, ["x"] * 40)


async def test_no_request_is_an_error_of_the_server(client: httpx.AsyncClient, data_url: str) -> None:
    """Valid requests of which one or two places were changed; the seed is fixed."""
    rng = random.Random(5)
    valid = asking(
        video(data_url[:60]), "Why?", max_tokens=2, temperature=1.0, top_k=3, seed=1, stop=["b"], model="0", window=2,
        stream_options=None, mm_processor_kwargs={"fps": 1}, media_io_kwargs=None, n=1, prune="uv", method="parallel",
    )  # fmt: skip
    seen = set()
    for number in range(150):
        request = copy.deepcopy(valid)
        if number % 2:
            del request["messages"][0]["content"][0], request["mm_processor_kwargs"]
        for _ in range(rng.choice((1, 1, 2))):
            place: Any = request
            while isinstance(place, dict | list) and place:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = rng.choice(keys)
                if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
                    place[key] = rng.choice(STRANGE)
                    break
                place = place[key]
        response = await asked(client, request)
        assert response.status_code in (200, 400, 404), (request, response.text)
        seen.add(response.json()["error"]["param"] if response.status_code != 200 else "")
    assert len(seen) > 10


# ---- the log ------------------------------------------------------------------------------------------------------


async def test_each_request_is_logged_with_its_id(client: httpx.AsyncClient) -> None:
    lines = StringIO()
    configure_logging("info", json=True, stream=lines)
    await client.get("/version?secret=1", headers={"X-Request-Id": "mine-1"})
    made = (await client.get("/nothing", headers={"X-Request-Id": "no\tgood"})).headers["x-request-id"]
    await until(lambda: lines.getvalue().count("http_request") == 2)
    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (first["request_id"], first["path"], first["status"]) == ("mine-1", "/version", 200)
    assert (second["request_id"], second["status"]) == (made, 404)
    assert "secret" not in lines.getvalue()


async def test_an_error_of_the_server_is_no_text_for_callers(toy: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client, engine, _ = toy

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("inner workings")

    monkeypatch.setattr(engine, "stream", broken)
    response = await asked(client, asking("Why?"))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "inner" not in response.text


async def test_a_path_of_the_server_is_no_text_for_callers(toy: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client, engine, _ = toy

    def broken(*_: object, **__: object) -> None:
        raise VideoError("/secret/place", "it is damaged")

    monkeypatch.setattr(engine, "stream", broken)
    assert await refused(client, asking("Why?")) == (400, "messages", "cannot read the video: it is damaged")
