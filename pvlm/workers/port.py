"""The port where workers on other hosts connect. `pvlm.workers.remote_worker` is their side."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable

import anyio

from pvlm.children import LIMITS, reached_limit
from pvlm.config import EngineConfig
from pvlm.errors import ConfigError, ModelError
from pvlm.log import log
from pvlm.settings.endpoints import split_endpoint
from pvlm.transports.curve import Keys
from pvlm.transports.zmq import CUT_AFTER_S, ZmqChannel, ZmqServer
from pvlm.workers.backends import AUTO
from pvlm.workers.clocks import HostClock
from pvlm.workers.launch import RunningActor, greeting
from pvlm.workers.process import WorkerSpec
from pvlm_protocols.backend import ModelInfo, Role
from pvlm_protocols.messages import Ping, Pong, Recall, Recalled

ANSWER_S = 10.0
"""How long a worker that has greeted may take to answer."""
CLOCK_PINGS = 5
"""Round trips before a worker's first session."""


class RemoteWorker:
    """A worker that a person runs on another host. The engine can leave it, not kill it."""

    def __init__(self, channel: ZmqChannel) -> None:
        self._channel = channel

    @property
    def gone(self) -> bool:
        return self._channel.gone.is_set()

    async def wait(self) -> str:
        await self._channel.gone.wait()
        damage = f": {self._channel.damage}" if self._channel.damage else ""
        return f"the connection to {self._channel.worker} is lost{damage}"

    def computed(self) -> int:
        """Nobody on this host knows."""
        return 0

    async def aclose(self) -> None:
        self._channel.dismiss("the engine was closed")

    async def kill(self, reason: str) -> None:
        self._channel.dismiss(reason)


def open_port(role: Role, config: EngineConfig, on_refused: Callable[[str], None]) -> ZmqServer:
    """Open the port of a role. Call it on the engine's event loop. ``on_refused`` gets why a connection was refused.

    Raises ConfigError for invalid keys, and for an endpoint that is taken or is not of this host. Raises ModelError
    if a limit of the system is reached.
    """
    endpoint = config.listen(role)
    assert endpoint is not None
    keys = None
    if config.keys is not None:
        keys = Keys.load(config.keys)
        if not keys.trusted():
            log.warning("no_worker_is_authorized", directory=str(keys.authorized))

    try:
        return ZmqServer(endpoint, keys, min(CUT_AFTER_S, config.hang_timeout_s / 2), on_refused)
    except (OSError, RuntimeError) as error:
        kind = ConfigError if isinstance(error, OSError) and error.errno not in LIMITS else ModelError
        raise kind(f"cannot listen on {role}_listen '{endpoint}': {reached_limit(error)}") from None


async def join(
    role: Role, config: EngineConfig, spec: WorkerSpec, port: ZmqServer, check: Callable[[ModelInfo], None], engine: int
) -> RunningActor:
    """Wait for a worker, and until it has said what it is and which sessions of this ``engine`` it has kept.

    ``check`` raises ModelError for a wrong model. Raises ModelError if no worker has come within
    ``config.start_timeout_s``, or a wrong one.
    """
    command = worker_command(role, config)
    log.info("waiting_for_worker", role=role, endpoint=port.endpoint, command=command)
    with anyio.move_on_after(config.start_timeout_s):
        while True:
            if (actor := await _next_worker(role, spec, port, check, engine)) is not None:
                return actor
    refused = f" ({port.refused} were refused, the last since {port.last_refusal})" if port.refused else ""
    raise ModelError(
        f"no {role} worker has come to {port.endpoint} within {config.start_timeout_s:g} s (start_timeout_s){refused}: "
        f"run on its host `{command}`"
    )


async def _next_worker(
    role: Role, spec: WorkerSpec, port: ZmqServer, check: Callable[[ModelInfo], None], engine: int
) -> RunningActor | None:
    """Return the next worker that comes; None if it is lost again at once."""
    channel = port.channel()
    worker, clock = RemoteWorker(channel), HostClock()
    try:
        hello = await greeting(role, spec, channel, _ignore, worker.wait)
        if hello.role != role:
            raise ModelError(f"a {hello.role} worker has come to the port of the {role}s ({port.endpoint})")
        check(hello.info)
        with anyio.move_on_after(ANSWER_S) as waiting:
            await _compare_clocks(channel, clock)
            recalled = await _recall(channel, engine)
        if waiting.cancelled_caught:
            raise ModelError(f"the {role} worker {channel.worker} has greeted, and does not answer")
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await channel.aclose()
            await worker.kill(str(error) or "the engine does not wait any longer")
        if isinstance(error, ModelError) and worker.gone:
            return None
        raise
    log.info(
        "worker_joined", role=role, worker=channel.worker, model=hello.info.name, device=hello.info.device,
        backend=hello.info.backend, reason=hello.info.backend_reason, clock_error_s=round(clock.error_s, 6),
    )  # fmt: skip
    held = set(recalled.sessions)
    return RunningActor(role, channel, worker, hello.info, hello.pid, channel.worker, clock, held, known=recalled.known)


async def _compare_clocks(channel: ZmqChannel, clock: HostClock) -> None:
    for nonce in range(CLOCK_PINGS):
        clock.asked(nonce)
        channel.post(Ping(nonce=nonce))
        while not isinstance(message := await channel.receive(), Pong):
            pass
        clock.answered(message)


async def _recall(channel: ZmqChannel, engine: int) -> Recalled:
    """Return which sessions the worker has kept."""
    channel.post(Recall(engine=engine))
    while not isinstance(message := await channel.receive(), Recalled):
        pass
    return message


def _ignore(role: Role, fraction: float) -> None:
    """The worker has loaded its model before it came."""


def worker_command(role: Role, config: EngineConfig) -> str:
    """Return the command that a person runs on the other host."""
    endpoint = config.listen(role)
    assert endpoint is not None
    host, port = split_endpoint(endpoint)
    if host in ("0.0.0.0", "::", "*"):
        host = socket.gethostname()
    model = config.target if role == "target" else config.draft_model
    backend = config.backend_of(role)
    command = ["pvlm", "worker", "--role", role, "--model", str(model), "--connect", f"tcp://{host}:{port}"]
    if backend != AUTO:
        command += ["--backend", backend]
    if config.keys is not None:
        command += ["--keys", "DIR"]
    return shlex.join(command)
