"""Options that commands share. Their fields have the names of `EngineConfig` and `AnswerOptions`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import typer

from pvlm.cli.commands import Options, option

DESCRIBE = "Describe the video in detail."
"""The question of measurements, if none is given."""

MODELS, PLACES, DECODING, DRAFT_VIEW, VIDEO, TEXT = (
    "Models",
    "Devices and workers",
    "Decoding",
    "What the draft sees",
    "Video",
    "Text of the answer",
)
"""Panels of the help."""


def _number_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is neither a number nor auto") from None


def _inverted(given: bool | None) -> bool | None:
    return None if given is None else not given


# ---- types that several sets use ----------------------------------------------------------------------------------

Threads = Annotated[int | None, option("--threads", metavar="N", help="CPU threads of the target", panel=PLACES)]
Transport = Literal["ipc", "tcp", "inproc"]
Question = Annotated[str, option("--question", metavar="TEXT", help=f"default: {DESCRIBE}")]
JsonFile = Annotated[str | None, option("--json", metavar="FILE", help="write the figures to a file")]
PlotFile = Annotated[str | None, option("--plot", metavar="FILE.png", help="draw the figures (needs pvlm\\[plot])")]
Outcomes = Annotated[
    str | None,
    option(
        "--outcomes",
        metavar="auto|N",
        help="windows that the draft prepares for likely verdicts; 0: none (default: auto)",
        panel=DECODING,
        parser=_number_or_auto,
    ),
]
Window = Annotated[
    str | None,
    option(
        "--window",
        metavar="auto|N",
        help="drafted tokens a window (default: auto)",
        panel=DECODING,
        parser=_number_or_auto,
    ),
]
PruneRatio = Annotated[
    float | None,
    option(
        "--prune-ratio",
        metavar="R",
        help="share of the video tokens that are hidden from the draft (default: 0.5)",
        panel=DRAFT_VIEW,
    ),
]


# ---- sets of options ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Output(Options):
    """What a command prints beside its result."""

    quiet: Annotated[bool, option("--quiet", "-q", help="print the result alone: no progress, no figures")] = False
    verbose: Annotated[bool, option("--verbose", "-v", help="show the log, and the traceback of an error")] = False


@dataclass(frozen=True, kw_only=True)
class Checkpoints(Options):
    """Which models, and what runs them."""

    target: Annotated[
        str | None,
        option(
            "--target", metavar="MODEL", help="directory or hub name of the target (default: the bundled)", panel=MODELS
        ),
    ] = None
    draft: Annotated[
        str | None,
        option(
            "--draft", metavar="MODEL", help="the draft, or none (default: the bundled for the bundled)", panel=MODELS
        ),
    ] = None
    backend: Annotated[
        str | None,
        option(
            "--backend",
            metavar="NAME",
            help="what runs the models: {backends} (default: auto, native where it can run them, else torch)",
            panel=MODELS,
            kind="backends",
        ),
    ] = None
    draft_backend: Annotated[
        str | None,
        option(
            "--draft-backend",
            metavar="NAME",
            help="what runs the draft (default: as --backend)",
            panel=MODELS,
            kind="backends",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        option("--dtype", metavar="TYPE", help="float32, bfloat16, float16 or auto (default)", panel=MODELS),
    ] = None
    draft_dtype: Annotated[
        str | None, option("--draft-dtype", metavar="TYPE", help="of the draft (default: as --dtype)", panel=MODELS)
    ] = None


@dataclass(frozen=True, kw_only=True)
class Models(Checkpoints):
    """Which models, and how far they are trusted."""

    trust_remote_code: Annotated[
        bool | None, option("--trust-remote-code", help="run code that comes with a checkpoint", panel=MODELS)
    ] = None
    allow_pickle: Annotated[
        bool | None, option("--allow-pickle", help="load weights that are not safetensors", panel=MODELS)
    ] = None


@dataclass(frozen=True, kw_only=True)
class Places(Options):
    """Where the models run."""

    device: Annotated[
        str | None,
        option(
            "--device",
            metavar="DEVICE",
            help="of the target: cpu (default), cuda:0, or cuda:0,cuda:1 to split its layers",
            panel=PLACES,
        ),
    ] = None
    draft_device: Annotated[
        str | None, option("--draft-device", metavar="DEVICE", help="of the draft (default: as --device)", panel=PLACES)
    ] = None
    threads: Threads = None
    draft_threads: Annotated[
        int | None, option("--draft-threads", metavar="N", help="CPU threads of the draft", panel=PLACES)
    ] = None
    transport: Annotated[
        Transport | None,
        option(
            "--transport", metavar="NAME", help="worker processes (ipc, tcp) or threads (default: ipc)", panel=PLACES
        ),
    ] = None
    draft_listen: Annotated[
        str | None,
        option(
            "--draft-listen",
            metavar="ENDPOINT",
            help="wait at tcp://HOST:PORT of this host for a `pvlm worker` with the draft",
            panel=PLACES,
        ),
    ] = None
    target_listen: Annotated[
        str | None,
        option("--target-listen", metavar="ENDPOINT", help="as --draft-listen, for the target", panel=PLACES),
    ] = None
    keys: Annotated[
        str | None,
        option("--keys", metavar="DIR", help="keys for workers on other hosts (`pvlm keys new DIR`)", panel=PLACES),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Memory(Options):
    """What is kept between answers."""

    prefix_cache_bytes: Annotated[
        int | None,
        option(
            "--prefix-cache-bytes",
            metavar="BYTES",
            help="memory for what each model keeps of prompts between answers (default: by memory; 0: nothing)",
            panel=PLACES,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Decoding(Options):
    """How draft and target share the work."""

    method: Annotated[
        Literal["parallel", "sd", "ar"] | None,
        option(
            "--method",
            metavar="METHOD",
            help="parallel (default with a draft); sd: draft and target in turns; ar: the target alone",
            panel=DECODING,
        ),
    ] = None
    window: Window = None
    outcomes: Outcomes = None
    parallel_prefill: Annotated[
        bool | None,
        option(
            "--no-parallel-prefill",
            help="start the draft's prefill after the target's",
            panel=DECODING,
            callback=_inverted,
        ),
    ] = None
    parallel_decode: Annotated[
        bool | None,
        option(
            "--no-parallel-decode",
            help="let draft and target take turns in decoding",
            panel=DECODING,
            callback=_inverted,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Pruner(Options):
    """Which video tokens the draft sees."""

    prune: Annotated[
        str | None,
        option(
            "--prune",
            metavar="NAME",
            help="choice of the draft's video tokens: {pruners} (default: uv; with sd: none)",
            panel=DRAFT_VIEW,
            kind="pruners",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Pruning(Pruner):
    """Which and how many video tokens the draft sees."""

    prune_ratio: PruneRatio = None


@dataclass(frozen=True, kw_only=True)
class DraftView(Options):
    """How the draft's video tokens are scored and placed."""

    early_layer: Annotated[
        int | None,
        option(
            "--early-layer",
            metavar="L",
            help="target layer for uv, attention and specvlm (default: by depth)",
            panel=DRAFT_VIEW,
        ),
    ] = None
    compact_positions: Annotated[
        bool | None,
        option("--compact-positions", help="renumber the kept tokens in the draft", panel=DRAFT_VIEW),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Reading(Options):
    """What reads a video."""

    video_reader: Annotated[
        str | None,
        option(
            "--video-reader",
            metavar="NAME",
            help="what reads the video: {readers} (default: auto)",
            panel=VIDEO,
            kind="readers",
        ),
    ] = None
    decode_timeout_s: Annotated[
        float | None,
        option(
            "--decode-timeout", metavar="S", help="limit for reading a video, in seconds (default: 120)", panel=VIDEO
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class VideoPart(Options):
    """Which frames are used."""

    num_frames: Annotated[
        int | None,
        option("--frames", metavar="N", help="number of frames to use, at equal distances", panel=VIDEO),
    ] = None
    fps: Annotated[float | None, option("--fps", metavar="F", help="frames a second to use", panel=VIDEO)] = None
    start: Annotated[
        float | None, option("--start", metavar="S", help="start of the part to use, in seconds", panel=VIDEO)
    ] = None
    end: Annotated[
        float | None, option("--end", metavar="S", help="end of the part to use, in seconds", panel=VIDEO)
    ] = None


@dataclass(frozen=True, kw_only=True)
class Sampling(Options):
    """How tokens are chosen, and where the answer ends."""

    max_tokens: Annotated[
        int | None,
        option("--max-tokens", metavar="N", help="largest number of tokens (default: 256)", panel=TEXT),
    ] = None
    temperature: Annotated[
        float | None,
        option("--temperature", metavar="T", help="sampling temperature; 0 (default) is greedy", panel=TEXT),
    ] = None
    top_p: Annotated[
        float | None,
        option("--top-p", metavar="P", help="sample from the smallest set with this probability", panel=TEXT),
    ] = None
    top_k: Annotated[
        int | None, option("--top-k", metavar="K", help="sample from the K most probable tokens", panel=TEXT)
    ] = None
    min_p: Annotated[
        float | None,
        option("--min-p", metavar="P", help="drop tokens below P times the largest probability", panel=TEXT),
    ] = None
    seed: Annotated[
        int | None, option("--seed", metavar="N", help="make the text a function of prompt and seed", panel=TEXT)
    ] = None
    coupling: Annotated[
        Literal["auto", "speculative", "gumbel"] | None,
        option(
            "--coupling",
            metavar="NAME",
            help="how draft and target share randomness: auto, speculative or gumbel",
            panel=TEXT,
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        option("--stop", metavar="TEXT", help="end the answer before this text (may be repeated)", panel=TEXT),
    ] = None


# ---- all options of an engine, and of an answer: a dataclass has the fields of its last base first -------------------


@dataclass(frozen=True, kw_only=True)
class EngineSettings(Reading, DraftView, Pruning, Decoding, Memory, Places, Models):
    """All settings of an engine."""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(Sampling, VideoPart):
    """All options of an answer."""


def settings(*sets: Options, **single: Any) -> dict[str, Any]:
    """The settings that the command line has, in sets and ``single``. An omitted option keeps the library's default."""
    given = {one.name: getattr(options, one.name) for options in sets for one in fields(options)}
    return {
        name: None if (name, value) == ("draft", "none") else value
        for name, value in {**given, **single}.items()
        if value is not None and value != []
    }
