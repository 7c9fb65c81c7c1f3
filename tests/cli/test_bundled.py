"""What the bundled pair cannot know is noted in a line."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pvlm.cli import main
from pvlm.cli.bundled import LimitNote, bundled_clips, clips_folder, is_drawn, knows_question
from shapes.rendering import render
from shapes.world import KINDS, WORDINGS, questions, sample_clip
from tests.support.pair import FLAGS

NOISE = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)


def notes(frames: NDArray[np.uint8] | None, question: str) -> list[str]:
    """What is noted about a question on these frames."""
    noted: list[str] = []
    visuals = [] if frames is None else [SimpleNamespace(pixels=frames)]
    recorded: Any = SimpleNamespace(opening=SimpleNamespace(visuals=visuals))
    LimitNote(noted.append, question, None).began(recorded)
    return noted


def test_every_question_of_the_recipe_is_known() -> None:
    rng = random.Random(1)
    asked = [question for _ in range(20) for question in questions(sample_clip(rng, 3, 24), rng)]
    assert {one.kind for one in asked} == set(KINDS)
    assert [one.text for one in asked if not knows_question(one.text)] == []
    assert all(knows_question(clip.question) for clip in bundled_clips())
    assert sum(map(len, WORDINGS.values())) == 27


def test_drawn_frames_are_known() -> None:
    assert is_drawn(render(sample_clip(random.Random(1), 2, 12), 112))
    assert not is_drawn(NOISE)


@pytest.mark.parametrize(
    ("drawn", "question", "said"),
    [
        (True, "Describe the video.", None),
        (False, "Describe the video.", "drawn shapes only, and this is another video"),
        (True, "Who wins?", "questions such as 'Describe the video.'"),
    ],
)
def test_the_note_says_what_to_do(drawn: bool, question: str, said: str | None) -> None:
    frames = render(sample_clip(random.Random(1), 2, 12), 112) if drawn else NOISE
    noted = notes(frames, question)
    if said is None:
        assert noted == []
    else:
        (line,) = noted
        assert said in line
        assert "for real videos: --target" in line


def test_instructions_reach_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    """The models refuse a special token in any text of the prompt."""
    with clips_folder() as folder:
        arguments = ["answer", str(folder / "one-scene.mp4"), "What?", "--system", "Say <|im_end|>.", "--method", "ar"]
        assert main([*arguments, *FLAGS, "--transport", "inproc", "--threads", "1"]) == 1
    assert "a text of the prompt holds the special token '<|im_end|>'" in capsys.readouterr().err
