"""Answers by transformers' own decoding loops: `generate`, assisted generation, and prompt lookup.

Nothing of pvlm's decoding is in here. It is what a user would reach for instead, and what pvlm is measured against.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from ..processing import PreparedPrompt


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer of `generate`.

    ``first_token_s``: until the first token was chosen. ``prefill_s``: the same, without the drafting of the first
    window, which assisted generation does before the target's first pass; that and all the rest is ``decode_s``. Of
    the drafted tokens those behind a rejection were not tested, and count neither as ``accepted_tokens`` nor as
    ``rejected_tokens``. ``windows``: the drafted tokens of each pass that had any.
    """

    tokens: tuple[int, ...]
    first_token_s: float
    prefill_s: float
    decode_s: float
    target_passes: int
    windows: tuple[int, ...]
    accepted_tokens: int
    rejected_tokens: int


@torch.no_grad()
def generate(
    model: Any,
    prompt: PreparedPrompt,
    *,
    max_tokens: int,
    end_token_ids: Sequence[int],
    video_token_id: int,
    assistant: Any = None,
    lookup_tokens: int | None = None,
) -> GeneratedAnswer:
    """Decode greedily with a neutral configuration; whatever the two options do not set is transformers' default.

    Args:
        model: the target.
        prompt: the target's and the assistant's prompt alike.
        max_tokens: of the answer, at most.
        end_token_ids: any of them ends it.
        video_token_id: the placeholder, which prompt lookup must not draft.
        assistant: the draft, for assisted generation.
        lookup_tokens: tokens to draft from the prompt, for prompt lookup.
    """
    settings: dict[str, Any] = {}
    if lookup_tokens is not None:
        # transformers (5.23) looks placeholders up too, and then fails, since there are more of them than features.
        # It drops candidates that are suppressed; the target never writes a placeholder itself.
        settings = {"prompt_lookup_num_tokens": lookup_tokens, "suppress_tokens": [video_token_id]}
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=list(end_token_ids), pad_token_id=0, **settings
    )
    ids = torch.from_numpy(prompt.ids)[None].to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if prompt.pixels is not None:
        inputs["pixel_values_videos"] = torch.from_numpy(prompt.pixels)[None].to(model.device, model.dtype)
    watch, target, draft = _Watch(), _Passes(model), _Passes(assistant)
    with target, draft, _own_video(assistant, inputs.get("pixel_values_videos")):
        started_s = time.perf_counter()
        output = model.generate(**inputs, streamer=watch, assistant_model=assistant)
        ended_s = time.perf_counter()
    # The first pass takes in the prompt, whose last token is the one that the others' first row stands for.
    drafted = [size - 1 for size in (target.sizes[0] - len(prompt) + 1, *target.sizes[1:])]
    accepted = [count - 1 for count in watch.counts]
    tested = list(zip(accepted, drafted, strict=True))
    first_window_s = target.begun_s[0] - draft.begun_s[1] if len(draft.begun_s) > 1 else 0.0
    return GeneratedAnswer(
        tokens=tuple(output[0, len(prompt) :].tolist()),
        first_token_s=watch.first_s - started_s,
        prefill_s=watch.first_s - started_s - first_window_s,
        decode_s=ended_s - watch.first_s + first_window_s,
        target_passes=len(target.sizes),
        windows=tuple(size for size in drafted if size),
        accepted_tokens=sum(accepted),
        # What is left of the last window was cut off by the answer's end, not rejected.
        rejected_tokens=sum(held < written for held, written in tested[:-1]),
    )


class _Watch(BaseStreamer):
    """When the first token came, and how many came at a time."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self.counts: list[int] = []
        self._with_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._with_prompt:  # transformers starts with the prompt's ids
            self._with_prompt = False
            return
        self.first_s = self.first_s or time.perf_counter()
        self.counts.append(value.numel())

    def end(self) -> None:
        """Nothing is held back."""


class _Passes:
    """When each pass of a model's decoder began, and how many rows it took in, inside the block. None: no model."""

    def __init__(self, model: Any) -> None:
        self.begun_s: list[float] = []
        self.sizes: list[int] = []
        self._model = model

    def __enter__(self) -> Self:
        if self._model is not None:
            self._handle = self._model.get_decoder().register_forward_pre_hook(self._before, with_kwargs=True)
        return self

    def _before(self, _module: torch.nn.Module, _inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.begun_s.append(time.perf_counter())
        self.sizes.append(named["inputs_embeds"].shape[1])

    def __exit__(self, *_: object) -> None:
        if self._model is not None:
            self._handle.remove()


@contextmanager
def _own_video(assistant: Any, pixels: torch.Tensor | None) -> Iterator[None]:
    """Let the assistant see the video, through its own vision tower.

    Left alone, transformers (5.23) assists without the video: it takes the assistant's prefill for a later step, where
    video inputs are dropped, and what it dropped were the *target's* features, of another width. Acceptance then is
    less than half.
    """
    if assistant is None or pixels is None:
        yield
        return

    def prepare(
        input_ids: torch.Tensor, *, past_key_values: Any = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:  # transformers looks for the name "kwargs"
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            is_first_iteration = True
            # Encoded here, and not when the model is made ready, so that it counts as part of the prefill.
            video = assistant.get_video_features(pixels.to(assistant.dtype), return_dict=True)
            kwargs["mm_encoder_outputs"] = {"video": video}
        prepared: dict[str, Any] = type(assistant).prepare_inputs_for_generation(
            assistant, input_ids, past_key_values=past_key_values, is_first_iteration=is_first_iteration, **kwargs
        )
        return prepared

    assistant.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    assistant.prepare_inputs_for_generation = prepare
    try:
        yield
    finally:
        del assistant.prepare_inputs_for_generation
