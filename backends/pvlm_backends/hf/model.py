"""A model of transformers, loaded with one copy of its weights, progress by bytes, and layers on several devices."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import EllipsisType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import logging

from pvlm_protocols.backend import BackendError, CheckpointError, LoadOptions

from ..placement import place_layers
from ..processing.files import check_weight_files
from ..weights import WeightFiles

_LOADING = Lock()
"""transformers patches torch while it loads: two models at once (transport inproc) may lose their tied weights."""


def load_model(
    folder: Path,
    settings: Mapping[str, Any],
    options: LoadOptions,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    on_progress: Callable[[float], None] | None,
) -> Any:
    """Load a model in evaluation mode, with all of its weights from the checkpoint.

    transformers itself reads pickled and quantised weights, and models that bring code. It maps whole files until the
    last weight is converted, and reports no progress.

    Args:
        folder: the checkpoint's folder.
        settings: its config.json.
        options: as the backend got them.
        devices: those of the decoder's layers; see `place_layers`.
        dtype: of the weights.
        on_progress: called with the fraction of the bytes that were read.

    Raises:
        CheckpointError: the checkpoint is damaged, lacks weights, or transformers cannot load it.
        BackendError: there are several devices, and accelerate is missing or does not support them.
    """
    pickled = options.allow_pickle and not any(folder.glob("*.safetensors"))
    quantised = settings.get("quantization_config") is not None
    if quantised:
        _check_quantisation(folder, settings["quantization_config"])
    by_transformers = pickled or options.trust_remote_code or quantised
    files = None
    if by_transformers:
        check_weight_files(folder)
    else:
        files = WeightFiles(folder, on_progress)
    spread = _to_be_spread(options, devices)
    with _LOADING, warnings.catch_warnings():
        # image_newline is a parameter and no module, but the map names its device too.
        warnings.filterwarnings("ignore", ".*device_map keys do not match any submodules")
        with_bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
            _check_cache(folder, config.get_text_config())
            with torch.device("meta"):
                skeleton = AutoModelForImageTextToText.from_config(  # type: ignore[no-untyped-call]
                    copy.deepcopy(config), trust_remote_code=options.trust_remote_code
                )
            source: dict[str, Any] = {"pretrained_model_name_or_path": folder}
            if pickled:
                source["use_safetensors"] = False
            if files is not None:
                weights = {name: _WeightOnDisk(files, name, dtype) for name in files}
                source = {"pretrained_model_name_or_path": None, "config": config, "state_dict": weights}
            placed = device_map(skeleton, devices) if spread else None
            if quantised and not spread:  # some kinds cannot be moved once they are loaded
                placed = {"": str(devices[0])}
            loaded: Any = type(skeleton).from_pretrained(
                **source,
                dtype=dtype,
                device_map=placed,
                output_loading_info=True,
                **options.extra,
            )
        except BackendError:
            raise
        except Exception as error:  # OSError, SafetensorError, RuntimeError, ValueError, ...
            raise CheckpointError(f"transformers cannot load {folder}: {error}") from error
        finally:
            if with_bar:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers would use random weights in their place
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder} holds no weight {missing[0]!r}{others}")
    return model.eval() if placed else model.to(devices[0]).eval()


def _check_cache(folder: Path, config: Any) -> None:
    """Raise CheckpointError for a layer whose cache loses rows, so that a rejection cannot be undone."""
    for number, layer in enumerate(DynamicCache(config=config).layers, 1):
        window = getattr(layer, "sliding_window", 0)
        never_full = type(layer) is DynamicSlidingWindowLayer and window > config.max_position_embeddings
        if type(layer) is DynamicLayer or never_full:
            continue
        kept = f"the last {window} tokens" if window else f"a state ({type(layer).__name__})"
        raise CheckpointError(
            f"{folder}: layer {number} of the decoder keeps only {kept}, so that rejected tokens cannot be taken back "
            "exactly; pvlm runs models whose layers all keep every token"
        )


def _check_quantisation(folder: Path, settings: Any) -> None:
    """Raise CheckpointError for a method that transformers does not know: it would take the weights for plain ones."""
    if not isinstance(settings, dict):
        raise CheckpointError(f"{folder}/config.json: quantization_config is {settings!r}, not an object")
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):  # as old files have it
        method = "bitsandbytes"
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and method != "bitsandbytes":
        raise CheckpointError(
            f"{folder}/config.json: quantization_config.quant_method is {method!r}, which this transformers does not "
            "know"
        )


def random_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Make a model by config.json, with random weights drawn on the device."""
    with _LOADING, device:
        config = AutoConfig.from_pretrained(folder)
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()  # type: ignore[no-untyped-call]


def _to_be_spread(options: LoadOptions, devices: Sequence[torch.device]) -> bool:
    kinds = {device.type for device in devices}
    if kinds == {"cpu"} or len(set(devices)) == 1:  # cpu:0 and cpu:1 are one
        return False
    if "cpu" in kinds:
        raise BackendError(
            f"the backend 'hf' cannot run a part of the layers on the CPU ({options.device!r}): accelerate would keep "
            "them there and run them elsewhere; name other devices, or use the backend 'torch'"
        )
    if find_spec("accelerate") is None:
        raise BackendError(
            "the backend 'hf' needs the package accelerate to spread a model over several devices, here "
            f"{options.device!r}: pip install 'pvlm[hf]', or name one device"
        )
    return True


class _WeightOnDisk:
    """A weight that is read from disk when transformers indexes it with ``[...]``.

    It replaces a slice of a safetensors file. Such a slice keeps its whole file mapped, and mapped pages are a second
    copy in memory if the dtype changes.
    """

    _reading = Lock()  # transformers reads in several threads

    def __init__(self, files: WeightFiles, name: str, dtype: torch.dtype) -> None:
        self._files, self._name, self._dtype = files, name, dtype

    def __getitem__(self, everything: EllipsisType) -> torch.Tensor:
        weight = torch.empty(self._files[self._name].shape, dtype=self._dtype)
        with self._reading:
            self._files.fill(weight, self._name)
        return weight


def device_map(model: Any, devices: Sequence[torch.device]) -> dict[str, str]:
    """Return accelerate's ``device_map``: a device for each module, and each lone parameter, by name.

    As in the raw-torch backend, everything before the layers is on the first device. The norm and the head are on the
    last one, unless the head shares the embeddings' weight.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    tied = model.config.tie_word_embeddings
    layers = [_numel(layer) for layer in decoder.layers]
    after = 0 if tied else _numel(head)
    placed = place_layers(_numel(model) - sum(layers) - after, layers, after, devices)
    last = {decoder.norm} if tied else {decoder.norm, head}
    found: dict[str, str] = {}

    def place(module: torch.nn.Module, name: str) -> None:
        prefix = f"{name}." if name else ""
        if module is decoder.layers:
            found.update({f"{prefix}{index}": str(device) for index, device in enumerate(placed)})
        elif any(part is decoder.layers for part in module.modules()):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            found.update({f"{prefix}{parameter}": str(devices[0]) for parameter, _ in own})
            for child_name, child in module.named_children():
                place(child, f"{prefix}{child_name}")
        else:
            found[name] = str(devices[-1] if module in last else devices[0])

    place(model, "")
    return found


def _numel(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
