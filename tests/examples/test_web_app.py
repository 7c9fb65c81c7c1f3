"""The web application, in this process with the bundled pair: its own page, and the API beside it."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import httpx
import pytest

from .conftest import EXAMPLES

pytestmark = pytest.mark.anyio


@pytest.fixture
def web_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("web_app", EXAMPLES / "web_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_page_and_the_api_share_an_engine(web_app: ModuleType) -> None:
    transport = httpx.ASGITransport(web_app.app)
    async with (
        web_app.lifespan(web_app.app),
        httpx.AsyncClient(transport=transport, base_url="http://app", timeout=60) as client,
    ):
        found = await client.get("/clips/one-scene", params={"question": "How many scenes are there?"})
        assert (found.status_code, found.json()["answer"]) == (200, "There is one scene.")
        assert (await client.get("/clips/one-scene", params={"question": " "})).status_code == 400
        assert (await client.get("/clips/other")).status_code == 404
        messages = [{"role": "user", "content": "How many scenes are there?"}]
        reply = await client.post("/api/v1/chat/completions", json={"messages": messages, "max_tokens": 3})
        assert (reply.status_code, reply.json()["model"]) == (200, "clips")
        assert (await client.get("/api/health")).json()["status"] == "ok"
    assert await web_app.engine.health() == {}
