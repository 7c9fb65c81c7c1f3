"""A model on several devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.utils import check_device_map
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText

from pvlm_backends.families import find_family
from pvlm_backends.hf import HuggingFaceBackend
from pvlm_backends.hf import model as hf_model
from pvlm_backends.hf.prompts import FamilyPrompts
from pvlm_backends.placement import place_layers
from pvlm_backends.processing import files
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import Backend, BackendError, EarlyStates, LoadOptions, Prompt
from tests.backends.conftest import ANYWHERE, BACKENDS
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE, llava_checkpoint
from tests.support.checkpoints import random_frames

FIND = Callable[[str], Path]
PROMPT = Prompt("What happens?", random_frames(2, IMAGE_SIZE, IMAGE_SIZE))


@given(
    before=st.integers(0, 1000),
    layers=st.lists(st.integers(1, 100), min_size=1, max_size=40),
    after=st.integers(0, 1000),
    count=st.integers(1, 8),
)
def test_layers_lie_in_order_and_evenly(before: int, layers: list[int], after: int, count: int) -> None:
    count = min(count, len(layers))
    devices = [torch.device("cuda", index) for index in range(count)]
    placed = [device.index for device in place_layers(before, layers, after, devices)]
    assert len(placed) == len(layers)
    assert placed == sorted(placed)
    share = (before + sum(layers) + after) / count
    for device in range(count):
        held = sum(size for size, place in zip(layers, placed, strict=True) if place == device)
        fixed = before * (device == 0) + after * (device == count - 1)
        assert held + fixed <= max(share + max(layers), fixed + max(layers))


def test_layers_of_a_large_model() -> None:
    """28 equal layers with embeddings and head of three each, on two and four devices."""
    for count, expected in ((2, [14, 14]), (4, [5, 9, 8, 6])):
        devices = [torch.device("cuda", index) for index in range(count)]
        placed = place_layers(3, [1] * 28, 3, devices)
        assert [placed.count(device) for device in devices] == expected


def answers(backend: Backend) -> list[torch.Tensor]:
    """Everything that a session computes."""
    states: list[EarlyStates] = []
    session = backend.open(PROMPT, 8)
    logits = [session.prefill(early_layer=3, on_early_layer=states.append, early_attention=True).clone()]
    logits += [session.extend([5, 6, 7]).clone(), session.extend([8]).clone()]
    keep = torch.arange(session.video_tokens) % 2 == 0
    pruned = backend.open(PROMPT, 8)
    logits += [pruned.prefill(keep).clone(), pruned.extend([5, 6]).clone()]
    (found,) = states
    assert found.attention is not None
    return [*logits, found.video_first, found.video_last, found.question_last, found.attention]


@pytest.mark.parametrize("checkpoint", ["tied", "untied"])
@pytest.mark.parametrize("backend_name", ANYWHERE)
def test_two_devices_compute_what_one_does(backend: type[Backend], checkpoints: FIND, checkpoint: str) -> None:
    folder = str(checkpoints(checkpoint))
    spread = backend.load(LoadOptions(folder, device="cpu:0,cpu:1"))
    assert spread.info.device == "cpu:0,cpu:1"
    alone = backend.load(LoadOptions(folder))
    torch.testing.assert_close(answers(spread), answers(alone))


def test_all_on_the_meta_device(checkpoints: FIND) -> None:
    """Shapes without numbers; a tensor left on the CPU would be an error."""
    backend = BACKENDS["torch"].load(LoadOptions(str(checkpoints("untied")), device="meta"))
    assert all(tensor.is_meta for tensor in answers(backend))


class _Stop(Exception):
    pass


def test_layers_on_the_cpu_and_on_the_meta_device(checkpoints: FIND) -> None:
    """The first layer has numbers, and the last one has none, though its weights were read from the same files."""
    folder = str(checkpoints("untied"))
    found: list[EarlyStates] = []

    def stop(states: EarlyStates) -> None:
        found.append(states)
        raise _Stop

    for device in ("cpu", "cpu,meta"):
        session = BACKENDS["torch"].load(LoadOptions(folder, device=device)).open(PROMPT, 2)
        with pytest.raises(_Stop):
            session.prefill(early_layer=1, on_early_layer=stop)
    torch.testing.assert_close(found[1].video_last, found[0].video_last)
    with pytest.raises(NotImplementedError, match="meta"):
        session.prefill(early_layer=3, on_early_layer=stop)  # its states are asked for on the first device


def test_logits_come_from_the_device_of_the_head(checkpoints: FIND) -> None:
    backend = BACKENDS["torch"].load(LoadOptions(str(checkpoints("untied")), device="cpu,meta"))
    session = backend.open(PROMPT, 2)
    assert session.prefill().is_meta
    assert session.extend([5, 6]).is_meta


def test_a_model_whose_layers_are_all_on_one_device_is_still_on_two(tmp_path: Path) -> None:
    """Embeddings that outweigh all else fill the first: no CUDA graph could hold its passes."""
    folder = llava_checkpoint(tmp_path / "checkpoint", vocab_size=8192)
    backend = BACKENDS["torch"].load(LoadOptions(str(folder), device="cpu,meta"))
    assert isinstance(backend, TorchBackend)
    assert backend._decoder is not None
    assert {device.type for device in backend._decoder.layer_devices} == {"meta"}
    assert {device.type for device in backend._decoder.devices} == {"cpu", "meta"}


def test_devices_that_cannot_be_used(backend: type[Backend], checkpoints: FIND) -> None:
    folder = str(checkpoints("tied"))
    with pytest.raises(BackendError, match="'nowhere'"):
        backend.load(LoadOptions(folder, device="cpu,nowhere"))
    with pytest.raises(BackendError, match="4 devices .* 3 layers"):
        BACKENDS["torch"].load(LoadOptions(folder, device="cpu,meta,cpu,meta"))


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # image_newline is a parameter, no module
@pytest.mark.parametrize("tied", [True, False])
def test_the_device_map_of_transformers(checkpoints: FIND, tied: bool) -> None:
    config = AutoConfig.from_pretrained(checkpoints("tied" if tied else "untied"))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = hf_model.device_map(model, [torch.device("cuda", index) for index in range(2)])
    check_device_map(model, found)  # every parameter has a place
    layers = [found[f"model.language_model.layers.{index}"] for index in range(3)]
    assert layers == sorted(layers)
    assert layers[-1] == found["model.language_model.norm"] == "cuda:1"
    assert found["lm_head"] == ("cuda:0" if tied else "cuda:1")
    assert {found[f"model.{name}"] for name in ("vision_tower", "multi_modal_projector", "image_newline")} == {"cuda:0"}
    assert found["model.language_model.embed_tokens"] == "cuda:0"


@pytest.mark.filterwarnings("ignore:The following device_map keys")
@pytest.mark.parametrize("checkpoint", ["tied", "untied"])
def test_transformers_computes_the_same_when_accelerate_dispatches_it(
    checkpoints: FIND, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: str
) -> None:
    """The disk stands for the second device: the layers there are empty but while accelerate's hooks run them, so what
    goes past a hook is an error. All is computed on the CPU: a tensor on the wrong one of two devices is not found.
    """
    folder, both = checkpoints(checkpoint), [torch.device("cpu"), torch.device("meta")]
    alone = BACKENDS["hf"].load(LoadOptions(str(folder)))
    mapped = hf_model.device_map
    monkeypatch.setattr(hf_model, "_to_be_spread", lambda options, devices: True)
    monkeypatch.setattr(
        hf_model,
        "device_map",
        lambda model, devices: {
            name: place.replace("meta", "disk") for name, place in mapped(model, devices).items()
        },
    )  # fmt: skip
    options = LoadOptions(str(folder), extra={"offload_folder": str(tmp_path)})
    settings = files.read_settings(folder, "config.json")
    model = hf_model.load_model(folder, settings, options, both, torch.float32, None)
    assert {name for name, place in model.hf_device_map.items() if place == "disk"} > {
        "model.language_model.layers.2",
        "model.language_model.norm",
    }
    elsewhere = [name for name, weight in model.named_parameters() if weight.is_meta]
    assert any("layers.2.self_attn.q_proj" in name for name in elsewhere)
    assert isinstance(alone, HuggingFaceBackend)
    family = find_family(folder, settings)
    prompts = FamilyPrompts(family, family.processor(folder, settings))
    spread = HuggingFaceBackend(alone.info, prompts, model)
    torch.testing.assert_close(answers(spread), answers(alone))


def test_what_transformers_cannot_spread(checkpoints: FIND, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'cpu,meta'.*backend 'torch'"):
        BACKENDS["hf"].load(LoadOptions(str(checkpoints("tied")), device="cpu,meta"))
    monkeypatch.setattr(hf_model, "find_spec", lambda name: None)
    options = LoadOptions(str(checkpoints("tied")), device="cuda:0,cuda:1")
    devices = [torch.device("cuda", index) for index in range(2)]
    with pytest.raises(BackendError, match=r"'cuda:0,cuda:1'.*pip install 'pvlm\[hf\]'"):
        hf_model.load_model(checkpoints("tied"), {}, options, devices, torch.float32, None)
