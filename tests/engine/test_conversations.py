"""Conversations from `messages` to the models, in every form and with every mistake."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pvlm import Engine, OptionError, PromptError, VideoError
from pvlm.config import bundled
from pvlm.trace import Trace
from pvlm_protocols.backend import Visual
from pvlm_protocols.limits import MAX_PROMPT_CHARACTERS, MAX_VISUALS
from tests.engine.conftest import FRAMES, TOY
from tests.support.pair import PAIR
from tests.support.toy import ToyBackend, ToyProcessor

pytestmark = pytest.mark.anyio

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
CLIP = Path(bundled("clips")) / "one-scene.mp4"


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def video(source: Any) -> dict[str, Any]:
    return {"type": "video", "video": source}


def image(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


CONVERSATION = [
    {"role": "system", "content": "Be short."},
    user(video(FRAMES), text("First?")),
    {"role": "assistant", "content": "A circle."},
    user(text("And"), video(FRAMES[:2]), text("here?")),
]


async def test_both_models_get_the_whole_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[Any] = []
    opened = ToyBackend.open
    monkeypatch.setattr(ToyBackend, "open", lambda self, prompt, n: prompts.append(prompt) or opened(self, prompt, n))
    async with Engine.create(TOY) as engine:
        answer = await engine.answer(messages=CONVERSATION, max_tokens=20)
        alone = await engine.answer(messages=CONVERSATION, max_tokens=20, method="ar")
    assert answer.tokens == alone.tokens
    assert len(prompts) == 3
    for prompt in prompts:
        assert [turn.role for turn in prompt.turns] == ["system", "user", "assistant", "user"]
        assert prompt.question == "And\nhere?"
        assert prompt.turns[1].parts[1] == "First?"
        shown = [part for turn in prompt.turns for part in turn.parts if isinstance(part, Visual)]
        assert [part.frames.tolist() for part in shown] == [FRAMES.tolist(), FRAMES[:2].tolist()]
        assert {part.size for part in shown} == {FRAMES.shape[1:3]}
    assert answer.stats.video_tokens == 4 * 6  # of both videos
    assert answer.stats.kept_video_tokens == 12
    assert answer.stats.frame_indices == (0, 1, 2, 3, 0, 1)
    assert (answer.stats.source_frames, answer.stats.source_fps) == (6, None)


async def test_one_question_in_messages_is_the_question() -> None:
    """Such a prompt needs no backend that takes conversations."""
    async with Engine.create(TOY) as engine:
        plain = await engine.answer(FRAMES, "What?", max_tokens=20)
        for messages in ([user(video(FRAMES), text("What?"))], (user(video(FRAMES), text("What?")),)):
            assert (await engine.answer(messages=messages, max_tokens=20)).tokens == plain.tokens
        assert (await engine.answer(messages=[user("What?")], max_tokens=20)).stats.frame_indices == ()


async def test_a_backend_without_conversations_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: value for name, value in vars(ToyProcessor).items() if name[0] != "_" and name != "resize_image"}
    monkeypatch.setattr(ToyBackend, "processor", lambda model, **_: type("Processor", (), without)())
    async with Engine.create(TOY) as engine:
        for messages in (CONVERSATION, [user(image(PICTURE), text("What?"))], [user(text("a"), text("b"))]):
            with pytest.raises(PromptError, match="the target's backend takes one question about one video"):
                await engine.answer(messages=messages)
        assert (await engine.answer(messages=[user(video(FRAMES), text("What?"))], max_tokens=3)).tokens


async def test_images_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = io.BytesIO()
    Image.fromarray(PICTURE).save(encoded, "PNG")
    (tmp_path / "picture.png").write_bytes(encoded.getvalue())
    shown: list[np.ndarray] = []

    def resized(self: ToyProcessor, frames: np.ndarray, images: int) -> np.ndarray:
        shown.append(frames)
        assert images == 5
        return frames

    monkeypatch.setattr(ToyProcessor, "resize_image", resized)
    forms = [PICTURE, PICTURE[None], Image.fromarray(PICTURE), encoded.getvalue(), tmp_path / "picture.png"]
    async with Engine.create(TOY, method="ar", prefix_cache_bytes=0) as engine:
        await engine.answer(messages=[user(*map(image, forms), text("What?"))], max_tokens=3)
        assert [frames.tolist() for frames in shown] == [[PICTURE.tolist()]] * 5
        with pytest.raises(VideoError, match=r"one-scene.mp4': it has \d+ frames, but an image has one"):
            await engine.answer(messages=[user(image(CLIP), text("What?"))])
        with pytest.raises(OptionError, match="num_frames=3 needs a video"):
            await engine.answer(messages=[user(image(PICTURE), text("What?"))], num_frames=3)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], r"messages must be a list of one or more dicts"),
        ("What?", r"messages must be a list of one or more dicts"),
        (["What?"], r"messages\[0\] must be a dict with the keys role and content"),
        ([{"role": "user"}], r"messages\[0\] must be a dict with the keys role and content"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\] has the role 'tool': it may be system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\] has the role \['user'\]"),
        ([user("a"), {"role": "system", "content": "b"}], r"messages\[1\] is the system's: only the first"),
        ([user("a"), {"role": "assistant", "content": "b"}], r"must end with the user's question"),
        ([user("  ")], r"the last message has no text"),
        ([user(video(FRAMES))], r"the last message has no text"),
        ([user([])], r"messages\[0\]\['content'\]\[0\] must be a dict"),
        ([{"role": "user", "content": []}], r"messages\[0\]\['content'\] must be a text or a list of parts"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\['content'\] must be a text or a list of parts, not 3"),
        ([user({"type": "audio", "audio": "x"})], r"\[0\] has the type 'audio': it may be text, video or image"),
        ([user({"type": ["text"], "text": "x"})], r"\[0\] has the type \['text'\]"),
        ([user({"type": "video", "image": "x"})], r"must have the keys type and video alone"),
        ([user(video(None), text("a"))], r"must have the keys type and video alone, and a value"),
        ([user(text("a"), {"type": "text", "text": 3})], r"\[1\]\['text'\] is 3, a int: give a text"),
        ([user("\ud83d")], r"half of a surrogate pair"),
        ([{"role": "system", "content": [image(PICTURE)]}, user("a")], r"only the user's turns may hold videos"),
        ([user("x" * (MAX_PROMPT_CHARACTERS + 1))], r"messages have 65537 characters: they may have 65536"),
        ([user(*[image(PICTURE)] * (MAX_VISUALS + 1), text("a"))], r"33 videos and images: they may have 32"),
        ([user("a")] * 257, r"257 turns: they may have 256"),
    ],
)  # fmt: skip
async def test_what_is_no_conversation_is_named(messages: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Engine.create(TOY).stream(messages=messages)


async def test_messages_exclude_a_video_and_a_question() -> None:
    engine = Engine.create(TOY)
    for arguments in ((FRAMES,), (None, "What?"), (FRAMES, "What?")):
        with pytest.raises(OptionError, match="messages hold the whole prompt"):
            engine.stream(*arguments, messages=CONVERSATION)
    with pytest.raises(OptionError, match="the question is None"):
        engine.stream(FRAMES)
    with pytest.raises(VideoError, match="no such file"):
        await engine.answer(messages=[user(video("/no/such.mp4"), text("a"))])


async def test_the_small_pair_answers_conversations_losslessly(tmp_path: Path) -> None:
    trace = Trace()
    messages = [
        user(video(CLIP), text("Describe the video.")),
        {"role": "assistant", "content": "A red circle."},
        user(image(PICTURE), video(CLIP.with_name("two-scenes.mp4")), text("Describe the video.")),
    ]
    async with Engine.create(PAIR, transport="inproc", threads=1, draft_threads=1) as engine:
        alone = await engine.answer(messages=messages, method="ar", max_tokens=24, num_frames=4)
        answer = await engine.answer(messages=messages, max_tokens=24, num_frames=4, trace=trace)
        with pytest.raises(PromptError, match=r"special token '<\|im_end\|>'"):
            await engine.answer(messages=[user("a"), {"role": "assistant", "content": "<|im_end|>"}, user("b")])
    assert answer.tokens == alone.tokens
    assert answer.stats.video_tokens > answer.stats.kept_video_tokens > 0
    assert {path.name for path in trace.write(tmp_path)} == {"timeline.html", "timeline.json", "frames.png"}
    assert "one-scene.mp4, an image, two-scenes.mp4" in (tmp_path / "timeline.html").read_text()
