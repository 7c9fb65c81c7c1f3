"""Options that commands share, and the settings they stand for."""

from __future__ import annotations

import argparse
from typing import Any

from pvlm.config import AnswerOptions, EngineConfig

DESCRIBE = "Describe the video in detail."
"""What measurements ask if no question is given."""


def window(text: str) -> int | str:
    """``auto`` or a number."""
    return text if text == "auto" else int(text)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Options that become an `EngineConfig`. One that is not given stays at the library's default."""
    models = parser.add_argument_group("models")
    models.add_argument("--target", help="checkpoint of the target (default: the bundled one)")
    models.add_argument(
        "--draft", help="checkpoint of the draft, or 'none' (default: the bundled one beside the bundled target)"
    )
    models.add_argument("--backend", help="plug-in that runs the models: torch, hf, ... (default: torch)")
    models.add_argument("--draft-backend", help="the draft's, if it is another")
    models.add_argument(
        "--device", help="device of the target, for instance cuda:0; cuda:0,cuda:1 share its layers (default: cpu)"
    )
    models.add_argument("--draft-device", help="the draft's, if it is another")
    models.add_argument("--dtype", help="float32, bfloat16, float16 or auto (default)")
    models.add_argument("--draft-dtype", help="the draft's, if it is another")
    models.add_argument("--threads", type=int, help="CPU threads of the target")
    models.add_argument("--draft-threads", type=int, help="CPU threads of the draft")
    models.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="run code that a checkpoint brings"
    )
    models.add_argument(
        "--allow-pickle", action="store_true", default=None, help="load weights that are not safetensors"
    )
    how = parser.add_argument_group("decoding")
    how.add_argument(
        "--method", choices=["parallel", "sd", "ar"], help="default: parallel if there is a draft, else ar"
    )
    how.add_argument(
        "--transport", choices=["ipc", "tcp", "inproc"], help="worker processes (ipc, tcp) or threads; default: ipc"
    )
    how.add_argument(
        "--draft-listen", metavar="ENDPOINT",
        help="wait at tcp://HOST:PORT of this host for a draft that `pvlm worker` runs on another",
    )  # fmt: skip
    how.add_argument("--target-listen", metavar="ENDPOINT", help="the same for the target")
    how.add_argument("--keys", metavar="DIR", help="keys for these, made by `pvlm keys new DIR`")
    how.add_argument(
        "--prune",
        help="which video tokens the draft sees: uv, attention, specvlm, novelty, uniform, random, none "
        "(default: uv, for sd none)",
    )
    how.add_argument(
        "--prune-ratio", type=float, metavar="R", help="share of the video tokens that the draft does not see"
    )
    how.add_argument(
        "--early-layer",
        type=int,
        metavar="L",
        help="target layer that uv, attention and specvlm look at; default: by depth",
    )
    how.add_argument(
        "--compact-positions", action="store_true", default=None, help="renumber the kept tokens in the draft"
    )
    how.add_argument(
        "--no-parallel-prefill", dest="parallel_prefill", action="store_false", default=None,
        help="the draft waits for the target's whole prefill",
    )  # fmt: skip
    how.add_argument(
        "--no-parallel-decode", dest="parallel_decode", action="store_false", default=None,
        help="draft and target take turns",
    )  # fmt: skip
    how.add_argument("--window", type=window, metavar="{auto,N}", help="drafted tokens a window (default: auto)")


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Options that become `AnswerOptions`."""
    text = parser.add_argument_group("answer")
    text.add_argument("--frames", dest="num_frames", type=int, metavar="N", help="frames to look at, uniformly")
    text.add_argument("--fps", type=float, help="frames a second to look at")
    text.add_argument("--start", type=float, metavar="S", help="start of the part to look at, in seconds")
    text.add_argument("--end", type=float, metavar="S", help="end of the part to look at, in seconds")
    text.add_argument("--max-tokens", type=int, metavar="N", help="tokens of the answer at most (default: 256)")
    text.add_argument("--temperature", type=float, metavar="T", help="0 (default): greedy")
    text.add_argument("--top-p", type=float, metavar="P")
    text.add_argument("--top-k", type=int, metavar="K")
    text.add_argument("--min-p", type=float, metavar="P")
    text.add_argument("--seed", type=int)
    text.add_argument(
        "--coupling", choices=["auto", "speculative", "gumbel"], help="how draft and target share randomness"
    )
    text.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer before this text (may be repeated)"
    )


ANSWER_OPTIONS = tuple(name for name in AnswerOptions.__struct_fields__ if name not in EngineConfig.__struct_fields__)
"""The others set the engine, and are its defaults for an answer."""


def engine_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the engine that were given."""
    given = {name: getattr(options, name, None) for name in EngineConfig.__struct_fields__}
    settings = {name: value for name, value in given.items() if value is not None}
    if settings.get("draft") == "none":
        settings["draft"] = None
    return settings


def answer_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Options of the answer that were given."""
    return {name: value for name in ANSWER_OPTIONS if (value := getattr(options, name, None)) is not None}
