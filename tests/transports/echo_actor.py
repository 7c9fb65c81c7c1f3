"""An actor that says back what it is told; in a process: ``python -m tests.transports.echo_actor ENDPOINT``."""

from __future__ import annotations

import os
import sys

from pvlm.transports import Mailbox
from pvlm.transports.sockets import connect
from pvlm_protocols.messages import Closed, DraftWindow, Ping, Pong, PruneMask, SessionMessage, Stop


def echo(mailbox: Mailbox, number: int = 0) -> None:
    """Until `Stop`; its last words are a `Closed` with the number of messages that it echoed."""
    echoed = 0
    while True:
        match mailbox.take(60):
            case None | Stop():
                mailbox.post(Closed(session=echoed, role="draft"))
                return
            case Ping(nonce=nonce):
                mailbox.post(Pong(nonce=nonce, role="draft", progress=number))
            case DraftWindow() | PruneMask() as message:
                mailbox.post(message)
            case SessionMessage(session=session):
                mailbox.post(Closed(session=session, role="draft"))
        echoed += 1


if __name__ == "__main__":
    actor = connect(sys.argv[1])
    echo(actor, os.getpid())
    actor.close()
