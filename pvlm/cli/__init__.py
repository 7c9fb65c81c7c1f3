"""The command ``pvlm``. This module imports little, so that Ctrl-C is answered from the first moment on."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit status: 0; 1 after an error, printed in one line; 2 after misuse; 130 after Ctrl-C.

    ``arguments``: None takes those of the process, whose signals and standard streams are then prepared too.
    """
    try:
        if arguments is None:
            from pvlm.cli.interruption import quit_on_interrupt

            quit_on_interrupt()
        from pvlm.cli.application import run

        return run(sys.argv[1:] if arguments is None else arguments, own_process=arguments is None)
    except KeyboardInterrupt:
        from pvlm.cli.interruption import INTERRUPTED, interrupted_line

        sys.stderr.write(interrupted_line())
        return INTERRUPTED
