"""``pvlm keys``: keys for workers on other hosts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from pvlm.cli.commands import HOSTS, Group, command, option
from pvlm.errors import ConfigError


def register(group: typer.Typer) -> None:
    keys = typer.Typer(cls=Group, help="Make keys for an engine and its workers on other hosts.")
    command(keys, "new")(new)
    group.add_typer(keys, name="keys", rich_help_panel=HOSTS)


def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="directory to make")],
    *,
    name: Annotated[
        str | None,
        option("--name", metavar="NAME", help="of this side in the other side's log (default: the host's name)"),
    ] = None,
) -> int:
    """Make a directory with the keys of one side, an engine or a worker.

    DIR/NAME.key is the public key: copy it into DIR/authorized of the other side.

    DIR/NAME.key_secret is the secret key: keep it here.

    DIR/authorized holds public keys of the other side: all accepted workers of an engine, or a worker's one engine.
    """
    from pvlm.transports.curve import AUTHORIZED, new_keys

    name = name or socket.gethostname().partition(".")[0]
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"'{name}' is an invalid key name: use letters, digits, - and _ (--name NAME)")
    public = new_keys(directory, name)
    print(f"the public key is {public}: copy it into {AUTHORIZED}/ of the other side's keys")
    print(f"the other side's public key goes into {directory / AUTHORIZED}")
    return 0
