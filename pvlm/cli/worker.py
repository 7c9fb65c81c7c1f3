"""``pvlm worker``: the process that hosts one model. Engines start it; people see it in ``ps``."""

from __future__ import annotations

import argparse

from pvlm.workers.process import WorkerSpec, run_worker


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("worker", help="host one model for an engine (engines start this themselves)")
    parser.add_argument("--role", choices=["target", "draft"], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--connect", required=True, metavar="ENDPOINT", help="where the engine listens")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--affinity", type=_cores, default=(), metavar="CORES", help="comma-separated")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--allow-pickle", action="store_true")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    spec = WorkerSpec(**{name: getattr(options, name) for name in WorkerSpec.__struct_fields__})
    return run_worker(options.role, spec)


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(","))
