"""The page at ``/`` in a browser: drop, ask, stream, follow-up, compare, error, leave. On toy models."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from pvlm import Engine
from tests.serving.conftest import SLOW, asking, serving, until, video
from tests.serving.test_application import events_of

pytestmark = pytest.mark.anyio
Served = tuple[httpx.AsyncClient, Engine, Starlette]
DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


@pytest.fixture(scope="module")
async def served(anyio_backend: str) -> AsyncIterator[Served]:
    async with serving({**SLOW, "target": "0@2", "draft": "1.0@1"}) as found:
        yield found


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator[Any]:
    playwright = pytest.importorskip("playwright.async_api")
    if (program := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    async with playwright.async_playwright() as tool:
        browser = await tool.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def page(served: Served, browser: Any) -> AsyncIterator[Any]:
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    await page.route("**/v1/chat/completions", changed(max_tokens=40))
    await page.goto(str(served[0].base_url))
    yield page
    await page.close()
    assert faults == []


def changed(**fields: Any) -> Any:
    """What sends a request of the page with more fields."""

    async def send(route: Any) -> None:
        await route.continue_(post_data=json.dumps({**route.request.post_data_json, **fields}))

    return send


async def drop(page: Any, name: str, kind: str, content: bytes) -> None:
    await page.evaluate(DROP, [name, kind, b64encode(content).decode()])
    await shown(page, "#status", f"{name} is ready: ask.")


async def shown(page: Any, place: str, text: str | re.Pattern[str]) -> None:
    """Wait until a place shows a text."""
    from playwright.async_api import expect

    await expect(page.locator(place)).to_have_text(text, timeout=20_000)


async def test_drop_ask_follow_up_and_compare(page: Any, served: Served, clip: Path) -> None:
    await drop(page, "clip.mp4", "video/mp4", clip.read_bytes())
    await page.fill("#question", "What happens?")
    await page.keyboard.press("Enter")
    await shown(page, "#status", "The answer is complete.")
    expected = await served[1].answer(clip, "What happens?", max_tokens=40)
    said = page.locator("#log li").nth(0).locator(".said")
    assert await said.text_content() == expected.text
    origins = await said.locator("span").evaluate_all("(all) => all.map((one) => one.className)")
    assert set(origins) == set(expected.stats.origins)
    assert await page.locator("#frames canvas").count() > 1
    assert "video tokens" in await page.locator("#kept").text_content()
    assert "passes of the target" in await page.locator("#lanes").get_attribute("aria-label")
    assert await page.locator("#figures dt").count() > 5

    await page.click("#plain")
    await shown(page, "#speedup", re.compile("plain decoding, the same text"))
    assert await page.locator("#figures dt").nth(1).text_content() == "plain decoding"

    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json))
    await page.fill("#question", "And then?")
    await page.click("#ask")
    await shown(page, "#log li:nth-child(3) .asked", "And then?")
    await shown(page, "#status", "The answer is complete.")
    assert [message["role"] for message in sent[0]["messages"]] == ["user", "assistant", "user"]
    assert sent[0]["messages"][0]["content"][0]["type"] == "video_url"
    assert sent[0]["messages"][1]["content"] == expected.text


async def test_an_error_is_shown(page: Any) -> None:
    await drop(page, "clip.mp4", "video/mp4", b"no video at all")
    await page.click("#ask")
    await shown(page, "#error", re.compile("^cannot read the video"))
    assert await page.locator("#ask").is_enabled()


async def test_stopping_and_leaving_free_the_work(page: Any, served: Served) -> None:
    async def begun() -> None:
        await page.click("#ask")
        await page.wait_for_selector(".said span")

    await page.route("**/v1/chat/completions", changed(max_tokens=4000, ignore_eos=True))
    workload = served[2].state.workload
    await begun()
    await page.click("#stop")
    await shown(page, "#status", "Stopped.")
    await until(lambda: workload.requests == 0)
    await begun()
    await page.goto("about:blank")
    await until(lambda: workload.requests == 0)


async def test_every_control_has_a_name_and_the_keyboard_reaches_it(page: Any) -> None:
    reached = []
    for _ in range(6):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:3] == ["file", "question", "ask"]
    unnamed = "(all) => all.filter((one) => !one.labels?.length && !one.textContent.trim()).map((one) => one.id)"
    assert await page.locator("input, button").evaluate_all(unnamed) == []


async def test_the_page_fetches_nothing_from_other_hosts(served: Served) -> None:
    client = served[0]
    for path in ("/", "/page.css", "/page.js", "/lanes.js"):
        response = await client.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "://" not in response.text


async def test_a_stream_can_be_watched(served: Served, clip: Path, data_url: str) -> None:
    client, engine, _ = served
    request = asking(video(data_url), "Why?", max_tokens=20, stream=True, watch=True)
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        events = await events_of(response)
    expected = await engine.answer(clip, "Why?", max_tokens=20)
    watched = [event["pvlm"] for event in events if "pvlm" in event]
    pieces = [piece for one in watched for piece in one.get("pieces", [])]
    assert "".join(text for _, text in pieces) == expected.text
    lanes = [one for found in watched for one in found.get("lanes", [])]
    assert {one["row"] for one in lanes} == {"draft", "target"}
    assert all(one["end_ms"] >= one["begin_ms"] for one in lanes)
    (seen,) = [one["video"] for one in watched if "video" in one]
    assert seen["grid"][0] == len(seen["frames"])
    assert watched[-1]["stats"]["new_tokens"] == 20
    assert json.dumps(watched)
