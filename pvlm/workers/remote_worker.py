"""A worker that a person runs for an engine on another host: ``pvlm worker --role draft --connect tcp://HOST:PORT ...``

It loads its model once, and serves the engine that listens there until it is interrupted. When a connection fails or is
lost, it tries again. It keeps the caches of a lost connection for `pvlm.actors.actor.HOLD_S`: an engine that is still
the same resumes their sessions, and any other engine finds none.
"""

from __future__ import annotations

import os
import time

from pvlm.actors.actor import Actor
from pvlm.actors.mark import ToldMark
from pvlm.errors import ConfigError, ModelError
from pvlm.log import log
from pvlm.settings.endpoints import on_loopback
from pvlm.transports.curve import Keys
from pvlm.transports.zmq_mailbox import ZmqMailbox
from pvlm.workers.backoff import Backoff
from pvlm.workers.factory import load_backend, make_actor
from pvlm.workers.memory import kept_bytes
from pvlm.workers.process import WorkerSpec
from pvlm_protocols.backend import Role
from pvlm_protocols.messages import Began, FromActor

FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 5.0
"""Before the first and the last further attempts to connect."""


def serve(role: Role, spec: WorkerSpec) -> None:
    """Load the model and serve until interrupted.

    Raises ConfigError for an invalid endpoint or invalid keys, ModelError if the model cannot be loaded, and what its
    actor fails with outside any session.
    """
    keys = _keys(spec)
    log.info("loading", role=role, model=spec.model)
    if spec.affinity:
        os.sched_setaffinity(0, spec.affinity)
    try:
        backend, info = load_backend(spec.backend, spec.load_options(role), _ignore)
    except Exception as error:
        raise ModelError(f"cannot load the {role} '{spec.model}': {error}") from error
    log.info("loaded", role=role, model=spec.model, device=info.device, backend=info.backend)
    pauses = Backoff(FIRST_PAUSE_S, LAST_PAUSE_S)
    actor: Actor | None = None
    try:
        while True:
            try:
                mailbox = ZmqMailbox(spec.connect, keys)
            except OSError as error:
                log.warning("no_engine", endpoint=spec.connect, reason=str(error), next_try_in_s=pauses.next_s)
            else:
                log.info("connected", endpoint=spec.connect)
                actor = actor or make_actor(
                    role, backend, mailbox, info, prefix_bytes=kept_bytes(spec.prefix_cache_bytes, info.device)
                )
                if _served(actor, mailbox, pauses.next_s):
                    pauses.reset()
                log.info("disconnected", endpoint=spec.connect, next_try_in_s=pauses.next_s)
            if actor is not None:
                actor.expire()
            time.sleep(pauses.take())
    finally:
        if actor is not None:
            actor.release()
        backend.close()


def _served(actor: Actor, mailbox: ZmqMailbox, briefly_s: float) -> bool:
    """Serve one connection to its end. Return False if the worker was sent away at once."""
    began_s, progress = time.monotonic(), actor.progress
    actor.mailbox = mailbox
    actor.mark = ToldMark(lambda sessions: mailbox.post(Began(sessions=sessions, role=actor.role)))
    try:
        actor.serve()
    finally:
        mailbox.close()
    return actor.progress > progress or time.monotonic() - began_s > briefly_s


def _keys(spec: WorkerSpec) -> Keys | None:
    """Raises ConfigError."""
    try:
        local = on_loopback(spec.connect)
    except ValueError as error:
        raise ConfigError(f"--connect: {error}") from None
    if spec.keys is not None:
        keys = Keys.load(spec.keys)
        keys.engine()  # a model is not loaded in vain
        return keys
    if not local:
        raise ConfigError(
            f"'{spec.connect}' is on another host: keys are needed (`pvlm keys new DIR`, then --keys DIR), and the "
            "engine's public key in DIR/authorized"
        )
    return None


def _ignore(message: FromActor) -> None:
    """No engine is connected yet that wants to know the progress."""
