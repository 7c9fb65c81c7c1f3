"""What every worker is made of: a model, and the actor of its role."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from pvlm.actors.actor import Actor
from pvlm.actors.mark import Mark
from pvlm.errors import ModelError
from pvlm.transports import ChannelClosed, Mailbox
from pvlm.workers.backends import choose_backend
from pvlm_protocols.backend import Backend, LoadOptions, ModelInfo, Role, SharedPasses
from pvlm_protocols.limits import MAX_ERROR_CHARACTERS
from pvlm_protocols.messages import FromActor, Loading


class LoadedModel(NamedTuple):
    """A model, and what its worker says of it: the plug-in's facts, and which plug-in it is."""

    backend: Backend
    info: ModelInfo


def make_actor(
    role: Role,
    backend: Backend,
    mailbox: Mailbox,
    info: ModelInfo | None = None,
    mark: Mark | None = None,
    prefix_bytes: int = 0,
) -> Actor:
    """Return the actor of a role; see `Actor` for the arguments. Imports torch."""
    from pvlm.actors.draft import DraftActor
    from pvlm.actors.target import TargetActor

    return (TargetActor if role == "target" else DraftActor)(backend, mailbox, info, mark, prefix_bytes)


def load_backend(name: str, options: LoadOptions, post: Callable[[FromActor], None]) -> LoadedModel:
    """Load a model with the plug-in of a name, or with the one that ``auto`` chooses here, and report the progress.

    Raises CheckpointError, and ModelError, also for a plug-in whose `ModelInfo` is invalid.
    """

    def on_progress(fraction: float) -> None:
        try:
            post(Loading(role=options.role, fraction=fraction))
        except ChannelClosed:
            pass

    chosen = choose_backend(name, options)
    backend = chosen.backend.load(options, on_progress)
    try:
        info = msgspec.convert(msgspec.to_builtins(backend.info), ModelInfo)  # else its `Hello` would be refused
    except msgspec.ValidationError as error:
        raise ModelError(f"backend '{name}' says of its model what cannot be: {error}") from None
    reason, shares = chosen.reason[:MAX_ERROR_CHARACTERS], isinstance(backend, SharedPasses)
    filled = msgspec.structs.replace(info, backend=chosen.name, backend_reason=reason, shares_passes=shares)
    return LoadedModel(backend, filled)
