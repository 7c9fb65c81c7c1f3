"""``pvlm bench``: all methods side by side, and the other measurements that the documentation quotes."""

from __future__ import annotations

import typer

from pvlm.cli.bench import adaptive, device, emulated, methods, passes, pruning, repeats, scaling, sessions
from pvlm.cli.commands import HELP_NAMES, MEASURING, Group


class Measurements(Group):
    """The measurements. Without a name, every method is measured side by side."""

    default = "methods"


def register(group: typer.Typer) -> None:
    bench = typer.Typer(
        cls=Measurements,
        help="Measure. Without COMMAND: every method side by side on the same clips, as `pvlm bench methods`.",
        context_settings={"help_option_names": HELP_NAMES},
    )
    for measurement in (methods, scaling, passes, device, pruning, emulated, adaptive, sessions, repeats):
        measurement.register(bench)
    group.add_typer(bench, name="bench", rich_help_panel=MEASURING)
