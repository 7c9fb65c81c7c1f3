"""Growing a model in depth, and training it on in a run that may be stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("transformers")
import torch

from shapes.continuation import fit_heads, train_on
from shapes.frame_heads import NameHead
from shapes.growing import grown, sources, spread
from shapes.packing import Packer, draw_questions
from shapes.pair import Shape, load_checkpoint, new_model
from shapes.tokenizer import build_tokenizer
from shapes.training import Settings, new_heads, run_model
from shapes.world import questions, sample_clip

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def small(tokenizer):
    torch.manual_seed(0)
    return new_model(Shape(width=64, layers=2, vision_width=64, vision_layers=1), tokenizer)


def settings(**changes) -> Settings:
    usual = {
        "steps": 6,
        "tokens_per_step": 450,
        "questions_per_clip": 6,
        "curriculum": ((0.0, {1: 1.0}),),
        "hold": 0.5,
    }
    return Settings(**(usual | changes))


def layers_of(model):
    return model.model.language_model.layers


def test_every_old_layer_has_its_place() -> None:
    assert sources(2, 5) == [0, 0, 0, 1, 1]
    assert sources(6, 6) == list(range(6))
    assert set(sources(6, 28)) == set(range(6))
    with pytest.raises(ValueError, match="6 layers cannot grow to 5"):
        sources(6, 5)


def test_a_grown_model_starts_with_the_same_scores(tokenizer, small) -> None:
    deeper = grown(small, 5)
    clip = sample_clip(random.Random(1), 2)
    batch = Packer(tokenizer).pack([clip], [questions(clip)[:5]], None)
    with torch.no_grad():
        assert torch.equal(run_model(deeper, batch).scores, run_model(small, batch).scores)
    assert len(layers_of(deeper)) == deeper.config.text_config.num_hidden_layers == 5
    assert deeper.generation_config.eos_token_id == small.generation_config.eos_token_id


def test_added_layers_differ_and_learn(tokenizer, small) -> None:
    """Copies of one layer are not equal, and one step of training moves what they write."""
    deeper = grown(small, 5)
    first, second = layers_of(deeper)[1], layers_of(deeper)[2]
    assert not torch.equal(first.mlp.up_proj.weight, second.mlp.up_proj.weight)
    clip = sample_clip(random.Random(1), 1)
    batch = Packer(tokenizer).pack([clip], [questions(clip)[:5]], None)
    run_model(deeper, batch).scores.square().mean().backward()
    for layer in layers_of(deeper):
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            assert matrix.weight.grad.abs().max() > 0


def test_added_layers_take_a_share_of_what_the_first_model_wrote(small) -> None:
    """In a model of 2, 3 and 7 layers; the one that came first stays as training has left it."""
    deeper = grown(grown(small, 3), 7)
    with torch.no_grad():
        layers_of(deeper)[3].mlp.down_proj.weight.fill_(0.5)
    before = [layer.mlp.down_proj.weight.clone() for layer in layers_of(deeper)]
    spread(deeper, [2, 3], 0.2)
    after = [layer.mlp.down_proj.weight for layer in layers_of(deeper)]
    for added, factor in {0: 0.4, 1: 0.2, 2: 0.2, 4: 0.2}.items():
        assert torch.allclose(after[added], factor * before[0])
    assert torch.equal(after[3], before[3])
    for added, factor in {5: 0.8, 6: 0.2}.items():
        assert torch.allclose(after[added], factor * before[5])
    assert torch.equal(layers_of(deeper)[1].mlp.up_proj.weight, layers_of(deeper)[0].mlp.up_proj.weight)
    with pytest.raises(ValueError, match="a share of 0.5 for each of 3 layers leaves nothing"):
        spread(deeper, [2, 3], 0.5)


def test_names_are_found_where_questions_name_things(tokenizer) -> None:
    clip = sample_clip(random.Random(1), 3)
    asked = [question for question in questions(clip) if question.kind in {"describe", "scene", "action", "list"}]
    batch = Packer(tokenizer).pack([clip], [asked], None)
    things = [thing for scene in clip.scenes for thing in scene.things]
    found = [tokenizer.decode(batch.ids[row, column - 1 : column + 1]).strip() for row, column in batch.names.tolist()]
    assert sorted(found) == sorted([thing.name for thing in things] * 2), "twice in an action; never in a list"
    scenes = {thing.name: number for number, scene in enumerate(clip.scenes) for thing in scene.things}
    assert batch.name_labels[:, 0].tolist() == [scenes[name] for name in found]


def test_a_batch_may_name_nothing(tokenizer, small) -> None:
    clip = sample_clip(random.Random(1), 1)
    batch = Packer(tokenizer).pack([clip], [[q for q in questions(clip) if q.kind == "describe"]], None)
    width = small.config.text_config.hidden_size
    assert NameHead(width)(torch.zeros(len(batch.names), width), batch.name_labels)[0].item() == 0


def test_questions_are_drawn_once_each() -> None:
    clip = sample_clip(random.Random(3), 4)
    drawn = draw_questions(clip, random.Random(1), 20)
    assert [question.kind for question in drawn].count("describe") == 1
    assert len({(question.kind, question.answer, question.text) for question in drawn}) == 20
    assert len(draw_questions(clip, random.Random(1), 1000)) == len(questions(clip))


def test_heads_learn_while_the_model_stays(tokenizer, small) -> None:
    before = {name: weight.clone() for name, weight in small.state_dict().items()}
    shares = fit_heads(small, new_heads(small), Packer(tokenizer), settings(), steps=12)
    assert sum(shares[-3:]) > sum(shares[:3])
    for name, weight in small.state_dict().items():
        assert torch.equal(weight, before[name])


def test_a_resumed_run_does_what_an_unbroken_one_does(tokenizer, small, tmp_path: Path) -> None:
    def fresh():
        torch.manual_seed(0)  # for the heads
        return grown(small, 3)

    options = {"heads_steps": 2, "check_scenes": ()}
    whole = train_on(fresh(), tokenizer, settings(), tmp_path / "whole", **options)
    calls = iter([False, False, False, True])
    part = train_on(fresh(), tokenizer, settings(), tmp_path / "part", lambda: next(calls), **options)
    assert part.step == 3
    resumed = train_on(fresh(), tokenizer, settings(), tmp_path / "part", **options)
    assert resumed.step == whole.step == 6
    assert resumed.active_seconds > part.active_seconds
    for kind in ("model", "heads"):
        ours, theirs = (getattr(run, kind).state_dict() for run in (resumed, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(resumed.average[name], weight) for name, weight in whole.average.items())

    # a run from what lies beside the state takes over the heads, and the average as its weights
    begun = train_on(fresh(), tokenizer, settings(), tmp_path / "next", lambda: True, tmp_path / "part")
    assert all(torch.equal(begun.heads.state_dict()[n], w) for n, w in resumed.heads.state_dict().items())
    loaded, _ = load_checkpoint(tmp_path / "part")
    for name, weight in loaded.named_parameters():
        assert torch.allclose(weight, resumed.average[name], rtol=1e-2, atol=1e-6), name


def test_a_run_of_two_processes_is_saved_when_it_is_ended(tokenizer, small, tmp_path: Path) -> None:
    started = train_on(small, tokenizer, settings(steps=1), tmp_path, heads_steps=1, check_scenes=())
    log = tmp_path / "log.txt"
    with open(log, "wb") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "shapes", "continue", "--state", tmp_path, "--processes", "2", "--scenes", "1:1"],
            env={**os.environ, "PYTHONPATH": str(RECIPES)},
            stderr=file,
        )
    deadline = time.monotonic() + 80
    while log.read_text().count("resumed at step 1") < 2 and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(90) == 0
    assert "saved at step" in log.read_text()
    assert torch.load(tmp_path / "training.pt")["step"] >= started.step
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "no temporary files are left"
