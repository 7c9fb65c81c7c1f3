"""The world of moving shapes, its clips, and a short real run of its training recipe."""

from __future__ import annotations

import math
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from shapes.clips import read_clip, write_clip
from shapes.rendering import render
from shapes.world import (
    BACKGROUNDS,
    COLORS,
    KINDS,
    MAX_FRAMES,
    REGIONS,
    SHAPES,
    Clip,
    Scene,
    Thing,
    questions,
    sample_clip,
)

LENGTHS = (1, 2, 3, 8, 16)


def clips(count: int = 12) -> list[Clip]:
    return [sample_clip(random.Random(seed), LENGTHS[seed % len(LENGTHS)]) for seed in range(count)]


def test_a_seed_gives_one_clip() -> None:
    assert clips() == clips()
    assert len(set(clips())) == len(clips())
    first = questions(clips()[1], random.Random(4))
    assert first == questions(clips()[1], random.Random(4))


@pytest.mark.parametrize("scenes", LENGTHS)
def test_length_of_clips(scenes: int) -> None:
    for seed in range(30):
        clip = sample_clip(random.Random(seed), scenes)
        assert len(clip.scenes) == scenes
        assert len(clip.states) == clip.frames <= MAX_FRAMES
        assert all(6 <= scene.frames <= 10 for scene in clip.scenes)
    assert sample_clip(random.Random(0), 8, frames=64).frames == 64
    assert sample_clip(random.Random(0), 16, frames=128).frames == 128


@pytest.mark.parametrize(("scenes", "frames"), [(0, None), (17, None), (2, 11), (2, 21)])
def test_impossible_clips_are_refused(scenes: int, frames: int | None) -> None:
    with pytest.raises(ValueError, match="scenes"):
        sample_clip(random.Random(0), scenes, frames)


def test_one_question_has_one_answer() -> None:
    """Whatever wording is drawn, a question of a clip never has two answers."""
    for clip in clips():
        known: dict[str, str] = {}
        for seed in range(6):
            for question in questions(clip, random.Random(seed)):
                assert known.setdefault(question.text, question.answer) == question.answer


def test_every_kind_is_asked() -> None:
    asked = {question.kind for clip in clips() for question in questions(clip)}
    assert asked == set(KINDS)


def test_names_and_cuts_can_be_told_from_the_pixels() -> None:
    for clip in clips(40):
        looks = [
            (color, thing.shape)
            for scene in clip.scenes
            for thing in scene.things
            for color in (thing.color, thing.new_color)
            if color
        ]
        assert len(set(looks)) == len(looks), "a colour and shape name one thing of a clip"
        for before, after in zip(clip.scenes, clip.scenes[1:], strict=False):
            assert before.background != after.background, "a cut changes the background"


def test_things_neither_touch_nor_leave_the_frame() -> None:
    for clip in clips(40):
        for state in clip.states:
            for thing in state.things:
                assert 0.15 < thing.x < 0.85
                assert 0.15 < thing.y < 0.85
            if len(state.things) == 2:
                a, b = state.things
                assert math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
                assert a.color != b.color
                assert a.thing.shape != b.thing.shape


def test_things_are_where_their_truth_says() -> None:
    """First frames show every thing at its start and, for moves, last frames at its end."""
    for clip in clips(40):
        for state in clip.states:
            last = state.frame_in_scene == clip.scenes[state.scene].frames - 1
            for thing in state.things:
                if state.frame_in_scene == 0:
                    assert thing.visible
                    assert math.dist((thing.x, thing.y), REGIONS[thing.thing.start]) < 1e-9
                if last:
                    assert math.dist((thing.x, thing.y), REGIONS[thing.thing.end]) < 1e-9


def test_things_are_told_in_reading_order() -> None:
    order = list(REGIONS)
    for clip in clips(40):
        for scene in clip.scenes:
            starts = [order.index(thing.start) for thing in scene.things]
            assert starts == sorted(set(starts))


def test_colours_are_drawn() -> None:
    """The middle of a thing has its colour (a ring its background's), a corner the background's."""
    for shape in SHAPES:
        for name, color in COLORS.items():
            thing = Thing(shape, name, "large", "stay", "center", "center")
            frame = render(Clip((Scene("navy", (thing,), 6),)), 112)[0]
            middle = BACKGROUNDS["navy"] if shape == "ring" else color
            assert np.abs(frame[56, 56].astype(int) - middle).max() <= 1
            assert np.abs(frame[2, 2].astype(int) - BACKGROUNDS["navy"]).max() <= 1
            assert (np.abs(frame.astype(int) - color).max(-1) <= 1).sum() > 250


def test_shapes_differ() -> None:
    drawn = []
    for shape in SHAPES:
        thing = Thing(shape, "red", "small", "stay", "top", "top")
        drawn.append(render(Clip((Scene("white", (thing,), 6),)), 112)[0].astype(int))
    for i, one in enumerate(drawn):
        for other in drawn[i + 1 :]:
            assert (np.abs(one - other).max(-1) > 100).sum() > 30


def test_mp4_round_trip(tmp_path: Path) -> None:
    for seed, scenes in ((1, 1), (2, 4)):
        frames = render(sample_clip(random.Random(seed), scenes), 224)
        path = tmp_path / f"{seed}.mp4"
        write_clip(path, frames, fps=4)
        decoded = read_clip(path)
        assert decoded.shape == frames.shape
        assert np.abs(decoded.astype(int) - frames).mean() < 4
    with pytest.raises(ValueError, match="encode"):
        write_clip(tmp_path / "odd.mp4", frames[:, :223])


# ---- the recipe ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("transformers")
    from shapes.tokenizer import build_tokenizer

    return build_tokenizer()


def test_every_word_of_an_answer_is_one_token(tokenizer) -> None:
    for clip in clips():
        for question in questions(clip, random.Random(1)):
            ids = tokenizer(question.answer)["input_ids"]
            assert tokenizer.decode(ids) == question.answer
            assert len(ids) == len(re.findall(r"\w+|[.,]", question.answer))
            assert tokenizer.decode(tokenizer(question.text)["input_ids"]) == question.text


def test_descriptions_grow_with_the_clip(tokenizer) -> None:
    def tokens(scenes: int) -> list[int]:
        found = [questions(sample_clip(random.Random(s), scenes))[0] for s in range(20)]
        assert {question.kind for question in found} == {"describe"}
        return [len(tokenizer(question.answer)["input_ids"]) for question in found]

    assert min(tokens(1)) >= 30
    assert 180 < sum(tokens(8)) / 20 < 280


def test_packed_questions_are_answered_as_if_alone(tokenizer) -> None:
    import torch

    from shapes.packing import Packer
    from shapes.pair import Shape, new_model
    from shapes.training import run_model

    torch.manual_seed(0)
    model = new_model(Shape(64, 2, 64, 1), tokenizer).eval()
    packer, clip = Packer(tokenizer), sample_clip(random.Random(5), 2)
    asked = questions(clip)[:9]
    with torch.no_grad():
        together = packer.pack([clip], [asked], None)
        scores = run_model(model, together).scores
        for block in together.asked:
            # the usual way: one prompt, made by the chat template, through transformers' own forward
            content = [{"type": "video"}, {"type": "text", "text": block.question.text}]
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            prompt = prompt.replace("<video>", "<video>" * (clip.frames * 16 + 1))
            answer = tokenizer(block.question.answer)["input_ids"]
            ids = torch.tensor([tokenizer(prompt)["input_ids"] + answer])
            usual = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values_videos=together.pixels[None],
            ).logits[0, -len(answer) - 1 :]
            assert torch.allclose(scores[block.positions], usual, atol=1e-4)


def test_a_short_training_run(tokenizer, tmp_path: Path) -> None:
    """Both stages lower their loss, and what is saved loads and answers as the trained model."""
    import torch

    from shapes.evaluate import TeacherForced, load_frames
    from shapes.pair import Shape, new_model, save_checkpoint
    from shapes.training import Settings, new_heads, train_answers, train_frames
    from shapes.vision import train_vision

    torch.manual_seed(0)
    shape = Shape(width=64, layers=2, vision_width=64, vision_layers=1)
    models = {name: new_model(shape, tokenizer) for name in ("target", "draft")}
    heads = {name: new_heads(model) for name, model in models.items()}
    settings = Settings(
        steps=70,
        tokens_per_step=450,
        questions_per_clip=6,
        frames_per_step=8,
        curriculum=((0.0, {1: 1.0}),),
    )
    for losses, least in (
        (train_vision(models, seconds=0, steps=20, batch=16), 0.85),
        (train_frames(models, heads, tokenizer, replace(settings, steps=30), seconds=0), 0.85),
        (train_answers(models, heads, tokenizer, settings), 0.85),
    ):
        for name in models:
            assert sum(losses[name][-5:]) / 5 < least * losses[name][0]

    save_checkpoint(models["target"], tokenizer, tmp_path / "target")
    loaded = TeacherForced(tmp_path / "target")
    for name, weight in loaded.model.state_dict().items():
        trained = models["target"].state_dict()[name]
        assert torch.allclose(weight, trained, rtol=1e-2, atol=1e-6), name

    # the scores along what transformers' generate writes choose the same tokens
    clip = sample_clip(random.Random(3), 1)
    path = tmp_path / "clip.mp4"
    write_clip(path, render(clip))
    packer = loaded.packer
    asked = [*packer.encode("What happens in the video?"), *packer.turn]
    ids = [*packer.before, *([packer.video] * (clip.frames * 16 + 1)), *packer.after, *asked]
    prompt = torch.tensor([ids])
    written = loaded.model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values_videos=load_frames(path)[None],
        max_new_tokens=60,
        do_sample=False,
    )[0, len(ids) :].tolist()
    assert len(set(written)) > 1
    scores = loaded.scores(path, [*asked, *written[:-1]])
    assert scores.argmax(-1)[len(asked) - 1 :].tolist() == written


def test_muon_updates_have_equal_singular_values() -> None:
    torch = pytest.importorskip("torch")
    from shapes.optim import orthogonalized

    torch.manual_seed(0)
    for shape in ((3, 32, 96), (2, 96, 32)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert 0.6 < values.min() <= values.max() < 1.3
