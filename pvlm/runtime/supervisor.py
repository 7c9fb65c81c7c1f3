"""Keeping the actor of one role running: it is started, watched, and started again when it is gone or hangs.

An actor is taken to be gone when its process or thread ends, when it says so (`Dying`), when it does not read its
mailbox, and when it has not been heard of for `EngineConfig.hang_timeout_s`. It is asked by `Ping`, and answers between
two units of work, two layers, and two groups of frames in the vision tower. So a prefill of a minute is no hang, and a
layer that takes longer than the timeout is. One that hangs while it has an answer to free that has ended is replaced
without spending a restart: leaving is normal. One on another host is not started: it is waited for, and left where this
one kills.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Literal, Protocol

import anyio
import anyio.abc
import msgspec
import structlog

from pvlm.config import EngineConfig
from pvlm.coordination.validation import misplaced
from pvlm.errors import RemoteTraceback
from pvlm.telemetry.metrics import WORKER_RESTARTS, WORKERS_RUNNING
from pvlm.telemetry.reporter import Reporter
from pvlm.transports import ChannelClosed, ChannelFull
from pvlm.transports.zmq import ZmqServer
from pvlm.workers.backoff import Backoff
from pvlm.workers.launch import RunningActor, launch
from pvlm.workers.port import join, open_port
from pvlm.workers.process import WorkerSpec
from pvlm_protocols.backend import ModelInfo, Role
from pvlm_protocols.messages import (
    Close,
    Dying,
    Failed,
    FromActor,
    Ping,
    Pong,
    SessionMessage,
    ToActor,
)

RESTART_PAUSE_S = 0.5
"""After a start that failed, before the next; doubled each time. The first start of a lost actor is at once."""
RESTART_PAUSE_MAX_S = 30.0
HEALTHY_S = 600.0
"""An actor that has run for so long may be started again as often as a new one."""
BEATS = 5
"""How often an actor is asked within the time after which it is taken to hang."""

log = structlog.get_logger()


class ActorHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How an actor is. ``running``: it answered; ``silent``: it is busy, or hangs; ``restarting``; ``away``: one on
    another host that is waited for; ``lost``: it is not started again, or has been away for `start_timeout_s`.

    ``sessions``: how many are open there; ``progress``: counts its work; both None where it did not answer.
    ``restarts``: starts after the first, or how often one on another host has come back. ``reason``: why it was last
    lost, or empty. ``address``: of one on another host, where ``pid`` is of that host. ``refused``: connections that
    were turned away from its port.
    """

    state: Literal["running", "silent", "restarting", "away", "lost"]
    pid: int | None
    sessions: int | None
    progress: int | None
    restarts: int
    reason: str
    address: str = ""
    refused: int = 0


class Listener(Protocol):
    """Who is told. Called on the event loop; nothing here waits."""

    def heard(self, role: Role, message: FromActor) -> None:
        """The actor that is running has said something."""
        ...

    def lost(self, role: Role, reason: str) -> None:
        """The actor is gone; `back` or `given_up` follows."""
        ...

    def back(self, role: Role) -> None:
        """There is an actor again, without a session; for one on another host also after `given_up`."""
        ...

    def given_up(self, role: Role) -> None:
        """The actor is not started again."""
        ...

    def freeing(self, role: Role) -> bool:
        """Whether the actor has not yet freed an answer that has ended: its work in hand is for nobody."""
        ...


class Supervisor:
    """See the module. Its tasks run in the task group of the engine."""

    def __init__(
        self,
        role: Role,
        config: EngineConfig,
        spec: WorkerSpec,
        tasks: anyio.abc.TaskGroup,
        listener: Listener,
        on_loading: Callable[[Role, float], None],
        check: Callable[[Role, ModelInfo], None],
        reporter: Reporter,
    ) -> None:
        """``check`` raises ModelError where a worker on another host is not the one to have."""
        self.role = role
        self.info: ModelInfo | None = None
        """What was loaded, also while the actor is away; None before the first start."""
        self.reason = ""
        """Why the actor was last lost, or could not be started again."""
        self.traceback = ""
        """Its own, where it said so."""
        self._config = config
        self._spec = spec
        self._allowed = config.target_restarts if role == "target" else config.draft_restarts
        self._tasks = tasks
        self._listener = listener
        self._on_loading = on_loading
        self._check = check
        self._remote = config.listen(role) is not None
        self._engine = secrets.randbits(62)
        """By which a worker on another host knows whose sessions it has kept."""
        self._port: ZmqServer | None = None
        self._reporter = reporter
        self._actor: RunningActor | None = None
        self._heard = False
        self._restarts = 0
        self._attempts = 0
        """Restarts in a row."""
        self._started_s = 0.0
        self._given_up = False
        self._changed = anyio.Event()
        self._nonces = count(1)
        self._dropped: dict[Literal["engine", "worker"], int] = {}
        """Messages dropped at either end that have been reported."""
        self._asked: dict[int, tuple[anyio.Event, list[Pong]]] = {}

    @property
    def running(self) -> bool:
        return self._actor is not None

    @property
    def pid(self) -> int | None:
        """None while the actor is away, and for one on another host."""
        return None if self._actor is None or self._remote else self._actor.pid

    async def start(self) -> None:
        """Raises ModelError, and ConfigError for a port that cannot be opened."""
        if self._remote:
            self._port = self._port or self._open_port()
            check = partial(self._check, self.role)
            actor = await join(self.role, self._config, self._spec, self._port, check, self._engine)
        else:
            actor = await launch(self.role, self._config, self._spec, self._on_loading)
        self._actor, self.info, self._started_s = actor, actor.info, time.monotonic()
        self._dropped = {"engine": 0, "worker": 0}
        self._reporter.add(WORKERS_RUNNING, role=self.role)
        for watching in (self._watch, self._listen):
            self._tasks.start_soon(watching, actor)
        actor.channel.hand_on(partial(self._hear, actor))

    def _open_port(self) -> ZmqServer:
        endpoint = self._config.listen(self.role)
        refused = partial(self._reporter.fault, "connection_refused", role=self.role, endpoint=endpoint)
        return open_port(self.role, self._config, lambda reason: refused(reason=reason))

    async def settled(self) -> bool:
        """Wait while the actor is being started again; whether there is one."""
        while self._actor is None and not self._given_up:
            await self._changed.wait()
        return self.running

    def post(self, message: ToActor) -> None:
        """Send without waiting. A message to an actor that is away is lost."""
        if self._actor is None:
            return
        try:
            self._actor.post(message)
        except ChannelClosed:
            pass
        except ChannelFull:
            self._lose(self._actor, "it does not read its mailbox")

    async def health(self, timeout_s: float) -> ActorHealth:
        """Ask the actor; at most ``timeout_s``."""
        nonce, answered, answers = next(self._nonces), anyio.Event(), list[Pong]()
        actor = self._actor
        if actor is not None:
            self._asked[nonce] = (answered, answers)
            self._ask(actor, nonce)
            with anyio.move_on_after(timeout_s):
                await answered.wait()
            self._asked.pop(nonce, None)
        pong = answers[0] if answers else None
        away: Literal["restarting", "away", "lost"] = (
            "lost" if self._given_up else "away" if self._remote else "restarting"
        )
        return ActorHealth(
            state=away if self._actor is None else "running" if pong else "silent",
            pid=None if self._actor is None else self._actor.pid,
            sessions=pong.sessions if pong else None,
            progress=pong.progress if pong else None,
            restarts=self._restarts,
            reason=self.reason,
            address="" if self._actor is None else self._actor.address,
            refused=0 if self._port is None else self._port.refused,
        )

    async def aclose(self) -> None:
        """End the actor; call it when the tasks have ended."""
        self._given_up = True
        self._changed.set()
        actor, self._actor = self._actor, None
        if actor is not None:
            self._reporter.add(WORKERS_RUNNING, -1, role=self.role)
            await actor.aclose()
        if self._port is not None:
            self._port.close()

    # ---- watching -------------------------------------------------------------------------------------------------

    def _hear(self, actor: RunningActor, message: FromActor) -> None:
        """Called by the channel, outside of any task; an error of ours ends the engine as one in its tasks does."""
        if actor is not self._actor:  # what a lost one has said counts no more
            return
        try:
            self._take(actor, message)
        except Exception as error:
            self._tasks.start_soon(_raise, error)

    def _take(self, actor: RunningActor, message: FromActor) -> None:
        self._heard = True
        if problem := misplaced(self.role, message):
            self._reporter.fault("message_dropped", role=self.role, count=1, end="engine", reason=problem)
            if isinstance(message, SessionMessage):  # which waits for what it should have been
                failed = Failed(
                    session=message.session, role=self.role, error="ProtocolError", message=problem, traceback=""
                )
                self._listener.heard(self.role, failed)
            return
        if actor.clock is not None:
            message = actor.clock.here(message)
        match message:
            case Pong():
                if actor.clock is not None:
                    actor.clock.answered(message)
                self._tell_dropped("engine", actor.channel.dropped)
                self._tell_dropped("worker", message.dropped)
                if (asked := self._asked.pop(message.nonce, None)) is not None:
                    answered, answers = asked
                    answers.append(message)
                    answered.set()
            case Dying():
                self._lose(actor, f"{message.error}: {message.message}", message.traceback)
            case _:
                self._listener.heard(self.role, message)

    def _tell_dropped(self, end: Literal["engine", "worker"], dropped: int) -> None:
        if (more := dropped - self._dropped[end]) > 0:
            self._dropped[end] = dropped
            self._reporter.fault("message_dropped", role=self.role, count=more, end=end)

    async def _watch(self, actor: RunningActor) -> None:
        try:
            self._lose(actor, await actor.host.wait())
        finally:
            if actor is self._actor:  # cancelled, with all tasks of the engine
                actor.channel.hand_on(_ignore)

    async def _listen(self, actor: RunningActor) -> None:
        """Ask again and again. Silent beats are counted, not seconds: while this process is stopped or its event loop
        is blocked, nobody is heard, and nobody hangs.
        """
        silent = 0
        while silent < BEATS:
            self._heard = False
            if actor is not self._actor:
                return
            self._ask(actor, next(self._nonces))
            await anyio.sleep(self._config.hang_timeout_s / BEATS)
            silent = 0 if self._heard else silent + 1
        reason = f"it hangs: nothing was heard of it for {self._config.hang_timeout_s:g} s (hang_timeout_s)"
        self._lose(actor, reason, counted=not self._listener.freeing(self.role))

    def _ask(self, actor: RunningActor, nonce: int) -> None:
        if actor.clock is not None:
            actor.clock.asked(nonce)
        self.post(Ping(nonce=nonce))

    # ---- losing and starting again --------------------------------------------------------------------------------

    def _lose(self, actor: RunningActor, reason: str, traceback: str = "", *, counted: bool = True) -> None:
        """``counted``: the restart is one of those that are allowed."""
        if actor is not self._actor:
            return
        self._actor = None
        self._tell_dropped("engine", actor.channel.dropped)
        self.reason, self.traceback = reason, traceback
        self._changed.set()  # who has waited since an earlier loss looks again, and goes on waiting
        self._changed = anyio.Event()
        for answered, _ in self._asked.values():
            answered.set()
        if time.monotonic() - self._started_s >= HEALTHY_S:
            self._attempts = 0
        if not counted:
            self._attempts -= 1
        self._reporter.add(WORKERS_RUNNING, -1, role=self.role)
        self._reporter.fault("worker_lost", role=self.role, pid=actor.pid, reason=reason)
        self._tasks.start_soon(self._replace, actor)
        self._listener.lost(self.role, reason)

    async def _replace(self, lost: RunningActor) -> None:
        with anyio.CancelScope(shield=True):
            await lost.kill(self.reason)  # first, for two models may be more than the memory holds
        await (self._await_another() if self._remote else self._restart())

    async def _restart(self) -> None:
        pauses = Backoff(RESTART_PAUSE_S, RESTART_PAUSE_MAX_S)
        while self._attempts < self._allowed:
            self._attempts += 1
            self._restarts += 1
            try:
                await self.start()
            except Exception as error:  # a worker may fail to start in any way; the engine lives on
                self._reporter.fault("worker_restart_failed", role=self.role, attempt=self._attempts, reason=str(error))
                self.reason = f"{self.reason}; started again: {error}"
                if isinstance(error.__cause__, RemoteTraceback):
                    self.traceback = error.__cause__.traceback
                if self._attempts < self._allowed:
                    await anyio.sleep(pauses.take())
            else:
                log.info("worker_restarted", role=self.role, pid=self.pid, attempt=self._attempts)
                self._is_back()
                return
        self._reporter.fault("worker_given_up", role=self.role, attempts=self._attempts, reason=self.reason)
        self._give_up()

    async def _await_another(self) -> None:
        """For as long as the engine is open. Those who wait for an answer wait no longer than `start_timeout_s`."""
        lost, since_s = self.reason, time.monotonic()
        while True:
            try:
                await self.start()
            except Exception as error:  # a worker that comes may be the wrong one; the engine lives on
                self._reporter.fault("worker_restart_failed", role=self.role, reason=str(error))
                self.reason = f"{lost}; {error}"
                if not self._given_up and time.monotonic() - since_s >= self._config.start_timeout_s:
                    self._reporter.fault("worker_given_up", role=self.role, reason=self.reason)
                    self._give_up()
                await anyio.sleep(RESTART_PAUSE_S)
            else:
                self._restarts += 1
                kept = 0 if self._actor is None else len(self._actor.held)
                log.info("worker_back", role=self.role, away_s=round(time.monotonic() - since_s, 3), kept=kept)
                self._is_back()
                return

    def _is_back(self) -> None:
        self._given_up = False
        self._reporter.add(WORKER_RESTARTS, role=self.role)
        if (actor := self._actor) is None:  # what it said while it was taken in was its last; that loss starts another
            return
        self._changed.set()
        self._listener.back(self.role)
        for session in list(actor.held):  # its answer has ended meanwhile
            self.post(Close(session=session))
        actor.held.clear()

    def _give_up(self) -> None:
        self._given_up = True
        self._changed.set()
        self._listener.given_up(self.role)


async def _raise(error: Exception) -> None:
    raise error


def _ignore(message: FromActor) -> None:
    """Nobody listens any more."""
