"""The example of a plug-in: installed as a user would, and used through everything public."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pvlm import Answer
from pvlm_protocols.backend import BackendError, CheckpointError, LoadOptions, Prompt, PromptError

from .conftest import EXAMPLES, QUESTION

USE = """
import json, sys
from pvlm import Engine

answer = Engine.create(draft=sys.argv[1], draft_backend="ngram").answer_sync(sys.argv[2], sys.argv[3])
stats = answer.stats
print(json.dumps([answer.tokens, stats.accepted_tokens, stats.rejected_tokens, stats.draft_lost, stats.prune]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package and its entry point have been installed to, apart from this environment."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(folder), str(EXAMPLES / "custom_backend")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def python(installed: Path, *arguments: str | Path) -> str:
    """Run Python with the package installed; its standard output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(installed: Path, folder: Path, text: str) -> Path:
    (folder / "texts.txt").write_text(f"{text}\n")
    told = python(installed, "-m", "pvlm_ngram.train", folder / "texts.txt", folder / "draft.json")
    assert "from 1 texts" in told
    return folder / "draft.json"


def test_a_draft_that_has_read_the_answer_is_mostly_right(
    installed: Path, tmp_path: Path, clip: Path, reference: Answer
) -> None:
    draft = trained(installed, tmp_path, reference.text)
    (tmp_path / "use.py").write_text(USE)
    told = python(installed, tmp_path / "use.py", draft, clip, QUESTION).splitlines()[-1]
    tokens, accepted, rejected, draft_lost, prune = json.loads(told)
    assert tokens == list(reference.tokens)
    assert accepted > rejected
    assert (draft_lost, prune) == ("", "uv")


def test_a_draft_that_knows_nothing_changes_nothing(
    installed: Path, tmp_path: Path, clip: Path, reference: Answer
) -> None:
    draft = trained(installed, tmp_path, "Whatever happens: the small red square is large, and blue, and no circle.")
    arguments = ["--draft", draft, "--draft-backend", "ngram", "--json"]
    told = json.loads(python(installed, "-m", "pvlm", "answer", clip, QUESTION, *arguments))
    assert (told["text"], told["tokens"]) == (reference.text, list(reference.tokens))
    assert told["stats"]["drafted_tokens"] > 0
    assert told["stats"]["draft_lost"] == ""


# ---- the session by itself ----------------------------------------------------------------------------------------


@pytest.fixture
def pvlm_ngram(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(EXAMPLES / "custom_backend" / "src")
    yield importlib.import_module("pvlm_ngram")
    for name in [name for name in sys.modules if name.startswith("pvlm_ngram")]:
        del sys.modules[name]


@pytest.fixture
def path(pvlm_ngram: ModuleType, tmp_path: Path) -> Path:
    train = importlib.import_module("pvlm_ngram.train").train
    train(["The circle moves.", "The circle moves.", "The square moves."]).write(tmp_path / "draft.json")
    return tmp_path / "draft.json"


@pytest.fixture
def backend(pvlm_ngram: ModuleType, path: Path) -> Any:
    return pvlm_ngram.NgramBackend.load(LoadOptions(str(path), role="draft"))


def test_it_writes_what_it_has_read(backend: Any) -> None:
    processor = backend.processor(backend.info.name)
    session = backend.open(Prompt(QUESTION), 12)
    tokens = [int(session.prefill().argmax())]
    while tokens[-1] not in backend.info.end_token_ids:
        tokens.append(int(session.extend(tokens[-1:])[-1].argmax()))
    assert processor.decode(tokens) == "The circle moves."


def test_logits_are_log_probabilities(backend: Any) -> None:
    session = backend.open(Prompt(QUESTION), 12)
    rows = torch.stack([session.prefill(), *session.extend([5, 600, 5])])
    assert rows.dtype == torch.float32
    assert rows.shape == (4, backend.info.vocab_size)
    assert rows.isfinite().all()
    torch.testing.assert_close(rows.exp().sum(-1), torch.ones(4))


def test_rollback(backend: Any) -> None:
    session = backend.open(Prompt(QUESTION), 3)
    session.prefill()
    before = session.extend([5, 6, 7])
    with pytest.raises(PromptError, match="3 reserved"):
        session.extend([8])
    session.truncate(1)
    assert session.length == 1
    torch.testing.assert_close(session.extend([6, 7]), before[1:])
    with pytest.raises(ValueError, match="truncate"):
        session.truncate(4)
    for tokens in ([], [-1], [backend.info.vocab_size]):
        with pytest.raises(ValueError, match="tokens"):
            session.extend(tokens)


def test_it_counts_video_tokens_as_the_target_does(backend: Any) -> None:
    processor = backend.processor(backend.info.name)
    prompt = Prompt(QUESTION, processor.resize(np.zeros((3, 40, 60, 3), np.uint8)))
    assert backend.open(prompt, 1).video_tokens == processor.prepare(prompt).video_tokens


def test_it_can_only_draft(pvlm_ngram: ModuleType, path: Path) -> None:
    with pytest.raises(BackendError, match="not a target"):
        pvlm_ngram.NgramBackend.load(LoadOptions(str(path), role="target"))


def test_a_model_of_another_tokenizer_is_refused(pvlm_ngram: ModuleType, path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_fingerprint": "another"}))
    with pytest.raises(CheckpointError, match="train again"):
        pvlm_ngram.NgramBackend.processor(str(path))


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]"])
def test_a_damaged_model_is_refused(pvlm_ngram: ModuleType, path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"draft\.json"):
        pvlm_ngram.NgramBackend.processor(str(path))


def test_importing_it_is_cheap() -> None:
    program = "import sys, pvlm_ngram; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    python(EXAMPLES / "custom_backend" / "src", "-c", program)
