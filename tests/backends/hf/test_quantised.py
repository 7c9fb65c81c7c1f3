"""Quantised checkpoints in `hf`: loaded by transformers, or refused by the name of what is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, LlavaOnevisionForConditionalGeneration

from pvlm_backends.hf import HuggingFaceBackend
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import CheckpointError, LoadOptions, Prompt
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE, llava_checkpoint
from tests.support.checkpoints import edit_settings, random_frames

PROMPT = Prompt("What happens?", random_frames(2, IMAGE_SIZE, IMAGE_SIZE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return llava_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("method", "settings", "package"),
    [
        ("bitsandbytes", {"load_in_4bit": True}, "bitsandbytes"),
        (None, {"load_in_8bit": True}, "bitsandbytes"),
        ("compressed-tensors", {"config_groups": {}, "format": "pack-quantized"}, "compressed-tensors"),
        ("awq", {"bits": 4, "group_size": 32, "zero_point": True}, "gptqmodel"),
        ("gptq", {"bits": 4, "group_size": 32}, "optimum"),
    ],
)
def test_a_missing_package_is_named(folder: Path, method: str | None, settings: dict[str, Any], package: str) -> None:
    if find_spec(package.replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed")
    named = {} if method is None else {"quant_method": method}
    edit_settings(folder / "config.json", quantization_config={**named, **settings})
    with pytest.raises(CheckpointError, match=rf"pip install .*{package}"):
        HuggingFaceBackend.load(LoadOptions(str(folder)))


def test_an_unknown_method_is_named(folder: Path) -> None:
    """transformers would take the weights for plain ones."""
    edit_settings(folder / "config.json", quantization_config={"quant_method": "tenfold"})
    with pytest.raises(CheckpointError, match="quant_method is 'tenfold', which this transformers does not know"):
        HuggingFaceBackend.load(LoadOptions(str(folder)))
    with pytest.raises(CheckpointError, match="no quantised weights; take the backend 'hf'"):
        TorchBackend.load(LoadOptions(str(folder)))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes")
def test_four_bits(folder: Path) -> None:
    """As transformers saves them, with its own logits; a pass after a rollback gives the same as before."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32
    )
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    backend = HuggingFaceBackend.load(LoadOptions(str(folder)))
    kinds = {type(module).__name__ for module in backend._model.modules()}
    assert "Linear4bit" in kinds
    session = backend.open(PROMPT, 8)
    session.prefill()
    expected = session.extend([5, 6, 7]).clone()
    session.truncate(1)
    torch.testing.assert_close(session.extend([6, 7]), expected[1:], rtol=1e-4, atol=1e-4)
