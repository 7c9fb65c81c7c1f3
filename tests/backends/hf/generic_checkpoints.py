"""Small checkpoints with random weights of families that pvlm has no folder for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from tests.backends.families.qwen_checkpoints import text_settings, write_settings
from tests.support.pair import SMALL

VOCAB_SIZE = 640
IMAGE, VIDEO = 3, 4
"""The ids of ``<image>`` and ``<video>`` in the bundled pair's tokenizer."""
_FIRST_ADDED = 614


@dataclass(frozen=True)
class GenericFamily:
    """``kind``: transformers' name of the family, with which its classes begin. ``added``: special tokens with their
    ids, by the names under which the tokenizer has them.
    """

    kind: str
    config: Callable[..., PreTrainedConfig]
    processor: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    videos: dict[str, Any] | None = field(default_factory=dict)
    added: tuple[tuple[str, str], ...] = ()
    image: str = "<image>"
    """What the chat template writes for an image."""
    video: str = "<video>"


def _text(kind: str, layers: int, **changes: Any) -> dict[str, Any]:
    sizes = text_settings(num_hidden_layers=layers, vocab_size=VOCAB_SIZE, max_position_embeddings=1024)
    return {**sizes, "model_type": kind, "bos_token_id": None, "pad_token_id": 0, **changes}


def _clip(side: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": patch,
        "initializer_range": 0.2,
    }


def _internvl(layers: int) -> PreTrainedConfig:
    vision = {**_clip(32, 8), "image_size": [32, 32], "patch_size": [8, 8]}
    return transformers.InternVLConfig(
        text_config=_text("qwen2", layers),
        vision_config=vision,
        image_token_id=_FIRST_ADDED + 2,
        image_seq_length=4,
        tie_word_embeddings=True,
    )


def _smolvlm(layers: int) -> PreTrainedConfig:
    return transformers.SmolVLMConfig(
        text_config=_text("llama", layers),
        vision_config=_clip(32, 8),
        image_token_id=IMAGE,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def _llava_next_video(layers: int) -> PreTrainedConfig:
    return transformers.LlavaNextVideoConfig(
        text_config=_text("llama", layers),
        vision_config={**_clip(32, 8), "model_type": "clip_vision_model"},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[32, 64], [64, 32]],
        tie_word_embeddings=False,
    )


def _qwen2_vl(layers: int) -> PreTrainedConfig:
    return transformers.Qwen2VLConfig(
        text_config=_text(
            "qwen2_vl_text",
            layers,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        ),
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=_FIRST_ADDED,
        vision_end_token_id=_FIRST_ADDED + 1,
        tie_word_embeddings=True,
    )


def _glm4v(layers: int) -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    return transformers.Glm4vConfig(
        text_config=_text("glm4v_text", layers, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "image_size": 56,
            "patch_size": 14,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=_FIRST_ADDED,
        image_end_token_id=_FIRST_ADDED + 1,
        video_start_token_id=_FIRST_ADDED + 2,
        video_end_token_id=_FIRST_ADDED + 3,
        tie_word_embeddings=False,
    )


def _video_llama_3(layers: int) -> PreTrainedConfig:
    return transformers.VideoLlama3Config(
        text_config=_text("qwen2", layers),
        vision_config=_clip(32, 14),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
    )


def _llava(layers: int) -> PreTrainedConfig:
    return transformers.LlavaConfig(
        text_config=_text("llama", layers),
        vision_config={**_clip(32, 8), "model_type": "clip_vision_model"},
        image_token_id=IMAGE,
        image_seq_length=16,
        tie_word_embeddings=False,
    )


_SQUARE = {"height": 32, "width": 32}
_EDGE = {"shortest_edge": 32}
FAMILIES: dict[str, GenericFamily] = {
    "internvl": GenericFamily(
        "InternVL",
        _internvl,
        {"image_seq_length": 4},
        {"image_processor_type": "GotOcr2ImageProcessor", "size": _SQUARE, "crop_to_patches": False},
        {"size": _SQUARE, "num_frames": 6},
        (("start_image_token", "<img>"), ("end_image_token", "</img>"), ("context_image_token", "<IMG_CONTEXT>")),
        image="<IMG_CONTEXT>",
    ),
    "smolvlm": GenericFamily(
        "SmolVLM",
        _smolvlm,
        {"image_seq_len": 4},
        {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": False},
        {
            "max_image_size": {"longest_edge": 32},
            "video_sampling": {"fps": 1, "max_frames": 6, "video_size": {"longest_edge": 64}},
        },
        (
            ("fake_image_token", "<fake_token_around_image>"),
            ("global_image_token", "<global-img>"),
            ("end_of_utterance_token", "<end_of_utterance>"),
        ),
    ),
    "llava_next_video": GenericFamily(
        "LlavaNextVideo",
        _llava_next_video,
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": _EDGE,
            "crop_size": _SQUARE,
            "image_grid_pinpoints": [[32, 64], [64, 32]],
        },
        {"size": _EDGE, "crop_size": _SQUARE},
    ),
    "qwen2_vl": GenericFamily(
        "Qwen2VL",
        _qwen2_vl,
        {},
        {"min_pixels": 4 * 28 * 28, "max_pixels": 8 * 28 * 28},
        {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 8 * 28 * 28}, "fps": 2},
        (("vision_start_token", "<|vision_start|>"), ("vision_end_token", "<|vision_end|>")),
    ),
    "glm4v": GenericFamily(
        "Glm4v",
        _glm4v,
        {},
        {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 8 * 28 * 28}},
        {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}, "fps": 2},
        (
            ("image_start_token", "<|begin_of_image|>"),
            ("image_end_token", "<|end_of_image|>"),
            ("video_start_token", "<|begin_of_video|>"),
            ("video_end_token", "<|end_of_video|>"),
        ),
        image="<|begin_of_image|><image><|end_of_image|>",
        video="<|begin_of_video|><video><|end_of_video|>",
    ),
    "video_llama_3": GenericFamily(
        "VideoLlama3",
        _video_llama_3,
        {},
        {"min_pixels": 4 * 28 * 28, "max_pixels": 8 * 28 * 28},
        {"min_pixels": 4 * 28 * 28, "max_pixels": 8 * 28 * 28, "fps": 1},
    ),
    "llava": GenericFamily(
        "Llava",
        _llava,
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {"image_processor_type": "CLIPImageProcessor", "size": _EDGE, "crop_size": _SQUARE},
        None,
    ),
}
"""The last one takes images alone."""


def generic_checkpoint(folder: Path, name: str, *, layers: int = 3, seed: int = 0) -> Path:
    """A model, saved by transformers, with its settings and the bundled tokenizer. Needs no torchvision."""
    family = FAMILIES[name]
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family.kind}ForConditionalGeneration")(family.config(layers))
    for weight in model.parameters():
        if weight.ndim == 1:  # biases are zero and norms one in a fresh model, which would hide mistakes
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    write_settings(folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0})
    template = (SMALL / "target" / "chat_template.jinja").read_text()
    template = template.replace("<image>", family.image).replace("<video>", family.video)
    (folder / "chat_template.jinja").write_text(template)
    write_settings(folder / "tokenizer.json", _tokenizer([token for _, token in family.added]))
    names = {"image_token": "<image>", "video_token": "<video>", **dict(family.added)}
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_settings(folder / "tokenizer_config.json", {**special, "extra_special_tokens": names})
    write_settings(folder / "processor_config.json", {"processor_class": f"{family.kind}Processor", **family.processor})
    images = {"image_processor_type": f"{family.kind}ImageProcessor", **family.images}
    write_settings(folder / "preprocessor_config.json", images)
    if family.videos is not None:
        videos = {"video_processor_type": f"{family.kind}VideoProcessor", **family.videos}
        write_settings(folder / "video_preprocessor_config.json", videos)
    return folder


def _tokenizer(added: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((SMALL / "target" / "tokenizer.json").read_text())
    template = settings["added_tokens"][0]
    settings["added_tokens"] += [
        {**template, "id": _FIRST_ADDED + place, "content": token} for place, token in enumerate(added)
    ]
    return settings
