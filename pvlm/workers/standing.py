"""A worker that a person runs for an engine on another host: ``pvlm worker --role draft --connect tcp://HOST:PORT ...``

It loads its model once, and serves whichever engine listens there, as long as it lives: a connection that cannot be had
or is lost is tried again. Each connection begins anew, with a greeting and without sessions.
"""

from __future__ import annotations

import os
import time

import structlog

from pvlm.endpoints import on_loopback
from pvlm.errors import ConfigError, ModelError
from pvlm.transports.curve import Keys
from pvlm.transports.zmq_mailbox import ZmqMailbox
from pvlm.workers.actors import make_actor
from pvlm.workers.process import WorkerSpec, load_backend
from pvlm_protocols.backend import Role
from pvlm_protocols.messages import FromActor

FIRST_PAUSE_S = 0.2
"""Before a connection is tried again; doubled each time."""
LAST_PAUSE_S = 5.0

log = structlog.get_logger()


def serve(role: Role, spec: WorkerSpec) -> None:
    """Load the model and serve until interrupted.

    Raises ConfigError for an endpoint or keys that cannot be, ModelError if the model cannot be loaded, and what its
    actor fails with outside any session.
    """
    keys = _keys(spec)
    log.info("loading", role=role, model=spec.model)
    if spec.affinity:
        os.sched_setaffinity(0, spec.affinity)
    try:
        backend = load_backend(spec.backend, spec.load_options(role), _untold)
    except Exception as error:
        raise ModelError(f"cannot load the {role} '{spec.model}': {error}") from error
    log.info("loaded", role=role, model=spec.model, device=backend.info.device)
    pause_s = FIRST_PAUSE_S
    try:
        while True:
            try:
                mailbox = ZmqMailbox(spec.connect, keys)
            except OSError as error:
                log.warning("no_engine", endpoint=spec.connect, reason=str(error), next_try_in_s=pause_s)
            else:
                log.info("connected", endpoint=spec.connect)
                since_s = time.monotonic()
                actor = make_actor(role, backend, mailbox)
                try:
                    actor.run()
                finally:
                    mailbox.close()
                if actor.progress or time.monotonic() - since_s > pause_s:  # else it was turned away at once
                    pause_s = FIRST_PAUSE_S
                log.info("disconnected", endpoint=spec.connect, next_try_in_s=pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
    finally:
        backend.close()


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


def _untold(message: FromActor) -> None:
    """There is no engine yet that could be told of the progress."""
