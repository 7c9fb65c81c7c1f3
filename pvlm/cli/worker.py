"""``pvlm worker``: the process of one model. An engine starts it on its own host, a person on other hosts."""

from __future__ import annotations

import argparse
import logging
import sys

import msgspec
import structlog

from pvlm.config import BUNDLED, bundled
from pvlm.workers.process import WorkerSpec, run_worker

DESCRIPTION = """\
Run one model for an engine on another host. (An engine starts the workers on its own host by itself.) Open the engine
with draft_listen or target_listen, and run on the other host, for instance:

    pvlm worker --role draft --model CHECKPOINT --connect tcp://HOST:5555 --keys DIR

The worker loads the model, connects, and serves until it is interrupted. It reconnects after a lost connection. Off
the loopback interface both sides need keys: `pvlm keys new DIR` makes them. See docs/how-to/remote.md.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "worker",
        help="run one model for an engine on another host",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--role", choices=["target", "draft"], required=True, help="what the model is for")
    parser.add_argument(
        "--model", default=BUNDLED, help="a directory on this host, or a hub name (default: the bundled model)"
    )
    parser.add_argument(
        "--backend", default="auto", help="plug-in that runs the model (default: auto, native where it can, else torch)"
    )
    parser.add_argument("--connect", required=True, metavar="ENDPOINT", help="address of the engine: tcp://HOST:PORT")
    parser.add_argument(
        "--keys",
        metavar="DIR",
        help="keys of this worker (`pvlm keys new DIR`), with the engine's key in DIR/authorized",
    )
    parser.add_argument(
        "--device", default="cpu", help="for instance cuda:0; cuda:0,cuda:1 split the layers (default: cpu)"
    )
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto (default)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--affinity", type=_cores, default=(), metavar="CORES", help="cores to run on, comma-separated (default: all)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    parser.add_argument("--allow-pickle", action="store_true", help="load weights that are not safetensors")
    parser.add_argument("--life-line", action="store_true", help="exit when standard input ends (engines use this)")
    parser.add_argument("--mark", type=int, metavar="FILE", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    spec = WorkerSpec(**{name: getattr(options, name) for name in WorkerSpec.__struct_fields__})
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),  # an engine keeps the last lines of its workers
    )
    if spec.life_line:
        return run_worker(options.role, spec)
    from pvlm.workers.remote_worker import serve

    if spec.model == BUNDLED:
        spec = msgspec.structs.replace(spec, model=bundled(options.role))
    serve(options.role, spec)
    return 0


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(","))
