"""``pvlm keys``: keys for workers on other hosts."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from pvlm.errors import ConfigError

DESCRIPTION = """\
Make a directory with the keys of one side, an engine or a worker:

    DIR/NAME.key          the public key: copy it into DIR/authorized of the other side
    DIR/NAME.key_secret   the secret key: keep it here
    DIR/authorized/       public keys of the other side: all accepted workers of an engine, or a worker's one engine
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("keys", help="make keys for an engine and its workers on other hosts")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    new = kinds.add_parser(
        "new", help="make a directory with a new pair of keys", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    new.add_argument("directory", metavar="DIR", type=Path, help="directory to make")
    new.add_argument("--name", help="name of this side in the other side's log (default: the host's name)")
    new.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from pvlm.transports.curve import AUTHORIZED, new_keys

    name = options.name or socket.gethostname().partition(".")[0]
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"'{name}' is an invalid key name: use letters, digits, - and _ (--name NAME)")
    public = new_keys(options.directory, name)
    print(f"the public key is {public}: copy it into {AUTHORIZED}/ of the other side's keys")
    print(f"the other side's public key goes into {options.directory / AUTHORIZED}")
    return 0
