"""The two models' shapes, and how they are written as Hugging Face checkpoints."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
)

FRAME_SIZE = 112
PATCH_SIZE = 14
GRID = FRAME_SIZE // PATCH_SIZE // 2
TOKENS_PER_FRAME = GRID * GRID
MAX_FRAMES = 128


@dataclass(frozen=True)
class Shape:
    """The widths and depths of a model; heads are 64 wide."""

    width: int
    layers: int
    vision_width: int
    vision_layers: int

    @property
    def heads(self) -> int:
        """The number of attention heads of the language model."""
        return max(1, self.width // 64)


TARGET = Shape(width=256, layers=6, vision_width=128, vision_layers=3)
DRAFT = Shape(width=128, layers=2, vision_width=64, vision_layers=2)


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """A model of the given shape with fresh weights."""
    vocabulary = -(-len(tokenizer) // 64) * 64
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    text = {
        "model_type": "qwen2",
        "hidden_size": shape.width,
        "intermediate_size": 3 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": max(1, shape.heads // 2),
        "vocab_size": vocabulary,
        "max_position_embeddings": 16384,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": shape.vision_width,
        "intermediate_size": 3 * shape.vision_width,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": max(1, shape.vision_width // 64),
        "image_size": FRAME_SIZE,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        video_token_index=video,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[FRAME_SIZE, FRAME_SIZE]],
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def video_tokens(model: LlavaOnevisionForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """(clips, frames, 3, side, side) pixels to (clips, frames * 16 + 1, width) embeddings."""
    return model.model.get_video_features(
        pixels, vision_feature_layer=-1, vision_feature_select_strategy="full"
    ).pooler_output


def load_checkpoint(
    folder: str | Path,
) -> tuple[LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast]:
    """Read a model in float32 and its tokenizer, ready to be trained."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    return model, AutoTokenizer.from_pretrained(folder)


def save_checkpoint(
    model: LlavaOnevisionForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
) -> None:
    """Write the model in bfloat16, with its tokenizer and the processors' settings."""
    folder = Path(folder)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pictures = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": FRAME_SIZE, "width": FRAME_SIZE},
    }
    video_settings = {
        **pictures,
        "video_processor_type": "LlavaOnevisionVideoProcessor",
        "do_sample_frames": False,
        "num_frames": MAX_FRAMES,
    }
    image_settings = {
        **pictures,
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "do_pad": True,
        "image_grid_pinpoints": [[FRAME_SIZE, FRAME_SIZE]],
    }
    processor_settings = {
        "image_token": "<image>",
        "video_token": "<video>",
        "num_image_tokens": (FRAME_SIZE // PATCH_SIZE) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full",
    }
    for name, settings in (
        ("video_preprocessor_config", video_settings),
        ("preprocessor_config", image_settings),
        ("processor_config", processor_settings),
    ):
        (folder / f"{name}.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
