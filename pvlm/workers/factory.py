"""What every worker is made of: a model, and the actor of its role."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pvlm.actors.actor import Actor
from pvlm.actors.mark import Mark
from pvlm.errors import ModelError
from pvlm.plugins import load_plugin
from pvlm.transports import ChannelClosed, Mailbox
from pvlm_protocols.backend import Backend, LoadOptions, ModelInfo, Role
from pvlm_protocols.messages import FromActor, Loading


def make_actor(role: Role, backend: Backend, mailbox: Mailbox, mark: Mark | None = None) -> Actor:
    """Return the actor of a role. Imports torch."""
    from pvlm.actors.draft import DraftActor
    from pvlm.actors.target import TargetActor

    return (TargetActor if role == "target" else DraftActor)(backend, mailbox, mark)


def load_backend(name: str, options: LoadOptions, post: Callable[[FromActor], None]) -> Backend:
    """Load a model, and report the progress. Raises CheckpointError, and ModelError, also for a plug-in whose
    `ModelInfo` is invalid.
    """

    def on_progress(fraction: float) -> None:
        try:
            post(Loading(role=options.role, fraction=fraction))
        except ChannelClosed:
            pass

    backend: Backend = load_plugin("pvlm.backends", name).load(options, on_progress)
    try:
        msgspec.convert(msgspec.to_builtins(backend.info), ModelInfo)  # else its `Hello` would be refused
    except msgspec.ValidationError as error:
        raise ModelError(f"backend '{name}' says of its model what cannot be: {error}") from None
    return backend
