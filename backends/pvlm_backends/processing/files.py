"""The folder of a checkpoint, and its JSON files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pvlm_protocols.backend import CheckpointError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
_PICKLE_INDEX = "pytorch_model.bin.index.json"

_SETTINGS_PATTERNS = ("*.json", "*.jinja", "*.txt")
_WEIGHTS_PATTERNS = ("*.safetensors",)
_PICKLE_PATTERNS = ("*.bin",)
_CODE_PATTERNS = ("*.py",)

_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small text begins that stands for a large file in a Git repository."""

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_HUB_TIMEOUT_S = 10.0


def locate_checkpoint(model: str, *, weights: bool = True, pickled: bool = False, code: bool = False) -> Path:
    """Return the folder of a checkpoint, after fetching it from the Hugging Face Hub if necessary.

    A checkpoint in the Hub's cache is used as it is, without a network request.

    Args:
        model: a path, or ``owner/name``. An existing folder has precedence.
        weights: fetch the safetensors as well as settings and tokenizer.
        pickled: fetch pickled weights as well.
        code: fetch the code that the checkpoint brings as well.

    Raises:
        CheckpointError: neither a folder, nor the Hub, nor its cache has this checkpoint.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model!r} is a file; a checkpoint is a folder that holds config.json and the weights")
    if "://" in model:
        raise CheckpointError(f"{model!r} is a URL, which is not read: give a folder, or owner/name of the Hub")
    if not _HUB_NAME.fullmatch(model):
        raise CheckpointError(f"there is no folder {model!r}, and that is not a Hugging Face name (owner/name) either")
    patterns = [
        *_SETTINGS_PATTERNS,
        *(_WEIGHTS_PATTERNS if weights else ()),
        *(_PICKLE_PATTERNS if pickled else ()),
        *(_CODE_PATTERNS if code else ()),
    ]
    return _cached(model, patterns, weights, pickled, code) or _fetch(model, patterns)


def _cached(model: str, patterns: list[str], weights: bool, pickled: bool, code: bool) -> Path | None:
    """The snapshot in the Hub's cache, if it is complete."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, allow_patterns=patterns, local_files_only=True))
    except Exception:  # not in the cache, or known to be partial
        return None
    # The processor fetches settings alone, so weights may be missing. The index names their shards.
    wanted = [(folder / name).is_file() for name in ("config.json", "tokenizer.json")]
    if weights:
        shards = set(weight_map(folder).values()) or {WEIGHTS}
        whole = all((folder / shard).is_file() for shard in shards)
        wanted.append(whole or (pickled and any(folder.glob("*.bin"))))
    if code and (read_optional_settings(folder, "config.json") or {}).get("auto_map"):
        wanted.append(any(folder.glob("*.py")))
    return folder if all(wanted) else None


def _fetch(model: str, patterns: list[str]) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        # The download itself would wait for a silent network as long as the system does, which is minutes.
        HfApi().model_info(model, timeout=_HUB_TIMEOUT_S)
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model!r} is on the Hugging Face Hub, but its owner must grant access: ask for it on the model's page, "
            "then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {model!r}, and no such model on the Hugging Face Hub: check the name; a private one "
            "needs `hf auth login`"
        ) from error
    except Exception as error:  # the Hub client raises its own, the HTTP client's and the system's errors
        raise CheckpointError(
            f"there is no folder {model!r}, it is not (or only partly) in the Hugging Face cache "
            f"{constants.HF_HUB_CACHE}, and the Hub cannot be reached: {_reason(error)}. Give a folder that holds "
            f"the checkpoint; or run `hf download {model}` where there is a network, and name the cache that it "
            "fills with HF_HUB_CACHE"
        ) from error
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # also a full disk
        raise CheckpointError(f"fetching {model!r} from the Hugging Face Hub failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return " ".join(f"{type(error).__name__}: {error}".split())


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object that the checkpoint must have. Raises CheckpointError."""
    settings = read_optional_settings(folder, name)
    if settings is None:
        raise missing_part(folder, name)
    return settings


def read_optional_settings(folder: Path, name: str) -> dict[str, Any] | None:
    """Read a JSON object that the checkpoint may have, or return None. Raises CheckpointError for a damaged file."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        settings = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds a JSON {type(settings).__name__}, not an object")
    return settings


def read_text(path: Path) -> str:
    """Read a text file of a checkpoint. Raises CheckpointError for a Git LFS pointer, OSError, UnicodeDecodeError."""
    check_no_pointer(path)
    return path.read_text(encoding="utf-8")


def check_no_pointer(path: Path) -> None:
    """Raise CheckpointError if a file is a Git LFS pointer. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}, or fetch the "
                "checkpoint with `hf download`"
            )


def missing_part(folder: Path, what: str) -> CheckpointError:
    """The error for a folder without ``what``, which says if the folder holds a LoRA adapter."""
    adapter = read_optional_settings(folder, "adapter_config.json")
    if adapter is None:
        return CheckpointError(f"{folder} holds no {what}")
    return CheckpointError(
        f"{folder} holds no {what}: it is an adapter (LoRA) for {adapter.get('base_model_name_or_path')!r}, not a "
        "model; merge the two with peft (merge_and_unload, then save_pretrained), and give the merged folder"
    )


def check_weight_files(folder: Path) -> None:
    """Raise CheckpointError if an index is not as `weight_map` wants it, or a weight file is a Git LFS pointer."""
    for name in (WEIGHTS_INDEX, _PICKLE_INDEX):
        weight_map(folder, name)
    for pattern in (*_WEIGHTS_PATTERNS, *_PICKLE_PATTERNS):
        for path in folder.glob(pattern):
            check_no_pointer(path)


def weight_map(folder: Path, name: str = WEIGHTS_INDEX) -> dict[str, str]:
    """Return the file of each weight in a checkpoint of several files; empty for a single file.

    Raises:
        CheckpointError: the index is damaged, names a file in another folder, or is older than a single file beside it.
    """
    index = read_optional_settings(folder, name)
    if index is None:
        return {}
    path, named = folder / name, index.get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise CheckpointError(f"{path} has no weight_map that names a file for each weight")
    for file in set(named.values()):
        # A checkpoint comes from others. Its names must not lead out of its folder; links may, as in the Hub's cache.
        if file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise CheckpointError(f"{path} names the file {file!r}; only plain names of files beside it are allowed")
    single = folder / name.removesuffix(".index.json")
    if single.name not in named.values() and single.is_file() and single.stat().st_mtime > path.stat().st_mtime:
        raise CheckpointError(
            f"{folder} holds two sets of weights, {single.name} and the older {name} with its files: remove one of them"
        )
    return named
