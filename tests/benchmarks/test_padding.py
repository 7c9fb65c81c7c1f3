"""Padded targets: more layers, the same output, in our own backend and in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.__main__ import main
from benchmarks.padding import UNPADDED_LAYERS, pad_layers, padded_arguments
from pvlm import ModelError, OptionError
from pvlm_backends.hf import HuggingFaceBackend
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import Backend, LoadOptions, Prompt
from tests.backends.families.llava_onevision.checkpoint import llava_checkpoint
from tests.bench.conftest import CLIPS
from tests.support.pair import FLAGS, PAIR, SMALL

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
ANSWER = [17, 300, 5, 42]


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small target with more appended layers than it has of its own."""
    return pad_layers(SMALL / "target", tmp_path_factory.mktemp("padded") / "target", 7)


def depth(folder: Path) -> tuple[int, int]:
    """Layers of a padded checkpoint, and of the original."""
    settings = json.loads((folder / "config.json").read_text())
    return settings["text_config"]["num_hidden_layers"], settings[UNPADDED_LAYERS]


def logits(backend: type[Backend], folder: Path, frames: np.ndarray | None = FRAMES) -> torch.Tensor:
    """``(1 + 4, vocabulary)``: after the prompt, and after each token of an answer in one pass."""
    model = backend.load(LoadOptions(str(folder), dtype="float32"))
    session = model.open(Prompt("What happens?", frames), 8)
    rows = torch.cat([session.prefill()[None], session.extend(ANSWER)])
    session.close()
    model.close()
    return rows.clone()


@pytest.mark.parametrize("backend", [TorchBackend, HuggingFaceBackend])
def test_a_padded_target_says_what_the_original_says(backend: type[Backend], deeper: Path) -> None:
    """To the last bit: what the appended layers add is zero."""
    assert torch.equal(logits(backend, deeper), logits(backend, SMALL / "target"))


def test_a_padded_target_is_deeper(deeper: Path) -> None:
    """Every appended layer is computed: it has weights, and they are not zero but in the two output projections."""
    model = TorchBackend.load(LoadOptions(str(deeper)))
    assert model.info.layers == 13
    original = TorchBackend.load(LoadOptions(str(SMALL / "target"))).info
    assert original.layers == 6
    vision_and_embeddings = original.parameters - 6 * (model.info.parameters - original.parameters) // 7
    assert 0 < vision_and_embeddings < original.parameters / 4
    assert depth(deeper) == (13, 6)


def test_padding_that_is_not_zero_would_be_noticed(deeper: Path, tmp_path: Path) -> None:
    """The comparison of logits can fail: one weight of one output projection is enough."""
    broken = shutil.copytree(deeper, tmp_path / "broken")
    weights = load_file(broken / "padding.safetensors")
    name = next(name for name in weights if name.endswith("layers.9.mlp.down_proj.weight"))
    weights[name][:] = 0.05
    save_file(weights, broken / "padding.safetensors", {"format": "pt"})
    assert not torch.equal(logits(TorchBackend, broken), logits(TorchBackend, SMALL / "target"))


def test_sharded_and_untied_checkpoints(tmp_path: Path) -> None:
    sharded = llava_checkpoint(tmp_path / "sharded", tied=False, max_shard_size="100KB")
    twice = pad_layers(pad_layers(sharded, tmp_path / "once", 2), tmp_path / "twice", 1)
    frames = np.random.default_rng(0).integers(0, 256, (2, 70, 70, 3), dtype=np.uint8)
    assert torch.equal(logits(TorchBackend, twice, frames), logits(TorchBackend, sharded, frames))
    layers, unpadded = depth(twice)
    assert layers - unpadded == 3


def test_arguments_for_a_padded_target() -> None:
    """The target is another, the draft is the same, and pruning looks where it looks in the unpadded target."""
    small = PAIR["target"]
    with padded_arguments(small, "draft", 20) as arguments:
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        folder = Path(given.pop("--target"))
        assert depth(folder) == (26, 6)
        assert given == {
            "--draft": "draft",
            "--early-layer": "2",  # 26 layers would give 7
            "--note": "20 layers of zero output were appended to the target: a deeper model's cost, the same output",
        }
        with padded_arguments(str(folder), "draft", 1) as again:
            assert again[5] == "2"
            assert again[7].startswith("21 layers of zero output")
    assert not folder.exists()
    with padded_arguments(small, "draft", 1, early_layer=4) as arguments:
        assert arguments[5] == "4"


def test_what_cannot_be_padded(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="-1 layers"):
        pad_layers(SMALL / "target", tmp_path / "out", -1)
    with pytest.raises(ModelError, match="somebody/model"):
        pad_layers("somebody/model", tmp_path / "out", 1)
    with pytest.raises(ModelError, match="nowhere"):
        pad_layers(SMALL / "target", "/proc/nowhere", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="num_hidden_layers"):
        pad_layers(tmp_path / "empty", tmp_path / "out", 1)


def test_pad_writes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pad", str(tmp_path / "deeper"), "--layers", "1", FLAGS[0]]) == 0
    assert "a deeper model's cost, the same output" in capsys.readouterr().out
    assert depth(tmp_path / "deeper") == (7, 6)
    assert main(["pad", str(tmp_path / "deeper"), "--layers", "1"]) == 1
    assert "deeper" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pad", str(tmp_path / "other"), "--layers", "1", "--rounds", "3"])
    assert "unknown arguments: --rounds 3" in capsys.readouterr().err


def test_bench_runs_with_a_padded_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real models; the table and every row say what was padded."""
    rows_file = tmp_path / "rows.json"
    command = ["bench", "--pad-layers", "1", "--videos", str(CLIPS / "one-scene.mp4"), "--rounds", "1", *FLAGS]
    command += ["--max-tokens", "8", "--methods", "parallel", "--transport", "inproc", "--json", str(rows_file)]
    assert main(command) == 0
    rows = json.loads(rows_file.read_text())
    assert [(row["method"], row["target_layers"], row["same_tokens"]) for row in rows] == [
        ("ar", 7, True),
        ("parallel", 7, True),
    ]
    note = "1 layers of zero output were appended to the target: a deeper model's cost, the same output"
    assert {row["note"] for row in rows} == {note}
    assert note in capsys.readouterr().out


def test_bad_padding_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--pad-layers", "-2", "--methods", "ar"]) == 1
    error = capsys.readouterr().err
    assert "-2 layers" in error
    assert error.count("\n") == 1
