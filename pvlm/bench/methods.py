"""The methods that are compared: pvlm's own, its ablations, and transformers' decoding loops."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from pvlm.bench.memory import peak_mb, reset_peak
from pvlm.bench.peers import Loop, PeerModels, PeerProcess, check_transformers
from pvlm.bench.pruned import PrunedAnswer, PrunedProcess, PrunedView
from pvlm.bench.rows import same_named
from pvlm.config import EngineConfig, Method
from pvlm.engine import Engine
from pvlm.errors import ConfigError, ModelError, OptionError
from pvlm.results import Answer
from pvlm.video import read_video
from pvlm.workers.backends import find_backend
from pvlm.workers.placement import worker_spec
from pvlm.workers.process import WorkerSpec
from pvlm_protocols.backend import Processor, Prompt, Role

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource
    from pvlm_backends.hf.generation import GeneratedAnswer

Cores = Literal["pair", "all"]
"""``pair``: target and draft share the cores, and a method without a draft has the target's cores; ``all``: one process
has all cores.
"""


@dataclass(frozen=True)
class Contender:
    """One row of the comparison. ``options``: of an engine's answer; ``loop``: a loop of transformers instead;
    ``pruned``: plain decoding by a target that sees a part of the video itself, outside of an engine.
    """

    name: str
    meaning: str
    options: Mapping[str, Any] = field(default_factory=dict)
    loop: Loop | None = None
    cores: Cores = "pair"
    pruned: PrunedView | None = None

    @property
    def method(self) -> str:
        """The name by which it is chosen: contenders that differ in `PrunedView.kept` alone share one."""
        return f"pruned-{self.pruned.prune}" if self.pruned else self.name

    @property
    def lossy(self) -> bool:
        """Whether the target sees only a part of the video."""
        return self.pruned is not None and self.pruned.kept < 1

    @property
    def in_engine(self) -> bool:
        return self.loop is None and self.pruned is None

    @property
    def drafts(self) -> bool:
        """Whether the method uses a draft model."""
        return self.options["method"] != "ar" if self.in_engine else self.loop == "assisted"


def _parallel(name: str, meaning: str, **options: Any) -> Contender:
    return Contender(name, meaning, {"method": "parallel", **options})


WHOLE = "pruned-none"
"""Plain decoding with the whole video, with which pruned targets are compared: no messages travel in either."""


def _pruned(prune: str, kept: float) -> Contender:
    meaning = f"plain decoding by a target that sees {kept:.0%} of the video tokens: another answer"
    return Contender(f"pruned-{prune}-{kept * 100:.0f}", meaning, pruned=PrunedView(prune, kept))


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("ar", "plain decoding on the target's cores", {"method": "ar"}),
        Contender("ar-all-cores", "plain decoding on all cores", {"method": "ar"}, cores="all"),
        Contender("sd", "speculative decoding, draft and target in turns", {"method": "sd", "prune": "none"}),
        Contender("specvlm", "sd with SpecVLM's pruning by attention", {"method": "sd", "prune": "specvlm"}),
        _parallel("parallel", "parallel speculative decoding"),
        _parallel("parallel-no-pp", "... without parallel prefill", parallel_prefill=False),
        _parallel("parallel-no-pd", "... without parallel decoding", parallel_decode=False),
        _parallel("parallel-no-outcomes", "... without prepared outcomes", outcomes=0),
        _parallel("parallel-no-pruning", "... with an unpruned draft", prune="none"),
        _parallel("parallel-uniform", "... with uniform pruning", prune="uniform"),
        _parallel("parallel-attention", "... with pruning by attention", prune="attention"),
        Contender("generate", "transformers' generate on the target's cores", loop="generate"),
        Contender("generate-all-cores", "... on all cores", loop="generate", cores="all"),
        Contender("assisted", "transformers' assisted generation on the target's cores", loop="assisted"),
        Contender("assisted-all-cores", "... on all cores", loop="assisted", cores="all"),
        Contender("prompt-lookup", "transformers' prompt lookup on the target's cores", loop="prompt-lookup"),
        Contender(WHOLE, "plain decoding in the process of the pruned targets", pruned=PrunedView("none", 1.0)),
        *(_pruned(prune, kept) for prune in ("uniform", "attention", "uv") for kept in (0.1, 0.5)),
    )
}
"""By name. The others are compared with ``ar``."""
METHODS = tuple(dict.fromkeys(contender.method for contender in CONTENDERS.values()))
"""The names by which they are chosen."""


def contenders(names: Iterable[str]) -> list[Contender]:
    """The contenders of these names (see `METHODS`) in the order of `CONTENDERS`, with those that they are compared
    with.

    Raises OptionError for an unknown name, and if transformers is needed but not installed.
    """
    wanted = {"ar", *names}
    if unknown := sorted(wanted - set(METHODS)):
        raise OptionError(f"unknown method '{unknown[0]}': use some of {', '.join(METHODS)}")
    if any(contender.lossy and contender.method in wanted for contender in CONTENDERS.values()):
        wanted.add(WHOLE)
    chosen = [contender for contender in CONTENDERS.values() if contender.method in wanted]
    if any(contender.loop for contender in chosen):
        check_transformers()
    return chosen


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames for all methods: uint8 ``(T, H, W, 3)``, resized by the target's processor."""

    frames: NDArray[np.uint8]
    timestamps_s: tuple[float, ...]
    question: str


async def read_clip(
    config: EngineConfig, video: VideoSource, question: str, num_frames: int | None = None, *, repeat: bool = False
) -> Clip:
    """Read and resize a video once. ``repeat``: repeat the frames of a video with fewer than ``num_frames``.

    Raises VideoError, ModelError, OptionError.
    """
    processor = _processor(config)
    read = await read_video(
        video,
        num_frames=num_frames,
        fps=None,
        start=None,
        end=None,
        defaults=processor.frame_defaults,
        reader=config.video_reader,
        timeout_s=config.decode_timeout_s,
    )
    frames = await anyio.to_thread.run_sync(processor.resize, read.frames)
    chosen = np.arange(len(frames))
    if repeat and num_frames is not None:
        chosen = (np.arange(num_frames) * len(frames)) // num_frames
    return Clip(frames[chosen], tuple(read.timestamps_s[index] for index in chosen), question)


def _processor(config: EngineConfig) -> Processor:
    model = config.checkpoint("target")
    assert model is not None
    try:
        return find_backend(config.backend).processor(model, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise ModelError(f"cannot load the target '{model}': {error}") from error


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One answer by one method. Times in s and ms, without reading and resizing the video.

    ``peak_mb``: peak memory of the method's processes while it answered (`pvlm.bench.memory.peak_mb`). The fields that
    `AnswerStats` has too mean the same.
    """

    tokens: tuple[int, ...]
    prefill_s: float
    decode_s: float
    first_token_s: float
    peak_mb: float
    windows: tuple[int, ...] = ()
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    target_pass_ms: float | None = None
    target_passes_ms: tuple[tuple[int, float], ...] = ()
    draft_token_ms: float | None = None
    coordination_s: float = 0.0
    prompt_tokens: int = 0
    video_tokens: int = 0

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s


class OpenContenders:
    """The models of some contenders, all loaded at the same time. An async context manager.

    One engine serves all methods of the pair, and another serves plain decoding on all cores. transformers' loops have
    a process with both models for each choice of cores, and pruned targets share a process. A process that does not
    answer uses no CPU time.
    """

    def __init__(self, config: EngineConfig, chosen: Iterable[Contender], max_tokens: int) -> None:
        self._config = config
        self._chosen = list(chosen)
        self._max_tokens = max_tokens
        self._stack = AsyncExitStack()
        self._engines: dict[Cores, Engine] = {}
        self._peers: dict[Cores, PeerProcess] = {}
        self._pruned: PrunedProcess | None = None

    async def __aenter__(self) -> Self:
        """Raises ConfigError, ModelError."""
        await self._stack.__aenter__()
        try:
            self._check_draft()
            for cores in dict.fromkeys(contender.cores for contender in self._chosen if contender.in_engine):
                method: Method = "ar" if cores == "all" or self._config.draft_model is None else "parallel"
                engine = Engine.create(self._config, method=method, prefix_cache_bytes=0)
                self._engines[cores] = await self._stack.enter_async_context(engine)
            for cores in dict.fromkeys(contender.cores for contender in self._chosen if contender.loop):
                peer = PeerProcess(self._peer_models(), self._cores(cores))
                self._peers[cores] = await self._stack.enter_async_context(peer)
            if any(contender.pruned for contender in self._chosen):
                self._pruned = await self._stack.enter_async_context(PrunedProcess(self._target_spec()))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _check_draft(self) -> None:
        drafting = [contender.name for contender in self._chosen if contender.drafts]
        if drafting and self._config.draft_model is None:
            raise ConfigError(
                f"method '{drafting[0]}' needs a draft for '{self._config.target}': give one, or leave out "
                f"{', '.join(drafting)}"
            )

    @property
    def pair(self) -> Engine:
        """The engine of the methods that share the cores. Raises KeyError if no method needs it."""
        return self._engines["pair"]

    async def answer(self, contender: Contender, clip: Clip) -> Measurement:
        """Raises ModelError, also if the draft was lost, because that answer was written by another method."""
        processes = self._processes(contender)
        reset_peak(processes)
        if contender.loop is not None:
            prompt = Prompt(clip.question, clip.frames, clip.timestamps_s)
            generated = await self._peers[contender.cores].answer(contender.loop, prompt, self._max_tokens)
            return _of_peer(generated, peak_mb(processes))
        if contender.pruned is not None:
            assert self._pruned is not None
            view = replace(contender.pruned, early_layer=self._config.early_layer)
            prompt = Prompt(clip.question, clip.frames, clip.timestamps_s)
            return _of_peer(await self._pruned.answer(view, prompt, self._max_tokens), peak_mb(processes))
        answer = await self._engines[contender.cores].answer(
            clip.frames, clip.question, num_frames=len(clip.frames), max_tokens=self._max_tokens, **contender.options
        )
        if answer.stats.draft_lost:
            raise ModelError(f"the draft was lost while '{contender.name}' was measured: {answer.stats.draft_lost}")
        return _of_engine(answer, peak_mb(processes))

    def _processes(self, contender: Contender) -> list[int]:
        if contender.loop:
            return [self._peers[contender.cores].process]
        if contender.pruned:
            return [] if self._pruned is None else [self._pruned.process]
        of_role = self._engines[contender.cores].processes
        roles: list[Role] = ["target", "draft"] if contender.drafts else ["target"]
        return list({of_role[role] for role in roles if role in of_role})

    def _peer_models(self) -> PeerModels:
        config = self._config
        target = config.checkpoint("target")
        assert target is not None
        return PeerModels(
            target, config.checkpoint("draft"), config.device, config.dtype, trust_remote_code=config.trust_remote_code
        )

    def _target_spec(self) -> WorkerSpec:
        model = self._config.checkpoint("target")
        assert model is not None
        return worker_spec(self._config, "target", model, self._config.backend, alone=False)

    def _cores(self, cores: Cores) -> tuple[int, ...]:
        """The cores of the engine's target, so that transformers' loops have as many."""
        spec = worker_spec(self._config, "target", "", "", alone=cores == "all")
        return spec.affinity or tuple(sorted(os.sched_getaffinity(0)))


def _of_engine(answer: Answer, memory_mb: float) -> Measurement:
    stats = answer.stats
    return Measurement(
        **same_named(Measurement, stats),
        tokens=answer.tokens,
        first_token_s=stats.time_to_first_token_s - stats.video_s,
        peak_mb=memory_mb,
        coordination_s=sum(stats.coordination_ms) / 1000,
    )


def _of_peer(answer: GeneratedAnswer | PrunedAnswer, memory_mb: float) -> Measurement:
    return Measurement(**same_named(Measurement, answer), peak_mb=memory_mb)
