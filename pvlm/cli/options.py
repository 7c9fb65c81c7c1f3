"""Options that commands share, and their settings."""

from __future__ import annotations

import argparse
from typing import Any

from pvlm.config import AnswerOptions, EngineConfig

DESCRIBE = "Describe the video in detail."
"""The question of measurements, if none is given."""


def window(text: str) -> int | str:
    """Parse ``auto`` or a number."""
    return text if text == "auto" else int(text)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an `EngineConfig`. An omitted option keeps the library's default."""
    models = parser.add_argument_group("models")
    models.add_argument(
        "--target", help="checkpoint of the target: a directory or a hub name (default: the bundled one)"
    )
    models.add_argument(
        "--draft", help="checkpoint of the draft, or 'none' (default: the bundled one beside the bundled target)"
    )
    models.add_argument(
        "--backend",
        help="plug-in that runs the models: torch, native, hf, ... (default: auto, native where it can run them, else "
        "torch)",
    )
    models.add_argument("--draft-backend", help="plug-in of the draft (default: as --backend)")
    models.add_argument(
        "--device", help="device of the target, for instance cuda:0; cuda:0,cuda:1 split its layers (default: cpu)"
    )
    models.add_argument("--draft-device", help="device of the draft (default: as --device)")
    models.add_argument("--dtype", help="float32, bfloat16, float16 or auto (default)")
    models.add_argument("--draft-dtype", help="dtype of the draft (default: as --dtype)")
    models.add_argument("--threads", type=int, help="CPU threads of the target")
    models.add_argument("--draft-threads", type=int, help="CPU threads of the draft")
    models.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="run code that comes with a checkpoint"
    )
    models.add_argument(
        "--allow-pickle", action="store_true", default=None, help="load weights that are not safetensors"
    )
    how = parser.add_argument_group("decoding")
    how.add_argument(
        "--method",
        choices=["parallel", "sd", "ar"],
        help="parallel; sd: draft and target in turns; ar: the target alone (default: parallel with a draft, else ar)",
    )
    how.add_argument(
        "--transport",
        choices=["ipc", "tcp", "inproc"],
        help="ipc, tcp: worker processes; inproc: threads (default: ipc)",
    )
    how.add_argument(
        "--draft-listen", metavar="ENDPOINT",
        help="wait at tcp://HOST:PORT of this host for a draft on another host (`pvlm worker`)",
    )  # fmt: skip
    how.add_argument("--target-listen", metavar="ENDPOINT", help="as --draft-listen, for the target")
    how.add_argument("--keys", metavar="DIR", help="keys for workers on other hosts (`pvlm keys new DIR`)")
    how.add_argument(
        "--prune",
        help="choice of the draft's video tokens: uv, attention, specvlm, novelty, uniform, random, none "
        "(default: uv; with sd: none)",
    )
    how.add_argument(
        "--prune-ratio",
        type=float,
        metavar="R",
        help="share of the video tokens that are hidden from the draft (default: 0.5)",
    )
    how.add_argument(
        "--early-layer",
        type=int,
        metavar="L",
        help="target layer for uv, attention and specvlm (default: by depth)",
    )
    how.add_argument(
        "--compact-positions", action="store_true", default=None, help="renumber the kept tokens in the draft"
    )
    how.add_argument(
        "--no-parallel-prefill", dest="parallel_prefill", action="store_false", default=None,
        help="start the draft's prefill after the target's",
    )  # fmt: skip
    how.add_argument(
        "--no-parallel-decode", dest="parallel_decode", action="store_false", default=None,
        help="let draft and target take turns in decoding",
    )  # fmt: skip
    how.add_argument("--window", type=window, metavar="{auto,N}", help="drafted tokens a window (default: auto)")


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `AnswerOptions`."""
    text = parser.add_argument_group("answer")
    text.add_argument(
        "--frames", dest="num_frames", type=int, metavar="N", help="number of frames to use, at equal distances"
    )
    text.add_argument("--fps", type=float, help="frames a second to use")
    text.add_argument("--start", type=float, metavar="S", help="start of the part to use, in seconds")
    text.add_argument("--end", type=float, metavar="S", help="end of the part to use, in seconds")
    text.add_argument(
        "--max-tokens", type=int, metavar="N", help="largest number of tokens in the answer (default: 256)"
    )
    text.add_argument("--temperature", type=float, metavar="T", help="sampling temperature; 0 (default) is greedy")
    text.add_argument("--top-p", type=float, metavar="P", help="sample from the smallest set with this probability")
    text.add_argument("--top-k", type=int, metavar="K", help="sample from the K most probable tokens")
    text.add_argument("--min-p", type=float, metavar="P", help="drop tokens below P times the largest probability")
    text.add_argument("--seed", type=int, help="make the text a function of prompt and seed")
    text.add_argument(
        "--coupling", choices=["auto", "speculative", "gumbel"], help="how draft and target share randomness"
    )
    text.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer before this text (may be repeated)"
    )


ANSWER_OPTIONS = tuple(name for name in AnswerOptions.__struct_fields__ if name not in EngineConfig.__struct_fields__)
"""The others set the engine, and are its defaults for an answer."""


def engine_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's settings that the command line has."""
    given = {name: getattr(options, name, None) for name in EngineConfig.__struct_fields__}
    settings = {name: value for name, value in given.items() if value is not None}
    if settings.get("draft") == "none":
        settings["draft"] = None
    return settings


def answer_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The answer's options that the command line has."""
    return {name: value for name in ANSWER_OPTIONS if (value := getattr(options, name, None)) is not None}
