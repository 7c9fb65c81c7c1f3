"""A file of questions: order, failures, exit status, and going on where a run has stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pvlm.answer.batch import AnswerRequest, Outcome
from pvlm.answer.file import AnswersFile, AskedLine
from pvlm.cli import main
from pvlm.engine import Engine
from pvlm.errors import TargetLost

MODELS = ["--backend", "emulated", "--target", '{"pass_ms": 0}', "--draft", "none", "--transport", "inproc"]
ASKED = [{"question": f"What is {number}?", "options": {"max_tokens": number + 1}} for number in range(6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(folder: Path, lines: list[Any], *options: str) -> int:
    """Write lines as JSON, or as they are where they are text, and run the command. Returns its exit status."""
    written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "questions.jsonl").write_text("\n".join(written))
    return main(["batch", "questions.jsonl", "--out", "answers.jsonl", *MODELS, *options])


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_every_line_has_an_answer_in_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [{**line, "id": [number]} for number, line in enumerate(ASKED)]
    assert ask(folder, ["", *named, "  "], "--concurrency", "3") == 0
    found = answers(folder)
    assert [(row["line"], row["id"], len(row["tokens"])) for row in found] == [(n + 2, [n], n + 1) for n in range(6)]
    assert found[0]["stats"]["method"] == "ar"
    assert capsys.readouterr().err == "answers.jsonl: 6 of 6 lines have an answer\n"


def test_bad_lines_end_nothing_and_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [
        "no json",
        {"video": "gone.mp4", "question": "?", "id": "b"},
        [1],
        {"question": "?", "options": {"seed": -1}},
    ]
    assert ask(folder, [ASKED[0], *bad, ASKED[1]], "-q") == 14
    found = answers(folder)
    assert [row.get("error") for row in found] == [
        None,
        "OptionError",
        "VideoError",
        "OptionError",
        "OptionError",
        None,
    ]
    assert [row.get("id") for row in found] == [None, None, "b", None, None, None]
    assert "seed" in found[4]["message"]
    assert capsys.readouterr().err == ""
    assert ask(folder, ["no json"] * 200, "--out", "many.jsonl") == 100


def test_a_run_goes_on_where_one_has_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of a line; later some lines are removed by hand, and the file is in order again."""
    assert ask(folder, ASKED) == 0
    whole = (folder / "answers.jsonl").read_text()
    rows = whole.splitlines(keepends=True)
    asked = count_asked(monkeypatch)
    (folder / "answers.jsonl").write_text("".join(rows[:4]) + rows[4][:20])
    assert ask(folder, ASKED) == 0
    assert len(asked) == 2
    assert [(row["line"], len(row["tokens"])) for row in answers(folder)] == [(n + 1, n + 1) for n in range(6)]
    (folder / "answers.jsonl").write_text("".join([rows[5], rows[0], rows[3]]))
    assert ask(folder, ASKED, "--max-tokens", "99") == 0
    assert [(row["line"], len(row["tokens"])) for row in answers(folder)] == [(n + 1, n + 1) for n in range(6)]
    assert len(asked) == 5
    assert ask(folder, ASKED) == 0
    assert len(asked) == 5
    assert not list(folder.glob("*.part"))


def count_asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that engines answer from now on."""
    asked: list[str] = []
    original = Engine.answer

    def answer(self: Engine, video: Any, question: str, **options: Any) -> Any:
        asked.append(question)
        return original(self, video, question, **options)

    monkeypatch.setattr(Engine, "answer", answer)
    return asked


def test_failed_lines_stay_and_count_in_a_later_run(folder: Path) -> None:
    assert ask(folder, ["no json", ASKED[0]]) == 11
    assert ask(folder, ["no json", *ASKED[:3]]) == 11
    assert [row["line"] for row in answers(folder)] == [1, 2, 3, 4]


def test_unordered(folder: Path) -> None:
    slow = {"question": "?", "options": {"max_tokens": 2000}}
    assert ask(folder, [slow, *ASKED], "--unordered", "--concurrency", "2") == 0
    lines = [row["line"] for row in answers(folder)]
    assert sorted(lines) == list(range(1, 8))
    assert lines[0] == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("hello\n", "line 1, is no answer of `pvlm batch`"),
        ('{"line": 1}\n', "line 1, is no answer of `pvlm batch`"),
        ('{"line": 1, "digest": "0"}\n', "answers another question than line 1 of the questions"),
        ('{"line": 9, "digest": "0"}\n', "answers another question than line 9 of the questions"),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (folder / "answers.jsonl").write_text(content)
    assert ask(folder, ASKED) == 1
    assert said in capsys.readouterr().err
    assert (folder / "answers.jsonl").read_text() == content


def test_files_that_cannot_be_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(folder, ASKED, "--out", "questions.jsonl") == 1
    assert "--out is the file of questions" in capsys.readouterr().err
    assert ask(folder, ASKED, "--out", "no/answers.jsonl") == 1
    assert "cannot write 'no/answers.jsonl'" in capsys.readouterr().err
    assert main(["batch", "gone.jsonl", "--out", "answers.jsonl"]) == 1
    assert "cannot read 'gone.jsonl'" in capsys.readouterr().err


def test_a_line_that_ended_with_the_target_is_asked_again(folder: Path) -> None:
    asked = [AskedLine(1, b'{"question": "?"}'), AskedLine(2, b'{"question": "?", "id": 4}')]
    (folder / "questions.jsonl").write_bytes(b"")
    with AnswersFile("answers.jsonl", asked, "questions.jsonl") as file:
        file.add(asked[0], Outcome(0, AnswerRequest(), error=TargetLost("gone")))
        assert (file.failed, file.left) == (1, asked)
        assert "1 failed, 2 are left" in file.summary(0)
    assert answers(folder) == []


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    main(["batch", "--help"])
    assert "10 + the number of lines that" in capsys.readouterr().out
