"""The lossy alternative: a target that itself sees only a part of the video tokens, and decodes plainly.

It is faster, because its prompt is shorter, and it gives another answer. The engine has no option for this. The target
runs in a process of its own, by the same actor as in an engine, over a backend that prunes each prompt.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

from pvlm.bench.model_process import ModelProcess
from pvlm.errors import ModelError
from pvlm.speculation.masks import kept_count
from pvlm.speculation.pruning import default_early_layer, load_pruner
from pvlm.workers.factory import load_backend, make_actor
from pvlm.workers.process import WorkerSpec
from pvlm.workers.scheduling import take_long_slices
from pvlm_protocols.backend import Backend, EarlyStates, ModelInfo, Prompt, Session
from pvlm_protocols.codec import encode
from pvlm_protocols.messages import (
    Failed,
    FromActor,
    Open,
    PrefillDone,
    Pruning,
    Sampling,
    Schedule,
    ToActor,
    Verdict,
    Window,
)
from pvlm_protocols.turns import OpenTurn, VideoFrames


@dataclass(frozen=True)
class PrunedView:
    """What the target sees: ``kept``, the share of the video tokens, which ``prune``, a pruner, chooses.

    ``early_layer``: the layer whose states the pruner uses; 0: by the target's depth.
    """

    prune: str
    kept: float
    early_layer: int = 0


@dataclass(frozen=True, kw_only=True)
class PrunedAnswer:
    """One answer. The names that `pvlm.bench.methods.Measurement` has too mean the same."""

    tokens: tuple[int, ...]
    prefill_s: float
    decode_s: float
    first_token_s: float
    target_pass_ms: float | None
    target_passes_ms: tuple[tuple[int, float], ...]
    prompt_tokens: int
    video_tokens: int


class PrunedProcess(ModelProcess):
    """A process with the target alone, on the cores of ``spec``. An async context manager."""

    def __init__(self, spec: WorkerSpec) -> None:
        cores = spec.affinity or sorted(os.sched_getaffinity(0))
        super().__init__(f"the pruned target '{spec.model}'", cores, partial(_load, spec))

    async def answer(self, view: PrunedView, prompt: Prompt, max_tokens: int) -> PrunedAnswer:
        """Answer greedily from a part of the video. The target's processor must have resized the frames of ``prompt``.

        Raises ModelError.
        """
        return await self._run(partial(_answer, view, prompt, max_tokens))


# ---- in the process -----------------------------------------------------------------------------------------------

_loaded: list[Backend] = []


def _load(spec: WorkerSpec) -> None:
    if spec.device == "cpu":
        take_long_slices()  # as a worker does
    _loaded.append(load_backend(spec.backend, spec.load_options("target"), lambda message: None).backend)


def _answer(view: PrunedView, prompt: Prompt, max_tokens: int) -> PrunedAnswer:
    return answer_pruned(_loaded[0], view, prompt, max_tokens)


def answer_pruned(backend: Backend, view: PrunedView, prompt: Prompt, max_tokens: int) -> PrunedAnswer:
    """Answer greedily with a target that sees a part of the video. Raises ModelError."""
    parts: tuple[VideoFrames | str, ...] = (prompt.question,)
    if prompt.frames is not None:
        parts = (VideoFrames(pixels=prompt.frames, timestamps_s=prompt.timestamps_s), prompt.question)
    box = _Box()
    actor = make_actor("target", cast(Backend, PrunedTarget(backend, view)), box)
    asked_s = time.monotonic()
    box.waiting.append(
        Open(
            session=1,
            turns=(OpenTurn(role="user", parts=parts),),
            sampling=Sampling(
                max_tokens=max_tokens,
                vocab_limit=backend.info.vocab_size,
                end_token_ids=backend.info.end_token_ids,
            ),
            pruning=Pruning(),
            schedule=Schedule(mode="alone"),
            window=Window(gamma=1),
        )
    )
    while box.failed is None and not (box.verdicts and box.verdicts[-1].finish):
        actor.turn(0)
    actor.release()
    if box.failed is not None:
        raise ModelError(f"{box.failed.error}: {box.failed.message}")
    assert box.prefilled is not None
    prefilled_s = box.prefilled.ended_s
    passes = tuple((verdict.pass_tokens, verdict.pass_ms) for verdict in box.verdicts if verdict.pass_tokens)
    times = sorted(ms for _, ms in passes)
    return PrunedAnswer(
        tokens=tuple(token for verdict in box.verdicts for token in verdict.tokens),
        prefill_s=prefilled_s - asked_s,
        decode_s=box.verdicts[-1].ended_s - prefilled_s,
        first_token_s=box.verdicts[0].ended_s - asked_s,
        target_pass_ms=times[len(times) // 2] if times else None,
        target_passes_ms=passes,
        prompt_tokens=box.prefilled.prompt_tokens,
        video_tokens=box.video_tokens,
    )


class _Box:
    """The actor's mailbox: it holds what the answer needs of the messages. They are encoded as in an engine, which
    takes its time.
    """

    def __init__(self) -> None:
        self.waiting: deque[ToActor] = deque()
        self.verdicts: list[Verdict] = []
        self.prefilled: PrefillDone | None = None
        self.failed: Failed | None = None
        self.video_tokens = 0
        self.dropped = 0

    def take(self, timeout_s: float | None = None) -> ToActor | None:
        return self.waiting.popleft() if self.waiting else None

    def post(self, *messages: FromActor) -> None:
        for message in messages:
            encode(message)
            match message:
                case Verdict():
                    self.verdicts.append(message)
                case PrefillDone():
                    self.prefilled = message
                case Failed():
                    self.failed = message
                case _:
                    self.video_tokens = getattr(message, "video_tokens", self.video_tokens)

    def close(self) -> None:
        pass


class PrunedTarget:
    """A backend whose sessions see a part of their video."""

    def __init__(self, backend: Backend, view: PrunedView) -> None:
        self._backend = backend
        self._view = view

    @property
    def info(self) -> ModelInfo:
        return self._backend.info

    def open(self, prompt: Prompt, capacity: int) -> Session:
        return cast(Session, _PrunedSession(self._backend.open(prompt, capacity), self._view, self.info.layers))


class _Chosen(Exception):
    """Ends a prefill after the early layers: the mask is known."""


class _PrunedSession:
    """A session that chooses the video tokens at its prefill. Where the pruner needs the states of an early layer, that
    takes a prefill up to this layer first.
    """

    def __init__(self, session: Session, view: PrunedView, layers: int) -> None:
        self._session = session
        self._view = view
        self._early_layer = view.early_layer or default_early_layer(layers)

    def prefill(self, keep: None = None, *, on_progress: Callable[[], None] | None = None, **_: Any) -> torch.Tensor:
        return self._session.prefill(self._choose(on_progress), on_progress=on_progress)

    def _choose(self, on_progress: Callable[[], None] | None) -> torch.Tensor | None:
        count = self._session.video_tokens
        keep = kept_count(count, 1 - self._view.kept)
        if keep == count:
            return None
        pruner = load_pruner(self._view.prune)
        masks: list[torch.Tensor] = []

        def choose(states: EarlyStates | None) -> None:
            masks.append(pruner.select(count, keep, states, 0))

        def choose_early(states: EarlyStates) -> None:
            choose(states)
            raise _Chosen

        if not pruner.needs_states:
            choose(None)
        else:
            try:
                self._session.prefill(
                    early_layer=self._early_layer,
                    on_early_layer=choose_early,
                    early_attention=pruner.needs_attention,
                    on_progress=on_progress,
                )
            except _Chosen:
                pass
        return masks[0]

    # Only what every session has: by anything more an actor could go round the choice.

    @property
    def video_tokens(self) -> int:
        return self._session.video_tokens

    @property
    def prompt_tokens(self) -> int:
        return self._session.prompt_tokens

    @property
    def length(self) -> int:
        return self._session.length

    def extend(self, tokens: Sequence[int], *, on_progress: Callable[[], None] | None = None) -> torch.Tensor:
        return self._session.extend(tokens, on_progress=on_progress)

    def truncate(self, length: int) -> None:
        self._session.truncate(length)

    def close(self) -> None:
        self._session.close()
