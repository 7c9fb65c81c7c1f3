"""The FastAPI application of the page on Python, as a reader copies it, with an emulated pair."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import pvlm
from pvlm import Engine

pytest.importorskip("fastapi")
pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "get-started" / "python.md"
CLIP = Path(pvlm.__file__).parent / "bundled" / "clips" / "one-scene.mp4"
PAIR = '{"pass_ms": 0.2, "prefill_ms": 1, "video_tokens": 64, "seed": 7}'
QUESTION = {"question": "How many scenes are there?"}


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    emulated = Engine.create(target=PAIR, draft=PAIR, backend="emulated", transport="inproc")
    monkeypatch.setattr(Engine, "create", lambda: emulated)
    (code,) = re.findall(r"```python\n(from contextlib.*?)```", PAGE.read_text(), re.DOTALL)
    application: dict[str, Any] = {"__name__": "app"}
    exec(code, application)
    app = application["app"]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app", timeout=60) as client,
    ):
        yield client


async def test_an_answer_whole_and_streamed_and_an_error(client: Any) -> None:
    video = CLIP.read_bytes()
    whole = await client.post("/answer", params=QUESTION, content=video)
    assert whole.status_code == 200
    assert whole.json()["stats"]["method"] == "parallel"
    streamed = await client.post("/stream", params=QUESTION, content=video)
    assert (streamed.status_code, streamed.text) == (200, whole.json()["text"])
    for path in ("/answer", "/stream"):
        refused = await client.post(path, params=QUESTION, content=b"no video")
        assert (refused.status_code, list(refused.json())) == (400, ["error"])
        assert "cannot read video" in refused.json()["error"]
