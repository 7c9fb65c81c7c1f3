"""A deeper model's cost, the same output: checkpoints with appended layers that change nothing.

A decoder layer adds the outputs of two projections (``o_proj`` behind attention, ``down_proj`` behind the MLP) to its
input. With both zero it computes all that a layer computes, and hands its input on. So a padded target answers token
for token as the original does, and takes as long as a model of its depth: a dial for c = T_p / T_q on a machine where
a real pair with that ratio does not fit.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

from pvlm.config import EngineConfig
from pvlm.errors import ModelError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

PADDING = "a deeper model's cost, the same output"
"""What a padded target is, in words."""

UNPADDED_LAYERS = "pvlm_unpadded_layers"
"""Key of config.json in which a padded checkpoint says what it is."""

_ZEROED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_DECODER_LAYER = re.compile(r"^(?P<prefix>.*language_model\.(?:.*\.)?layers\.)(?P<index>\d+)\.(?P<name>.+)$")
_ORIGINAL, _PADDING, _INDEX = "unpadded.safetensors", "padding.safetensors", "model.safetensors.index.json"


def pad_layers(source: str | Path, folder: str | Path, layers: int) -> Path:
    """Write the checkpoint ``source`` with ``layers`` more decoder layers to ``folder``, which must not exist yet.

    The appended layers are copies of the original ones, in turn, with zero output projections; transformers loads the
    result too. Returns ``folder``.

    Raises OptionError for less than one layer, and ModelError where ``source`` is no directory with the safetensors of
    a decoder, or ``folder`` cannot be written.
    """
    source, folder = Path(source), Path(folder)
    if layers < 1:
        raise OptionError(f"{layers} layers of padding: at least 1 is needed")
    if not source.is_dir():
        raise ModelError(f"cannot pad '{source}': it is not a directory with a checkpoint")
    settings = _settings(source)
    text = settings.get("text_config", settings)
    unpadded = text.get("num_hidden_layers")
    if not isinstance(unpadded, int):
        raise ModelError(f"cannot pad '{source}': its config.json names no num_hidden_layers of a decoder")
    try:
        shutil.copytree(source, folder)
        places = _places(folder)
        _write_padding(folder, places, unpadded, layers)
    except OSError as error:
        raise ModelError(f"cannot write a padded checkpoint to '{folder}': {error}") from error
    text["num_hidden_layers"] = unpadded + layers
    if isinstance(text.get("layer_types"), list):
        text["layer_types"] += [text["layer_types"][index % unpadded] for index in range(layers)]
    settings[UNPADDED_LAYERS] = settings.get(UNPADDED_LAYERS, unpadded)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def padded_layers(model: str | Path) -> int:
    """How many layers of a checkpoint were appended by `pad_layers`; 0 for what is no directory."""
    if not (Path(model) / "config.json").is_file():
        return 0
    settings = _settings(Path(model))
    layers: int = settings.get("text_config", settings).get("num_hidden_layers", 0)
    return layers - int(settings.get(UNPADDED_LAYERS, layers))


@contextmanager
def padded(config: EngineConfig, layers: int) -> Iterator[EngineConfig]:
    """The configuration with a target that is padded by so many layers, in a folder that goes when the block ends.

    The layer that pruning looks at is chosen by the unpadded depth (of a target that was padded before, too), unless
    the configuration names one. 0 layers: nothing is appended. Raises as `pad_layers`.
    """
    target = config.checkpoint("target")
    assert target is not None
    if layers == 0:
        yield _by_unpadded_depth(config, target)
        return
    draft = config.checkpoint("draft")
    with TemporaryDirectory(prefix="pvlm-padded-") as folder:
        deeper = str(pad_layers(target, Path(folder) / Path(target).name, layers))
        yield _by_unpadded_depth(msgspec.structs.replace(config, target=deeper, draft=draft), deeper)


def _by_unpadded_depth(config: EngineConfig, target: str) -> EngineConfig:
    if config.early_layer or not padded_layers(target):
        return config
    from pvlm.speculation.pruning import default_early_layer

    unpadded = _settings(Path(target))[UNPADDED_LAYERS]
    return msgspec.structs.replace(config, early_layer=default_early_layer(unpadded))


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read '{folder / 'config.json'}': {error}") from error
    return settings


def _places(folder: Path) -> dict[str, str]:
    """Weight -> file, for all weights. A single file gets another name: beside an index it would be taken for all."""
    from safetensors import safe_open

    single = folder / "model.safetensors"
    if single.is_file():
        single.rename(folder / _ORIGINAL)
        with safe_open(str(folder / _ORIGINAL), framework="pt") as file:
            return dict.fromkeys(file.keys(), _ORIGINAL)
    if (folder / _INDEX).is_file():
        places: dict[str, str] = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        return places
    raise ModelError(f"cannot pad '{folder}': it holds no weights as safetensors")


def _write_padding(folder: Path, places: dict[str, str], unpadded: int, layers: int) -> None:
    from safetensors.torch import save_file

    padding: dict[str, Tensor] = {}
    for prefix, index, name, weight in _decoder_weights(folder, places):
        for appended in range(index, layers, unpadded):
            copied = weight.new_zeros(weight.shape) if name in _ZEROED else weight.clone()
            padding[f"{prefix}{unpadded + appended}.{name}"] = copied
    zeroed = sum(name.endswith(_ZEROED) for name in padding)
    if zeroed != layers * len(_ZEROED):
        raise ModelError(
            f"cannot pad '{folder}': found {zeroed} output projections for {layers} layers, not {len(_ZEROED)} each"
        )
    file = _PADDING if _PADDING not in places.values() else f"padding-from-{unpadded}.safetensors"
    save_file(padding, folder / file, {"format": "pt"})
    places |= dict.fromkeys(padding, file)
    size = sum((folder / name).stat().st_size for name in set(places.values()))
    (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2) + "\n")


def _decoder_weights(folder: Path, places: dict[str, str]) -> Iterator[tuple[str, int, str, Tensor]]:
    """Prefix, layer, name and value of every weight of the decoder's layers."""
    from safetensors import safe_open

    by_file: dict[str, list[str]] = defaultdict(list)
    for name, file in places.items():
        by_file[file].append(name)
    for file, names in by_file.items():
        with safe_open(str(folder / file), framework="pt") as weights:
            for name in names:
                if found := _DECODER_LAYER.match(name):
                    yield found["prefix"], int(found["index"]), found["name"], weights.get_tensor(name)
