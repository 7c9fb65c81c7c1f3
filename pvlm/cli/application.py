"""The application of the command ``pvlm``: its commands, its own options, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

import pvlm
from pvlm.cli import answer, batch, bench, demo, doctor, keys, plan, serve, streams, worker
from pvlm.cli.commands import HELP_NAMES, Group
from pvlm.cli.interruption import INTERRUPTED, interrupted_line
from pvlm.errors import PvlmError

app = typer.Typer(
    cls=Group,
    help="Answer questions about videos. A draft model proposes tokens, and the target model decides.",
    epilog="`pvlm COMMAND --help` has the options of a command.",
    context_settings={"help_option_names": HELP_NAMES},
)
for module in (demo, answer, batch, serve, plan, bench, doctor, worker, keys):
    module.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        streams.write(f"pvlm {pvlm.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """The options of ``pvlm`` itself."""


def run(arguments: Sequence[str], *, own_process: bool) -> int:
    """Run a command; see `pvlm.cli.main`. ``own_process``: prepare the standard streams, and write them out."""
    try:
        if own_process:
            streams.prepare()
        status = get_command(app).main(list(arguments), prog_name="pvlm", standalone_mode=False) or 0
        if own_process:
            streams.write_out()
    except PvlmError as error:
        return _failed("pvlm", "\n".join([str(error), *getattr(error, "__notes__", [])]))
    except typer.TyperException as error:
        return _misused(error)
    except OSError as error:
        if error.errno not in streams.OUTPUT_ERRORS:
            raise
        return _failed("pvlm", str(streams.failed(error)))
    if status == INTERRUPTED:
        sys.stderr.write(interrupted_line())
    return status


def _misused(error: typer.TyperException) -> int:
    context, close = getattr(error, "ctx", None), getattr(error, "possibilities", None)
    name = "pvlm" if context is None else context.command_path
    error.message = _with_value(error)
    message = f"{error.message}. Did you mean {close[0]}?" if close else error.format_message()
    message = " ".join(message.replace("Value error, ", "").split())
    stop = "" if message.endswith((".", "?")) else "."
    return _failed(name, f"{message}{stop} See `{name} --help`.", error.exit_code)


def _with_value(error: typer.TyperException) -> str:
    """The message of an error, with what it leaves out: the value that is no number, or what to do about more words."""
    if error.message.startswith("Got unexpected extra argument"):
        return f"{error.message}. Put a question of several words in quotes"
    wrong: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    if wrong and wrong[0]["type"].endswith("_parsing"):
        message: str = wrong[0]["msg"]
        return message.partition(",")[0].replace("Input", f"'{wrong[0]['input']}'")
    return error.message


def _failed(name: str, message: str, status: int = 1) -> int:
    sys.stderr.write(f"{name}: error: {message}\n")
    return status
