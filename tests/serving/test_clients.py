"""Clients that people use, at `pvlm serve` with the small pair: each gets the engine's own answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import anyio
import httpx
import openai
import pytest
from PIL import Image

from pvlm import Answer, Engine
from tests.serving.conftest import ServerProcess, asking, video
from tests.support.pair import FLAGS, PAIR

pytestmark = pytest.mark.anyio
QUESTION = "Describe the video."
KEY = "sk-of-the-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[str]:
    """The server's address. In the end it is asked to end, and does."""
    log = tmp_path_factory.mktemp("server") / "log"
    arguments = ["--api-key", KEY, "--allowed-local-media-path", str(clip.parent), "--log-json", "--threads", "1"]
    server = ServerProcess(log, *arguments, *FLAGS, "--served-model-name", "small", "--draft-threads", "1")
    try:
        yield server.url()
        server.wait_until_quiet()
        assert server.end() == 0
        assert "Traceback" not in log.read_text()
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        assert {line["status"] for line in lines if line["event"] == "http_request"} == {200, 400, 401, 404}
        assert lines[-1]["event"] == "server_draining"
    finally:
        server.kill()


def picture() -> bytes:
    encoded = BytesIO()
    Image.new("RGB", (112, 112), "teal").save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def answers(clip: Path) -> tuple[Answer, Answer]:
    """The target's own: about the clip, and in a conversation about it and a picture."""
    turns = [
        {"role": "system", "content": "Answer in short."},
        {"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "The video has one scene."},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image", "image": picture()}]},
    ]
    with Engine.create(PAIR, method="ar", threads=1, transport="inproc") as engine:
        return engine.answer_sync(clip, QUESTION), engine.answer_sync(messages=turns, max_tokens=20)


@pytest.fixture(scope="module")
def reference(answers: tuple[Answer, Answer]) -> Answer:
    return answers[0]


@pytest.fixture(scope="module")
def messages(data_url: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    found: list[openai.types.chat.ChatCompletionMessageParam] = asking(video(data_url), QUESTION)["messages"]
    return found


def test_openai_s_client(server: str, reference: Answer, messages: list) -> None:
    with openai.OpenAI(base_url=f"{server}/v1", api_key=KEY) as client:
        assert [model.id for model in client.models.list()] == ["small"]
        found = client.chat.completions.create(model="small", messages=messages)
        assert found.choices[0].message.content == reference.text
        assert found.choices[0].finish_reason == "stop"
        assert found.usage is not None
        assert found.usage.completion_tokens == len(reference.tokens)
        assert found.usage.prompt_tokens_details is not None
        assert found.usage.prompt_tokens_details.cached_tokens == 0
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(model="small", messages=messages, **options))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == reference.text
        again = chunks[-1].usage
        assert again is not None
        assert again.prompt_tokens_details is not None
        kept = again.prompt_tokens_details.cached_tokens
        assert kept is not None
        assert 0 < kept < found.usage.prompt_tokens == again.prompt_tokens
        assert again.total_tokens == found.usage.total_tokens


async def test_openai_s_asynchronous_client(server: str, reference: Answer, messages: list) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY) as client:
        found = []

        async def ask() -> None:
            reply = await client.chat.completions.create(model="small", messages=messages)
            found.append(reply.choices[0].message.content)

        async def listen() -> None:
            chunks = await client.chat.completions.create(model="small", messages=messages, stream=True)
            found.append("".join([chunk.choices[0].delta.content or "" async for chunk in chunks]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(listen)
        assert found == [reference.text] * 2


def test_a_conversation_about_a_video_and_a_picture(
    server: str, answers: tuple[Answer, Answer], messages: list
) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(picture()).decode()}"}}
    turns = [
        {"role": "developer", "content": "Answer in short."},
        *messages,
        {"role": "assistant", "content": "The video has one scene."},
        *asking("And this?", image)["messages"],
    ]
    with openai.OpenAI(base_url=f"{server}/v1", api_key=KEY) as client:
        found = client.chat.completions.create(model="small", messages=turns, max_completion_tokens=20)
    assert found.choices[0].message.content == answers[1].text


def test_openai_s_errors(server: str, messages: list) -> None:
    with openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("gpt")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as invalid:
            client.chat.completions.create(model="small", messages=messages, n=2)
        assert invalid.value.param == "n"
    with openai.OpenAI(base_url=f"{server}/v1", api_key="other") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_curl_and_a_local_file(server: str, reference: Answer, clip: Path) -> None:
    if (curl := shutil.which("curl")) is None:
        pytest.skip("there is no curl")
    body = json.dumps(asking(video(clip.as_uri()), QUESTION))
    headers = ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {KEY}"]
    command = [curl, "-sS", *headers, "-d", body, f"{server}/v1/chat/completions"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == reference.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchain_s_client(server: str, reference: Answer, messages: list) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    model = langchain.ChatOpenAI(base_url=f"{server}/v1", api_key=KEY, model="small", stream_usage=True)
    found = model.invoke(messages)
    assert found.text == reference.text
    assert found.usage_metadata["output_tokens"] == len(reference.tokens)
    assert found.response_metadata["finish_reason"] == "stop"
    chunks = list(model.stream(messages))
    assert "".join(chunk.text for chunk in chunks) == reference.text
    assert len(chunks) > 3


def test_a_browser_is_not_asked_for_a_key_of_the_state(server: str) -> None:
    assert httpx.get(f"{server}/health").json()["status"] == "ok"
