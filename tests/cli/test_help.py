"""Help, typos and completion."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import pvlm
from pvlm.cli import main
from pvlm.cli import options as shared
from pvlm.cli.commands import Options, repeated
from pvlm.config import AnswerOptions, EngineConfig
from tests.support.plugin import plugins

HEAVY = ("torch", "numpy", "msgspec", "anyio", "structlog", "pydantic", "PIL", "asyncio")
LISTING = ("importlib.metadata", "statistics")
"""What the list of commands can do without."""


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[None]:
    entries = "[pvlm.backends]\nmine = x:X\n[pvlm.pruners]\nmy-pruner = x:X\n[pvlm.video_readers]\nmy-reader = x:X\n"
    with plugins(tmp_path, "pvlm-mine", entries):
        yield


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The help of a command."""
    assert main([*arguments, "--help"]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that refuses the arguments."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == shown(capsys)
    assert main(["keys"]) == 0
    assert "DIR" not in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert (main(["-V"]), main(["--version"])) == (0, 0)
    assert capsys.readouterr().out == 2 * f"pvlm {pvlm.__version__}\n"


def test_help_loads_nothing_that_takes_long() -> None:
    code = (
        "import sys; from pvlm.cli import main; main(['--help']);"
        f"listing = set({LISTING!r}) & sys.modules.keys();"
        "[main([*words, '--help']) for words in ([], ['answer'], ['plan'], ['serve'], ['worker'], ['bench'])];"
        "main(['-V']);"
        f"print(listing | set({HEAVY!r}) & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_options_are_in_groups_and_only_where_they_count(capsys: pytest.CaptureFixture[str]) -> None:
    answer = shown(capsys, "answer")
    panels = re.findall(r"╭─ (.+?) ─", answer)
    assert panels[2:] == [
        shared.MODELS, shared.PLACES, shared.DECODING, shared.DRAFT_VIEW, shared.VIDEO, shared.TEXT,
    ]  # fmt: skip
    assert "--window" in answer
    assert "--window" not in shown(capsys, "bench", "pruning")
    assert "--method " not in shown(capsys, "plan")
    assert "--frames" not in shown(capsys, "worker")
    assert "No such option: --method" in refused(capsys, "bench", "scaling", "--method", "ar")


def test_every_shared_option_is_a_setting() -> None:
    settings = {*EngineConfig.__struct_fields__, *AnswerOptions.__struct_fields__}
    kinds = [kind for kind in vars(shared).values() if isinstance(kind, type) and issubclass(kind, Options)]
    names = {one.name for kind in kinds for one in fields(kind)} - {"quiet", "verbose"}
    assert len(names) > 30
    assert names <= settings


@pytest.mark.usefixtures("installed")
def test_installed_plug_ins_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    answer = shown(capsys, "answer")
    assert "emulated, hf, mine, native, torch" in answer
    assert "my-pruner" in answer
    assert "my-reader" in answer
    assert "did you mean 'my-pruner'?" in refused(capsys, "answer", "clip.mp4", "?", "--prune", "my-prune")


@pytest.mark.parametrize("name", ["--backend", "--draft-backend", "--prune", "--video-reader"])
def test_a_plug_in_may_be_named_by_its_import_path(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    clip = Path(pvlm.__file__).parent / "bundled" / "clips" / "two-scenes.mp4"
    assert main(["answer", str(clip), "?", name, "nowhere_to_be_found:Plugin"]) == 1
    assert "plug-in 'nowhere_to_be_found:Plugin' in group pvlm." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["answr"], "Did you mean 'answer'?"),
        (["bench", "scalling"], "Did you mean 'scaling'?"),
        (["answer", "clip.mp4", "?", "--framse", "3"], "Did you mean --frames?"),
        (["answer", "clip.mp4", "?", "--method", "paralel"], "'paralel' is not one of 'parallel', 'sd', 'ar'"),
        (["answer", "clip.mp4", "?", "--max-tokens", "four"], "'--max-tokens': 'four' should be a valid integer. See"),
        (["answer", "clip.mp4", "?", "--temperature", "hot"], "'hot' should be a valid number. See"),
        (["answer", "clip.mp4", "What", "is", "it?"], "(is it?). Put a question of several words in quotes. See"),
        (["answer", "clip.mp4", "?", "--window", "wide"], "'wide' is neither a number nor auto"),
        (
            ["answer", "clip.mp4", "?", "--video-reader", "nothing"],
            "there is no 'nothing': use one of auto, decord, pictures, pyav",
        ),
        (["answer", "clip.mp4"], "Missing argument 'QUESTION'"),
        (["bench", "--methods", "sdd"], "invalid choice: 'sdd' (choose from all, ar"),
    ],
)
def test_a_typo_is_one_line_with_a_hint(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hint in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("pvlm an", {"answer"}),
        ("pvlm bench sc", {"scaling"}),
        ("pvlm answer --pru", {"--prune", "--prune-ratio"}),
        ("pvlm answer --prune my", {"my-pruner"}),
        ("pvlm answer --method s", {"sd"}),
    ],
)
@pytest.mark.usefixtures("installed")
def test_words_are_completed(
    words: str, completions: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_PVLM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert set(capsys.readouterr().out.split()) == completions


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("a --n 1 2 --b 3", "a --n 1 --n 2 --b 3"),
        ("--n 1 --n 2 3", "--n 1 --n 2 --n 3"),
        ("--n -1 2 -- 3", "--n -1 --n 2 -- 3"),
        ("--n=1 2", "--n=1 2"),
        ("--n", "--n"),
    ],
)
def test_an_option_takes_several_words(given: str, written: str) -> None:
    assert repeated(given.split(), ["--n"]) == written.split()
