"""Checkpoints with appended layers that change nothing: a deeper model's cost, the same output.

A decoder layer adds the outputs of two projections (``o_proj`` after attention, ``down_proj`` after the MLP) to its
input. If both are zero, the layer does all its computations and returns its input. So a padded target gives the same
tokens as the original, and takes as long as a model of its depth: a dial for c = T_p / T_q on a machine that is too
small for a real pair with that ratio.
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

from pvlm.errors import ModelError, OptionError
from pvlm.speculation.pruning import default_early_layer

if TYPE_CHECKING:
    from torch import Tensor

PADDING = "a deeper model's cost, the same output"
"""Description of a padded target, for users."""

UNPADDED_LAYERS = "pvlm_unpadded_layers"
"""Key of a padded checkpoint's config.json: the number of layers before padding."""

_ZEROED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_DECODER_LAYER = re.compile(r"^(?P<prefix>.*language_model\.(?:.*\.)?layers\.)(?P<index>\d+)\.(?P<name>.+)$")
_ORIGINAL, _PADDING, _INDEX = "unpadded.safetensors", "padding.safetensors", "model.safetensors.index.json"


def pad_layers(source: str | Path, folder: str | Path, layers: int) -> Path:
    """Write the checkpoint ``source`` with ``layers`` more decoder layers to ``folder``, which must not exist yet.

    The appended layers are copies of the original ones, in turn, with zero output projections; transformers loads the
    result too. Returns ``folder``.

    Raises OptionError for less than one layer, and ModelError if ``source`` is not a directory with a decoder's
    safetensors, or if writing ``folder`` fails.
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
        raise ModelError(f"cannot pad '{source}': its config.json has no num_hidden_layers of a decoder")
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


@contextmanager
def padded_arguments(target: str, draft: str, layers: int, early_layer: int | None = None) -> Iterator[list[str]]:
    """Arguments of ``pvlm bench`` for a target with so many more layers, in a folder that is removed after the block.

    Pruning looks at ``early_layer`` (None: the layer for the unpadded depth, also of a target that was padded before).
    Raises as `pad_layers`.
    """
    with TemporaryDirectory(prefix="pvlm-padded-") as folder:
        deeper = pad_layers(target, Path(folder) / Path(target).name, layers)
        settings = _settings(deeper)
        unpadded = settings[UNPADDED_LAYERS]
        appended = settings.get("text_config", settings)["num_hidden_layers"] - unpadded
        yield [
            *("--target", str(deeper), "--draft", draft),
            *("--early-layer", str(early_layer or default_early_layer(unpadded))),
            *("--note", f"{appended} layers of zero output were appended to the target: {PADDING}"),
        ]


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read '{folder / 'config.json'}': {error}") from error
    return settings


def _places(folder: Path) -> dict[str, str]:
    """Weight -> file, for all weights. A single file is renamed, because a loader would prefer it to the index."""
    from safetensors import safe_open

    single = folder / "model.safetensors"
    if single.is_file():
        single.rename(folder / _ORIGINAL)
        with safe_open(str(folder / _ORIGINAL), framework="pt") as file:
            return dict.fromkeys(file.keys(), _ORIGINAL)
    if (folder / _INDEX).is_file():
        places: dict[str, str] = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        return places
    raise ModelError(f"cannot pad '{folder}': it has no weights as safetensors")


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
    """Yield prefix, layer, name and value of every weight of the decoder's layers."""
    from safetensors import safe_open

    by_file: dict[str, list[str]] = defaultdict(list)
    for name, file in places.items():
        by_file[file].append(name)
    for file, names in by_file.items():
        with safe_open(str(folder / file), framework="pt") as weights:
            for name in names:
                if found := _DECODER_LAYER.match(name):
                    yield found["prefix"], int(found["index"]), found["name"], weights.get_tensor(name)
