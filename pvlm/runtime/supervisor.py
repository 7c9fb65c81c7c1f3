"""Keeping the actor of one role running: it is started, watched, and started again when it is gone or hangs.

An actor is taken to be gone when its process or thread ends, when it says so (`Dying`), when it does not read its
mailbox, and when it has not been heard of for `EngineConfig.hang_timeout_s`. It is asked by `Ping`, and answers between
two units of work, two layers, and two groups of frames in the vision tower. So a prefill of a minute is no hang, and a
layer that takes longer than the timeout is. One that hangs while it has an answer to free that has ended is replaced
without spending a restart: leaving is normal. One on another host is not started: it is waited for, and left where this
one kills.
"""

from __future__ import annotations

import time
from collections.abc import Set
from functools import partial
from typing import Literal, Protocol

import anyio
import anyio.abc
import msgspec

from pvlm.coordination.validation import misplaced
from pvlm.errors import RemoteTraceback
from pvlm.log import log
from pvlm.runtime.contact import Contact
from pvlm.runtime.loops import start_soon
from pvlm.runtime.restarts import Restarts
from pvlm.runtime.starter import Starter
from pvlm.telemetry.metrics import WORKER_RESTARTS, WORKERS_RUNNING
from pvlm.telemetry.reporter import Reporter
from pvlm.transports import ChannelClosed, ChannelFull
from pvlm.workers.backoff import Backoff
from pvlm.workers.launch import RunningActor, WorkerLost
from pvlm.workers.silence import silence
from pvlm_protocols.backend import ModelInfo, Role
from pvlm_protocols.messages import Began, Close, Dying, Failed, FromActor, Pong, PrefixesKept, SessionMessage, ToActor

RESTART_PAUSE_S = 0.5
"""After a start that failed, before the next; doubled each time. The first start of a lost actor is at once."""
RESTART_PAUSE_MAX_S = 30.0


class ActorHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How an actor is. ``running``: it answered; ``silent``: it is busy, or hangs; ``restarting``; ``away``: one on
    another host that is waited for; ``lost``: it was lost too often and rests, or has been away for `start_timeout_s`.

    ``sessions``: how many are open there; ``progress``: counts its work; both None where it did not answer.
    ``restarts``: starts after the first, or how often one on another host has come back. ``reason``: why it was last
    lost, or empty. ``next_try_s``: seconds until one that rests is started again; None where none rests. ``address``:
    of one on another host, where ``pid`` is of that host. ``refused``: connections that were turned away from its port.
    """

    state: Literal["running", "silent", "restarting", "away", "lost"]
    pid: int | None
    sessions: int | None
    progress: int | None
    restarts: int
    reason: str
    next_try_s: float | None = None
    address: str = ""
    refused: int = 0


class Listener(Protocol):
    """Who is told. Called on the event loop; nothing here waits."""

    def heard(self, role: Role, message: FromActor) -> None:
        """The actor that is running has said something."""
        ...

    def lost(self, role: Role, reason: str, suspects: tuple[int, ...]) -> int:
        """The actor is gone; `back` or `given_up` follows. ``suspects``: as for `blame`, and what that returns."""
        ...

    def blame(self, role: Role, reason: str, suspects: tuple[int, ...]) -> int:
        """The actor has died in a unit of work for the sessions ``suspects``.

        Returns how many losses, this one too, have a session as their cause that will not be opened again; 0: none.
        """
        ...

    def back(self, role: Role, kept: Set[int]) -> None:
        """There is an actor again, also after `given_up`. ``kept``: sessions that one on another host still has."""
        ...

    def given_up(self, role: Role) -> None:
        """The actor rests before it is started again."""
        ...

    def freeing(self, role: Role) -> bool:
        """Whether the actor has not yet freed an answer that has ended: its work in hand is for nobody."""
        ...


class Loss(msgspec.Struct, frozen=True):
    """``reason``: why the actor was last lost, or could not be started again. ``traceback``: its own, where it said so.
    ``crash``: it counts among the restarts.
    """

    reason: str = ""
    traceback: str = ""
    crash: bool = True


class Supervisor:
    """See the module. Its tasks run in the task group of the engine."""

    def __init__(
        self, starter: Starter, restarts: Restarts, tasks: anyio.abc.TaskGroup, listener: Listener, reporter: Reporter
    ) -> None:
        self.role = starter.role
        self.info: ModelInfo | None = None
        """What was loaded, also while the actor is away; None before the first start."""
        self.loss = Loss()
        self.restarts = restarts
        self._starter = starter
        self._tasks = tasks
        self._listener = listener
        self._reporter = reporter
        self._contact: Contact | None = None
        self._changed = anyio.Event()

    @property
    def running(self) -> bool:
        return self._contact is not None

    @property
    def pid(self) -> int | None:
        """None while the actor is away, and for one on another host."""
        return None if self._actor is None or self._starter.remote else self._actor.pid

    @property
    def _actor(self) -> RunningActor | None:
        return None if self._contact is None else self._contact.actor

    async def open(self) -> None:
        """The first start. Raises ModelError, and ConfigError if the port fails to open.

        A draft that ends without a word is started again, and done without when that is used up. One that says why it
        cannot load is an error.
        """
        pauses = Backoff(RESTART_PAUSE_S, RESTART_PAUSE_MAX_S)
        while True:
            try:
                await self._start()
                if self.restarts.total:
                    self._reporter.add(WORKER_RESTARTS, role=self.role)
                return
            except WorkerLost as error:
                if self.role == "target":
                    raise
                self.loss = Loss(str(error))
                self._reporter.fault("worker_lost", role=self.role, reason=str(error))
            if self.restarts.spent:
                self._give_up()
                start_soon(self._tasks, self._restart)
                return
            self._count_restart()
            await anyio.sleep(pauses.take())

    async def settled(self) -> bool:
        """Wait while the actor is being started again; whether there is one."""
        while not self.running and not self.restarts.given_up:
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
            self._lose(self._actor, Loss("it does not read its mailbox"), self._suspects(self._actor))

    async def health(self, timeout_s: float) -> ActorHealth:
        """Ask the actor; at most ``timeout_s``."""
        pong = None if self._contact is None else await self._contact.answer(timeout_s)
        actor = self._actor
        away: Literal["restarting", "away", "lost"] = (
            "lost" if self.restarts.given_up else "away" if self._starter.remote else "restarting"
        )
        return ActorHealth(
            state=away if actor is None else "running" if pong else "silent",
            pid=None if actor is None else actor.pid,
            sessions=pong.sessions if pong else None,
            progress=pong.progress if pong else None,
            restarts=self.restarts.total,
            reason=self.loss.reason,
            next_try_s=self.restarts.next_try_s,
            address="" if actor is None else actor.address,
            refused=self._starter.refused,
        )

    async def aclose(self) -> None:
        """End the actor; call it when the tasks have ended."""
        self.restarts.given_up = True
        self._changed.set()
        contact, self._contact = self._contact, None
        if contact is not None:
            contact.end()
            self._reporter.add(WORKERS_RUNNING, -1, role=self.role)
            await contact.actor.aclose()
        self._starter.close()

    async def _start(self) -> None:
        actor = await self._starter.start()
        contact = Contact(actor, self.post, self._reporter)
        self._contact, self.info = contact, actor.info
        self._reporter.add(WORKERS_RUNNING, role=self.role)
        for watching in (self._watch, self._listen):
            start_soon(self._tasks, watching, contact)
        actor.channel.hand_on(partial(self._hear, contact))

    # ---- watching -------------------------------------------------------------------------------------------------

    def _hear(self, contact: Contact, message: FromActor) -> None:
        """Called by the channel, outside of any task; an error of ours ends the engine as one in its tasks does."""
        if contact is not self._contact:  # what a lost one has said counts no more
            return
        try:
            self._take(contact, message)
        except Exception as error:
            start_soon(self._tasks, _raise, error)

    def _take(self, contact: Contact, message: FromActor) -> None:
        if problem := misplaced(self.role, message):
            contact.heard += 1
            self._reporter.fault("message_dropped", role=self.role, count=1, end="engine", reason=problem)
            if isinstance(message, SessionMessage):  # which waits for what it should have been
                failed = Failed(
                    session=message.session, role=self.role, error="ProtocolError", message=problem, traceback=""
                )
                self._listener.heard(self.role, failed)
            return
        match message := contact.here(message):
            case Pong():
                contact.answered(message)
            case Began():
                contact.actor.mark.set(*message.sessions)
            case PrefixesKept():
                contact.keeps(message)
            case Dying():
                loss = Loss(f"{message.error}: {message.message}", message.traceback)
                self._lose(contact.actor, loss, self._suspects(contact.actor))
            case _:
                self._listener.heard(self.role, message)

    async def _watch(self, contact: Contact) -> None:
        actor = contact.actor
        try:
            reason = await actor.worker.wait()
            if contact is self._contact:
                self._lose(actor, Loss(reason), self._suspects(actor))
        finally:
            if contact is self._contact:  # cancelled, with all tasks of the engine
                actor.channel.hand_on(_ignore)

    async def _listen(self, contact: Contact) -> None:
        """Ask again and again. A hang is no crash while an answer that has ended is being freed."""

        def heard() -> int:
            if contact is self._contact:
                contact.ask()
            return contact.heard

        timeout_s = self._starter.config.hang_timeout_s
        await silence(timeout_s, heard)
        if contact is not self._contact:
            return
        crash = not self._listener.freeing(self.role)
        reason = f"it hangs: nothing was heard of it for {timeout_s:g} s (hang_timeout_s)"
        self._lose(contact.actor, Loss(reason, crash=crash), self._suspects(contact.actor) if crash else ())

    def _suspects(self, actor: RunningActor) -> tuple[int, ...]:
        """The sessions in whose work an actor is lost. A lost connection is nobody's fault, and of another host nothing
        more is known yet.
        """
        return () if self._starter.remote or actor.channel.damage else actor.mark.read()

    # ---- losing and starting again --------------------------------------------------------------------------------

    def _lose(self, actor: RunningActor, loss: Loss, suspects: tuple[int, ...] = ()) -> None:
        """``suspects``: the sessions in whose unit of work the actor was lost."""
        if (contact := self._contact) is None or actor is not contact.actor:
            return
        self._contact = None
        self.loss = loss
        self._changed.set()  # who has waited since an earlier loss looks again, and goes on waiting
        self._changed = anyio.Event()
        contact.end()
        self._reporter.add(WORKERS_RUNNING, -1, role=self.role)
        self._reporter.fault("worker_lost", role=self.role, pid=actor.pid, reason=loss.reason)
        if losses := self._listener.lost(self.role, loss.reason, suspects):
            self.restarts.refund(losses - 1)
            self.loss = msgspec.structs.replace(loss, crash=False)
        start_soon(self._tasks, self._replace, actor)

    async def _replace(self, lost: RunningActor) -> None:
        with anyio.CancelScope(shield=True):
            await lost.kill(self.loss.reason)  # first, for two models may be more than the memory holds
        await (self._await_another(lost) if self._starter.remote else self._restart())

    async def _restart(self) -> None:
        pauses = Backoff(RESTART_PAUSE_S, RESTART_PAUSE_MAX_S)
        lost, counts = self.loss, self.loss.crash
        while True:
            if counts and self.restarts.spent:
                self._give_up()
                await self.restarts.rest()
            self._count_restart(counts)
            counts = True
            attempt = self.restarts.total
            try:
                await self._start()
            except Exception as error:  # a worker may fail to start in any way; the engine lives on
                self._start_failed(lost, error, "started again: ", attempt=attempt)
                if not self.restarts.spent:
                    await anyio.sleep(pauses.take())
            else:
                log.info("worker_restarted", role=self.role, pid=self.pid, attempt=attempt)
                self._is_back()
                return

    def _count_restart(self, crash: bool = True) -> None:
        self.restarts.total += 1
        if crash:
            self.restarts.spend()

    def _start_failed(self, lost: Loss, error: Exception, what: str = "", attempt: int | None = None) -> None:
        self._reporter.fault("worker_restart_failed", role=self.role, attempt=attempt, reason=str(error))
        cause = error.__cause__
        traceback = cause.traceback if isinstance(cause, RemoteTraceback) else lost.traceback
        self.loss = Loss(f"{lost.reason}; {what}{error}", traceback)

    async def _await_another(self, before: RunningActor) -> None:
        """For as long as the engine is open. Those who wait for an answer wait no longer than `start_timeout_s`.

        If the next one comes from the same address and does not know this engine, the one before has died.
        """
        lost, since_s = self.loss, time.monotonic()
        while True:
            try:
                await self._start()
            except Exception as error:  # a worker that comes may be the wrong one; the engine lives on
                self._start_failed(lost, error)
                if time.monotonic() - since_s >= self._starter.config.start_timeout_s:
                    self._give_up()
                await anyio.sleep(RESTART_PAUSE_S)
            else:
                self.restarts.total += 1
                kept = 0 if self._actor is None else len(self._actor.held)
                log.info("worker_back", role=self.role, away_s=round(time.monotonic() - since_s, 3), kept=kept)
                if (actor := self._actor) is not None and not actor.known and actor.address == before.address:
                    self._listener.blame(self.role, lost.reason, before.mark.read())
                self._is_back()
                return

    def _is_back(self) -> None:
        self.restarts.given_up = False
        self._reporter.add(WORKER_RESTARTS, role=self.role)
        if (actor := self._actor) is None:  # what it said while it was taken in was its last; that loss starts another
            return
        self._changed.set()
        self._listener.back(self.role, frozenset(actor.held))
        for session in list(actor.held):  # its answer has ended meanwhile
            self.post(Close(session=session))
        actor.held.clear()

    def _give_up(self) -> None:
        if self.restarts.given_up:
            return
        self.restarts.given_up = True
        self._reporter.fault("worker_given_up", role=self.role, attempts=self.restarts.total, reason=self.loss.reason)
        self._changed.set()
        self._listener.given_up(self.role)


async def _raise(error: Exception) -> None:
    raise error


def _ignore(message: FromActor) -> None:
    """Nobody listens any more."""
