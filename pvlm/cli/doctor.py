"""``pvlm doctor``: checks the installation."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import anyio
from rich.console import Console
from rich.table import Table

import pvlm
from pvlm.cli.console import quiet_logs
from pvlm.config import bundled
from pvlm.engine import Engine
from pvlm.errors import PvlmError
from pvlm.plugins import load_plugin, plugin_names
from pvlm.workers.backends import AUTO, choose_backend
from pvlm_protocols.backend import BackendError, LoadOptions

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "anyio", "msgspec", "pyzmq", "decord", "structlog")
GROUPS = ("pvlm.backends", "pvlm.pruners", "pvlm.video_readers")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("doctor", help="show versions, devices and plug-ins, and load the bundled pair")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    quiet_logs(False)
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("pvlm", f"{pvlm.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} may be used")
    table.add_row("devices", _devices())
    table.add_row("backend auto", automatic_backend())
    healthy = True
    for group in GROUPS:
        for name in plugin_names(group):
            found = "ok"
            try:
                load_plugin(group, name)
            except (ImportError, PvlmError) as error:
                found, healthy = str(error), False
            table.add_row(f"{group}: {name}", found)
    console.print(table)
    try:
        described = anyio.run(_load_bundled)
    except PvlmError as error:
        console.print(f"the bundled pair does not load: {error}")
        return 1
    console.print(f"the bundled pair loads: {described}")
    return 0 if healthy else 1


def automatic_backend() -> str:
    """The backend that ``auto`` chooses for the bundled target, and what a faster one lacks."""
    try:
        chosen = choose_backend(AUTO, LoadOptions(bundled("target")))
    except (BackendError, PvlmError) as error:
        return str(error)
    return f"{chosen.name}: {chosen.reason}" if chosen.reason else chosen.name


async def _load_bundled() -> str:
    async with Engine.create() as engine:
        return "; ".join(
            f"{role}: {info.family}, {info.parameters / 1e6:.1f} M parameters, {info.layers} layers, "
            f"{info.dtype} on {info.device}, backend {info.backend}"
            for role, info in engine.models.items()
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *gpus])
