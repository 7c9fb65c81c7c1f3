"""Where a checkpoint's files are, and its JSON files read with errors that name the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pvlm_protocols.backend import CheckpointError

_SETTINGS_PATTERNS = ("*.json", "*.jinja", "*.txt")
_WEIGHTS_PATTERNS = ("*.safetensors",)
_PICKLE_PATTERNS = ("*.bin",)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate_checkpoint(model: str, *, weights: bool = True, pickled: bool = False) -> Path:
    """The folder of a checkpoint: a local folder, or a Hugging Face Hub name whose files are fetched once.

    Args:
        model: a path, or ``owner/name``. A folder of that path wins.
        weights: fetch the safetensors as well, not only settings and tokenizer.
        pickled: fetch pickled weights too.

    Raises:
        CheckpointError: there is no such folder, and no such checkpoint on the Hub or in its cache.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model!r} is a file; a checkpoint is a folder that holds config.json and the weights")
    if not _HUB_NAME.fullmatch(model):
        raise CheckpointError(f"there is no folder {model!r}, and that is not a Hugging Face name (owner/name) either")
    from huggingface_hub import snapshot_download

    patterns = [
        *_SETTINGS_PATTERNS,
        *(_WEIGHTS_PATTERNS if weights else ()),
        *(_PICKLE_PATTERNS if pickled else ()),
    ]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # the Hub client raises its own, the HTTP client's and the system's errors
        raise CheckpointError(f"there is no folder {model!r}, and fetching it from the Hub failed: {error}") from error


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object that the checkpoint must have. Raises CheckpointError."""
    settings = read_optional_settings(folder, name)
    if settings is None:
        raise CheckpointError(f"{folder} holds no {name}")
    return settings


def read_optional_settings(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON object that the checkpoint may have, or None. Raises CheckpointError where it is damaged."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds a JSON {type(settings).__name__}, not an object")
    return settings
