"""A model family: the named parts in which families differ. Everything else is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..processing import VideoProcessor
from .config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint import WeightSource

Vision = TypeVar("Vision")
"""The configuration of a family's vision tower."""


class VideoTower(Protocol):
    """A vision tower with its projector."""

    def encode(
        self, pixels: Tensor, on_progress: Callable[[], None], image_size: tuple[int, int] | None = None
    ) -> Tensor:
        """Turn the pixels of a video or an image, as the processor returns them, into ``(1 + n, placeholders,
        hidden_size)``.

        ``image_size``: height and width of the image's source; None for a video.

        The first features replace the placeholders in the decoder's input. The others are added to the placeholders'
        rows in the output of the first n decoder layers (DeepStack); most families have none.
        ``on_progress`` is called before each group of frames; its exceptions propagate.
        """
        ...


@dataclass(frozen=True)
class Family(Generic[Vision]):
    """All that pvlm knows of one family. A part that needs torch imports it when it is called."""

    model_type: str
    """The family's name in config.json."""
    processor: Callable[[Path, Mapping[str, Any]], VideoProcessor]
    """Makes the processor from a folder and its config.json: frames, placeholders, and positions of the prompt."""
    read_config: Callable[[Path, Mapping[str, Any]], ModelConfig[Vision]]
    """Reads config.json for the raw backends. Raises CheckpointError for an unsupported value and names its key."""
    load_tower: Callable[[ModelConfig[Vision], WeightSource], VideoTower]
    """Loads the vision tower of the raw backends. Raises CheckpointError for missing or misshapen weights."""
    weight_prefixes: tuple[tuple[str, str], ...]
    """Stored prefixes of weight names, each with its canonical one; see `Checkpoint`."""
    transformers_video: Callable[[Tensor], dict[str, Tensor]]
    """Turns a video's pixels into keyword arguments of transformers' model, ``pixel_values_videos`` among them."""
    transformers_image: Callable[[Tensor, tuple[int, int]], dict[str, Tensor]]
    """The same for an image, ``pixel_values`` among them. It also gets height and width of the image's source."""
