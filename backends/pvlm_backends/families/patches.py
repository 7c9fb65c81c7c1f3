"""Patches as transformers' models take them: what the Qwen families share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def transformers_patches(pixels: Tensor) -> dict[str, Tensor]:
    """Flatten `PatchProcessor.patches`; the grid counts patches, of which a token has a square."""
    import torch

    time, height, width, patches, _ = pixels.shape
    merge = math.isqrt(patches)
    grid = torch.tensor([[time, height * merge, width * merge]], device=pixels.device)
    return {"pixel_values_videos": pixels.flatten(0, 3), "video_grid_thw": grid}


def transformers_image_patches(pixels: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Flatten the patches of an image."""
    patches = transformers_patches(pixels)
    return {"pixel_values": patches["pixel_values_videos"], "image_grid_thw": patches["video_grid_thw"]}
