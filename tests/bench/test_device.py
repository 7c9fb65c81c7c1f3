"""``pvlm bench device`` in the smallest size, on the CPU: what it measures, shows and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from pvlm.bench.architectures import PAIRS, write_architecture
from pvlm.cli import main
from pvlm_backends.hf import HuggingFaceBackend
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import LoadOptions, Prompt


def test_every_measurement_of_every_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "device.json"
    arguments = "--pair tiny --video-tokens 300 --tokens 1 2 16 --ratios 0 0.9 --window 3 --rounds 2 --threads 1"
    assert main(["bench", "device", *arguments.split(), "--json", str(file)]) == 0
    written: dict[str, Any] = msgspec.json.decode(file.read_bytes())
    assert (written["dtype"], written["devices"]) == ("bfloat16", {"target": "cpu", "draft": "cpu"})
    found = [(row["backend"], row["role"], row["what"], row["tokens"], row["ratio"]) for row in written["rows"]]
    rows = 364
    assert found == [
        (backend, *row)
        for backend in ("torch", "hf")
        for row in (
            ("target", "pass", 1, 0.0),
            ("target", "pass", 2, 0.0),
            ("target", "pass", 16, 0.0),
            ("draft", "drafted token", 3, 0.0),
            ("draft", "drafted token", 3, 0.9),
            ("target", "prefill", rows, 0.0),
            ("target", "prefill beside the draft's", rows, 0.9),
        )
    ]
    assert all(row["ms"] > 0 for row in written["rows"])
    assert {row["rows"] for row in written["rows"] if row["ratio"] == 0} == {rows}
    assert {row["rows"] for row in written["rows"] if row["what"] == "drafted token"} == {rows, 30 + 64}
    shown = capsys.readouterr().out
    for words in ("torch / hf", "pass over 16", "ratio 0.9", "beside the draft's", "random weights", "vision tower"):
        assert words in shown


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("role", ["target", "draft"])
def test_decoders_have_the_sizes_that_their_names_say(tmp_path: Path, pair: str, role: str) -> None:
    folder = write_architecture(tmp_path / "model", PAIRS[pair][role], 32_768)  # type: ignore[index]
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_pretrained(folder))
    billions = sum(weight.numel() for weight in model.model.language_model.parameters()) / 1e9
    head = 0 if PAIRS[pair][role].tied else model.lm_head.weight.numel() / 1e9  # type: ignore[index]
    # From the cards of the released models, without vision towers.
    expected = {
        "llava-onevision-0.5b-7b": {"target": 7.6, "draft": 0.49},
        "qwen2.5-vl-7b-32b": {"target": 32.8, "draft": 7.6},
        "tiny": {"target": 0.0002, "draft": 0.00004},
    }[pair][role]
    assert billions + head == pytest.approx(expected, rel=0.15 if pair == "tiny" else 0.02)


@pytest.mark.parametrize("backend", [TorchBackend, HuggingFaceBackend])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_need_no_checkpoint(
    tmp_path: Path, backend: type[TorchBackend] | type[HuggingFaceBackend], dtype: str
) -> None:
    folder = write_architecture(tmp_path / "model", PAIRS["tiny"]["target"], 512)
    loaded = backend.load(LoadOptions(str(folder), dtype=dtype, extra={"random_weights": True}))
    assert loaded.info.dtype == dtype
    session = loaded.open(Prompt("What happens?"), 4)
    first = session.prefill()
    assert first.isfinite().all()
    assert float(first.std()) > 0.01
    assert not torch.equal(session.extend([5])[-1], first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--video-tokens 0", "video tokens: 0; at least 1 is needed"),
        ("--tokens 0", "tokens: 0; at least 1 is needed"),
        ("--ratios 1", "ratios: [1.0]; each must be at least 0 and below 1"),
        ("--device cuda:7", "cuda:7"),
        ("--backends nothing", "nothing"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "device", "--pair", "tiny", *arguments.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
