"""Answers by transformers' own decoding loops: `generate`, assisted generation, and prompt lookup.

A user would use these loops instead of pvlm, and pvlm is compared with them. They share no decoding code with pvlm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
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

    Drafted tokens after a rejection are not tested, and are neither accepted nor rejected.
    """

    tokens: tuple[int, ...]
    first_token_s: float
    """Until the first token is chosen."""
    prefill_s: float
    """``first_token_s`` without the first window, which assisted generation drafts before the target's first pass."""
    decode_s: float
    """The rest of the answer's time, the first window included."""
    target_passes: int
    windows: tuple[int, ...]
    """Drafted tokens of each pass that had any."""
    accepted_tokens: int
    rejected_tokens: int


@torch.no_grad()
def generate(
    model: Any,
    prompt: PreparedPrompt,
    video: Mapping[str, torch.Tensor],
    *,
    max_tokens: int,
    end_token_ids: Sequence[int],
    video_token_id: int,
    assistant: Any = None,
    lookup_tokens: int | None = None,
) -> GeneratedAnswer:
    """Decode greedily, with transformers' defaults for everything that the last two options do not set.

    Args:
        model: the target.
        prompt: the prompt of the target and of the assistant.
        video: keyword arguments of both models for the prompt's video; empty without one.
        max_tokens: the answer's limit.
        end_token_ids: each of them ends the answer.
        video_token_id: the placeholder, which prompt lookup must not draft.
        assistant: the draft, for assisted generation.
        lookup_tokens: tokens to draft from the prompt, for prompt lookup.
    """
    settings: dict[str, Any] = {}
    if lookup_tokens is not None:
        # transformers (5.23) also drafts placeholders, and then fails because there are more of them than features.
        # It drops suppressed candidates; the target itself never writes a placeholder.
        settings = {"prompt_lookup_num_tokens": lookup_tokens, "suppress_tokens": [video_token_id]}
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=list(end_token_ids), pad_token_id=0, **settings
    )
    ids = torch.from_numpy(prompt.ids)[None].to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **video}
    if len(prompt.positions) > 1:  # else transformers needs the kinds of tokens and the times, to make them itself
        inputs["position_ids"] = torch.from_numpy(prompt.positions).to(model.device)[:, None]
    watch, target, draft = _Watch(), _Passes(model), _Passes(assistant)
    with target, draft, _own_video(assistant, video):
        started_s = time.perf_counter()
        output = model.generate(**inputs, streamer=watch, assistant_model=assistant)
        ended_s = time.perf_counter()
    # The first pass takes in the whole prompt; the later ones begin with the last committed token.
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
    """Records the first token's time, and the number of tokens in each step."""

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
        """Nothing to flush."""


class _Passes:
    """Records start and number of rows of each pass of a model's decoder, inside the block. None: no model."""

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
def _own_video(assistant: Any, video: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Show the video to the assistant, through its own vision tower.

    By itself, transformers (5.23) assists without the video: it takes the assistant's prefill for a later step, and
    drops the video inputs there. These are the *target's* features, of another width. The acceptance rate is then less
    than half.
    """
    if assistant is None or not video:
        yield
        return

    def prepare(
        input_ids: torch.Tensor, *, past_key_values: Any = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:  # transformers looks for the name "kwargs"
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            is_first_iteration = True
            # Encoded here, so that it counts as part of the prefill.
            own = {name: _as_dtype(value, assistant.dtype) for name, value in video.items()}
            kwargs["mm_encoder_outputs"] = {"video": assistant.get_video_features(**own, return_dict=True)}
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


def _as_dtype(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value
