"""``pvlm doctor``: checks the installation."""

from __future__ import annotations

import os
import platform

import typer

import pvlm
from pvlm.cli.commands import HOSTS, command
from pvlm.cli.interruption import run_async
from pvlm.cli.names import PLUGINS
from pvlm.cli.options import Output
from pvlm.errors import PvlmError

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "anyio",
    "msgspec",
    "pyzmq",
    "av",
    "decord",
    "structlog",
)
EXTRAS = {"transformers": "hf"}
"""Packages that only an extra installs."""


def register(group: typer.Typer) -> None:
    command(group, "doctor", HOSTS)(doctor)


def doctor(*, output: Output) -> int:
    """Show versions, devices and plug-ins, and load the bundled pair.

    Exit status 1 if something does not load.
    """
    from rich.table import Table

    from pvlm.cli.console import ResultConsole, configure_logs
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.plugins import load_plugin, plugin_names

    configure_logs(output.verbose)
    console = ResultConsole()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("pvlm", f"{pvlm.__version__}, Python {platform.python_version()}, {platform.platform()}")
    healthy = True
    with ProgressDisplay(quiet=output.quiet or output.verbose):
        for package in PACKAGES:
            table.add_row(package, _version(package))
        table.add_row("cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} may be used")
        table.add_row("devices", _devices())
        table.add_row("backend auto", automatic_backend())
        for group in PLUGINS.values():
            for name in plugin_names(group):
                found = "ok"
                try:
                    load_plugin(group, name)
                except (ImportError, PvlmError) as error:
                    found, healthy = str(error), False
                table.add_row(f"{group}: {name}", found)
    console.print(table, markup=False)
    try:
        described = run_async(lambda: _load_bundled(output))
    except PvlmError as error:
        console.print(f"the bundled pair does not load: {error}", markup=False, soft_wrap=True)
        return 1
    console.print(f"the bundled pair loads: {described}", markup=False, soft_wrap=True)
    return 0 if healthy else 1


def automatic_backend() -> str:
    """The backend that ``auto`` chooses for the bundled target, and what a faster one lacks."""
    from pvlm.config import bundled
    from pvlm.workers.backends import AUTO, choose_backend
    from pvlm_protocols.backend import BackendError, LoadOptions

    try:
        chosen = choose_backend(AUTO, LoadOptions(bundled("target")))
    except (BackendError, PvlmError) as error:
        return str(error)
    return f"{chosen.name}: {chosen.reason}" if chosen.reason else chosen.name


async def _load_bundled(output: Output) -> str:
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.engine import Engine

    with ProgressDisplay(quiet=output.quiet or output.verbose) as progress:
        async with Engine.create(on_progress=progress.update) as engine:
            return "; ".join(
                f"{role}: {info.family}, {info.parameters / 1e6:.1f} M parameters, {info.layers} layers, "
                f"{info.dtype} on {info.device}, backend {info.backend}"
                for role, info in engine.models.items()
            )


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        extra = EXTRAS.get(package)
        return f"not installed: pip install 'pvlm[{extra}]'" if extra else "not installed"


def _devices() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *gpus])
