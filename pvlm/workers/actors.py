"""From a role to its actor."""

from __future__ import annotations

from pvlm.actors.actor import Actor
from pvlm.transports import Mailbox
from pvlm_protocols.backend import Backend, Role


def make_actor(role: Role, backend: Backend, mailbox: Mailbox) -> Actor:
    """The actor of a role. Imports torch."""
    from pvlm.actors.draft import DraftActor
    from pvlm.actors.target import TargetActor

    return (TargetActor if role == "target" else DraftActor)(backend, mailbox)
