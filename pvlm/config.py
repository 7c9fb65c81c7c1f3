"""Settings of an engine (`EngineConfig`), and options of one answer (`AnswerOptions`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pvlm.errors import ConfigError, OptionError
from pvlm.redaction import shown
from pvlm.settings.documentation import documented
from pvlm.settings.endpoints import on_loopback, split_endpoint
from pvlm.settings.validation import build, check_fields
from pvlm_protocols.backend import Count, Role
from pvlm_protocols.limits import MAX_ID, MAX_OUTCOMES, MAX_QUESTION_CHARACTERS, MAX_STOP_TOKENS, MAX_VIDEO_FRAMES
from pvlm_protocols.messages import SamplingOptions
from pvlm_protocols.numbers import Ratio, Serial, WindowSize

Method = Literal["parallel", "sd", "ar"]
MethodSetting = Literal["auto", "parallel", "sd", "ar"]
Transport = Literal["ipc", "tcp", "inproc"]
WindowSetting = Literal["auto"] | WindowSize
OutcomesSetting = Literal["auto"] | Annotated[int, Meta(ge=0, le=MAX_OUTCOMES)]
AtLeastOne = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Duration = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0, le=sys.float_info.max)]

MIN_TEMPERATURE = 1e-5
"""Below it ``logits / temperature`` leaves the range of float32; 0 itself means greedy."""

BUNDLED = "bundled"
"""The name of the pair of tiny models in this package."""


@documented
class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of an engine. Each has a default; the models default to the bundled pair.

    A ``draft_*`` setting of None is the target's.
    """

    target: str = BUNDLED
    """A checkpoint directory, a hub name where the backend resolves one, or ``"bundled"``."""
    draft: str | None = "auto"
    """The same for the draft; None: no draft. "auto": the bundled draft beside the bundled target, else none."""
    backend: str = "auto"
    """Entry point of group ``pvlm.backends``; auto: ``native`` where it can run the model, else ``torch``. Each worker
    decides for itself (`ModelInfo.backend`).
    """
    draft_backend: str | None = None
    """The same for the draft."""

    method: MethodSetting = "auto"
    """``parallel``; ``sd``: vanilla speculative decoding; ``ar``: the target alone; ``auto``: parallel if there is a
    draft.
    """
    parallel_prefill: bool = True
    """Method parallel: the draft prefills while the target's later layers still run."""
    parallel_decode: bool = True
    """Method parallel: the draft writes the next window while the target verifies one."""
    window: WindowSetting = "auto"
    """Tokens in a window: a number, or "auto" (from measured times and acceptance)."""

    outcomes: OutcomesSetting = "auto"
    """Method parallel: windows that the draft prepares for likely verdicts, beside the one that it expects to be
    accepted: a number (0: none), or "auto" (as many as the measured times and hit rates make worthwhile; none with a
    fixed ``window``).
    """

    prune: str = "auto"
    """Entry point of group ``pvlm.pruners`` (uv, attention, specvlm, novelty, uniform, random, none); auto: uv for
    method parallel, none for sd.
    """
    prune_ratio: Ratio = 0.5
    """Share of the video tokens that the draft does not see; 0 <= ratio < 1."""
    early_layer: Count = 0
    """The target's layer whose output ``uv`` compares with its input, and whose attention other pruners use. 0: chosen
    by the target's depth.
    """
    compact_positions: bool = False
    """Renumber the kept video tokens in the draft. Otherwise they stay at their original positions."""

    transport: Transport = "ipc"
    """``ipc``, ``tcp`` (loopback): a worker process for each model; ``inproc``: a thread for each, in this process."""
    device: str = "cpu"
    """The target's device. Several devices, separated by commas, share its layers: ``"cuda:0,cuda:1"``."""
    draft_device: str | None = None
    """The draft's device."""
    dtype: str = "auto"
    """``float32``, ``bfloat16``, ``float16``, or ``auto``: the checkpoint's on a GPU, float32 on a CPU."""
    draft_dtype: str | None = None
    """The same for the draft."""
    threads: AtLeastOne | None = None
    """CPU threads of the target; None: one for each core of its affinity."""
    draft_threads: AtLeastOne | None = None
    """The same for the draft."""
    affinity: tuple[int, ...] | None = None
    """Cores of the target's process. None: the actors share the cores, at least one each; (): no affinity is set."""
    draft_affinity: tuple[int, ...] | None = None
    """The same for the draft."""

    target_listen: str | None = None
    """Address on this host, ``tcp://HOST:PORT``, to which a target worker on another host connects. None: the engine
    starts the worker itself. HOST 0.0.0.0 stands for all addresses of this host. ``target`` then names the checkpoint
    whose tokenizer and processor are read here; its weights are not needed.
    """
    draft_listen: str | None = None
    """The same for the draft, with a port of its own."""
    keys: str | None = None
    """Directory made by ``pvlm keys new``. ``target_listen`` and ``draft_listen`` need it on other than loopback
    addresses.
    """

    trust_remote_code: bool = False
    """Run code that comes with a checkpoint."""
    allow_pickle: bool = False
    """Load weights that are not safetensors; loading them can run code."""
    video_reader: str = "auto"
    """Entry point of group ``pvlm.video_readers``. ``auto``: PyAV for videos, Pillow for pictures; ``decord``: fewer
    containers, the same frames.
    """
    max_sessions: AtLeastOne = 4
    """The largest number of answers written at once. Each has a KV cache in both models. Others wait in order."""
    max_waiting: NotNegative = 64
    """The largest number of answers that wait. Another raises `EngineBusy` at once."""
    max_video_bytes: AtLeastOne = 8 << 30
    """The memory for decoded frames of files, of all answers together. Others wait in order. A video that needs more by
    itself is an `OptionError`.
    """
    prefix_cache_bytes: NotNegative | None = None
    """The memory of each worker for prefixes that it keeps between answers, and of the engine for frames that it does
    not read again. None: a tenth of the host's memory; on a GPU a quarter of what the model leaves free. 0: nothing is
    kept. A worker on another host has an option of its own.
    """
    start_timeout_s: Duration = 600.0
    """The limit for loading a model, and for the wait for a worker on another host."""
    decode_timeout_s: Duration = 120.0
    """The limit for reading a video."""
    draft_restarts: NotNegative = 3
    """How often within ``restart_window_s`` a lost draft is restarted. One that is lost more often rests for 60 s, and
    longer each time, at most 600 s; then it is restarted once more. A worker on another host is not restarted: the
    engine waits for it.
    """
    target_restarts: NotNegative = 3
    """The same for the target. While it rests, answers end with `TargetLost`."""
    restart_window_s: Duration = 600.0
    """The time for which a restart counts."""
    hang_timeout_s: Duration = 60.0
    """A model without a sign of life for this long is restarted. It gives one between two layers of a prefill, between
    two passes, and between two groups of frames in the vision tower. Each of these must take less time. A model that
    loads must report progress or compute.
    """
    close_timeout_s: Duration = 2.0
    """How long a caller that leaves an answer waits at most until both models have freed it. Where their work in hand
    takes longer, they free it later, and its place stays taken until then.
    """
    stream_idle_timeout_s: Duration = 300.0
    """A stream that is being written and that nobody reads for so long ends with `StreamIdle`."""

    def __post_init__(self) -> None:
        check_fields(self, ConfigError)
        if self.method in ("parallel", "sd") and self.draft is None:
            raise ConfigError(f"method '{self.method}' needs a draft: give one (draft=...), or use method='ar'")
        self._check_listening()

    def _check_listening(self) -> None:
        endpoints = [
            (f"{role}_listen", endpoint) for role in ("target", "draft") if (endpoint := self.listen(role)) is not None
        ]
        for name, endpoint in endpoints:
            try:
                split_endpoint(endpoint)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None
            if self.keys is None and not on_loopback(endpoint):
                raise ConfigError(
                    f"{name} is '{endpoint}', which other hosts can reach: keys are needed (`pvlm keys new DIR`, "
                    "keys=DIR), or an address of the loopback interface"
                )
        if self.draft_listen is not None and (self.draft_model is None or self.method == "ar"):
            raise ConfigError(
                "draft_listen without a draft: name its checkpoint (draft=...), whose tokenizer and processor are read "
                "here too, and use another method than 'ar'"
            )
        if len({split_endpoint(endpoint)[1] for _, endpoint in endpoints}) < len(endpoints):
            raise ConfigError(f"target_listen and draft_listen need ports of their own, not both '{self.draft_listen}'")
        if self.keys is not None and not endpoints:
            raise ConfigError("keys are for workers on other hosts: give target_listen or draft_listen too")

    @property
    def draft_model(self) -> str | None:
        """The draft with "auto" resolved."""
        if self.draft == "auto":
            return BUNDLED if self.target == BUNDLED else None
        return self.draft

    def listen(self, role: Role) -> str | None:
        """The address to which a worker on another host connects; None: the engine starts the worker."""
        return self.target_listen if role == "target" else self.draft_listen

    def backend_of(self, role: Role) -> str:
        """The name of the plug-in that runs a model."""
        return self.backend if role == "target" else self.draft_backend or self.backend

    def checkpoint(self, role: Role) -> str | None:
        """The directory or hub name of a model, with "auto" and "bundled" resolved; None: no draft."""
        model = self.target if role == "target" else self.draft_model
        return bundled(role) if model == BUNDLED else model

    def resolved_method(self) -> Method:
        """The method with "auto" resolved. Raises ConfigError if the method needs a draft and the engine has none."""
        if self.method == "auto":
            return "parallel" if self.draft_model else "ar"
        if self.method != "ar" and self.draft_model is None:
            raise ConfigError(
                f"method '{self.method}' needs a draft for '{self.target}': give one (draft=...), or use method='ar'"
            )
        return self.method


@documented
class AnswerOptions(SamplingOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one answer: those of `SamplingOptions`, and these. The last seven default to the engine's."""

    seed: Serial | None = None
    """Makes the text a function of prompt and seed."""
    coupling: Literal["auto", "speculative", "gumbel"] = "auto"
    """How draft and target share randomness; auto: gumbel if a seed is given, else speculative."""
    stop: tuple[str, ...] | str = ()
    """The text ends before the first of these strings."""
    stop_token_ids: tuple[int, ...] = ()
    """The text ends with the first of these tokens."""
    ignore_eos: bool = False
    """Continue after the model's own end tokens, up to ``max_tokens``."""

    num_frames: Annotated[int, Meta(ge=1, le=MAX_VIDEO_FRAMES)] | None = None
    """So many frames, at equal distances. Without it and ``fps``, the checkpoint decides."""
    fps: Annotated[float, Meta(gt=0, le=sys.float_info.max)] | None = None
    """Frames a second."""
    start: Seconds | None = None
    """Start of the part of the video to use, in seconds."""
    end: Seconds | None = None
    """End of that part, in seconds."""

    method: MethodSetting | None = None
    """As in `EngineConfig`, like those below."""
    parallel_prefill: bool | None = None
    parallel_decode: bool | None = None
    prune: str | None = None
    prune_ratio: Ratio | None = None
    window: WindowSetting | None = None
    outcomes: OutcomesSetting | None = None

    def __post_init__(self) -> None:
        check_fields(self, OptionError)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise OptionError(f"temperature is {self.temperature}: use 0 (greedy), or {MIN_TEMPERATURE} and above")
        if (given := len(self.stop_token_ids)) > MAX_STOP_TOKENS:
            raise OptionError(f"stop_token_ids has {given} ids: there may be {MAX_STOP_TOKENS}")
        if wrong := [token for token in self.stop_token_ids if not 0 <= token <= MAX_ID]:
            raise OptionError(f"stop_token_ids holds {wrong[0]}, which is no token's id")
        if any(not stop for stop in self.stop_strings):
            raise OptionError("an empty stop string would end every answer at once")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop


def engine_config(settings: EngineConfig | Mapping[str, Any] | None, **changes: Any) -> EngineConfig:
    """An engine configuration from a configuration or a mapping, with changes. Raises ConfigError."""
    if isinstance(settings, EngineConfig):
        settings = msgspec.structs.asdict(settings)
    elif not isinstance(settings, Mapping | None):
        raise ConfigError(f"the configuration is {shown(settings)}: give an EngineConfig, a mapping, or keywords")
    return build(EngineConfig, {**(settings or {}), **changes}, "configuration key", ConfigError)


def answer_options(options: Mapping[str, Any]) -> AnswerOptions:
    """Options of an answer; ``max_new_tokens`` is another name of ``max_tokens``. Raises OptionError."""
    options = dict(options)
    if "max_new_tokens" in options:
        if "max_tokens" in options:
            raise OptionError("max_tokens and max_new_tokens are the same option: give one of them")
        options["max_tokens"] = options.pop("max_new_tokens")
    return build(AnswerOptions, options, "option", OptionError)


def check_question(question: object) -> None:
    """Raise OptionError for a question that is invalid for every model. Each model checks further limits itself."""
    if not isinstance(question, str):
        raise OptionError(
            f"the question is {shown(question)}, a {type(question).__name__}: give one text (str), or a conversation "
            "as messages"
        )
    if not question.strip():
        raise OptionError("the question is empty: ask something about the video")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise OptionError(
            f"the question has {len(question)} characters: it may have {MAX_QUESTION_CHARACTERS}; shorten it"
        )
    check_text(question, "the question")


def check_text(text: object, place: str) -> None:
    """Raise OptionError, with the place, for what is no text that can be encoded."""
    if not isinstance(text, str):
        raise OptionError(f"{place} is {shown(text)}, a {type(text).__name__}: give a text (str)")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"{place}'s character {error.start} is half of a surrogate pair ({text[error.start]!r}), which is not "
            "text: decode its bytes as UTF-8"
        ) from None


def bundled(role: str) -> str:
    """Directory of a bundled model, ``target`` or ``draft``."""
    return str(files("pvlm") / "bundled" / role)
