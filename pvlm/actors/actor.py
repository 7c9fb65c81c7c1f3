"""What both actors have in common: the loop, the turns of the sessions, and how failures are told."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice

from pvlm.actors.failure import dying, error_fields
from pvlm.actors.mark import Mark
from pvlm.actors.prefixes import Prefixes
from pvlm.actors.rounds import run_rounds
from pvlm.actors.session import ActorSession, WorkAbandoned
from pvlm.log import log
from pvlm.transports import ChannelClosed, Mailbox
from pvlm_protocols.backend import Backend, ModelInfo, Role, SharedPasses
from pvlm_protocols.codec import PROTOCOL_VERSION
from pvlm_protocols.messages import (
    Close,
    Closed,
    Failed,
    Hello,
    Open,
    Pin,
    Ping,
    Pong,
    PrefillProgress,
    PrefixesKept,
    Recall,
    Recalled,
    Resume,
    SessionMessage,
    Stop,
    ToActor,
)

PROGRESS_EVERY_S = 0.25
PATIENCE_MAX_S = 60.0
"""The longest wait for a message in one go: then it is looked whether there is something to do."""

HOLD_S = 60.0
"""How long the sessions of a lost connection are kept for `Resume`."""


class Actor(ABC):
    """A model that serves sessions in turn. `run` blocks its thread until `Stop`, or until the engine is gone."""

    role: Role
    look_every_s = 0.001
    """How often it looks into its mailbox between the layers of a pass."""

    def __init__(
        self,
        backend: Backend,
        mailbox: Mailbox,
        info: ModelInfo | None = None,
        mark: Mark | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        """``info``: what it says of its model (None: the backend's own). ``prefix_bytes``: for kept prefixes."""
        self.backend = backend
        self.info = info or backend.info
        self.mailbox = mailbox
        self.mark = mark or Mark()
        self.prefixes = Prefixes(prefix_bytes)
        self.progress = 0
        self._inbox: deque[ToActor] = deque()
        self._sessions: dict[int, ActorSession] = {}
        self._turns: deque[int] = deque()
        self._held: dict[int, ActorSession] = {}
        """Sessions of a connection that was lost. They get no turns."""
        self._held_until_s = 0.0
        self._engine = 0
        """The engine that `_held` belongs to."""
        self._stopped = False
        self._told_progress_s = 0.0
        self._looked_s = 0.0

    @abstractmethod
    def new_session(self, opening: Open) -> ActorSession: ...

    def run(self) -> None:
        """As `serve`, and free all sessions at the end."""
        try:
            self.serve()
        finally:
            self.release()

    def serve(self) -> None:
        """Greet the engine, then serve until `Stop`, or until the connection is lost.

        Sessions of a lost connection are held: `serve` with another mailbox may resume them. An error outside any
        session is reported by `Dying` and raised.
        """
        self._stopped = False
        self._inbox.clear()
        try:
            self.mailbox.post(Hello(version=PROTOCOL_VERSION, role=self.role, info=self.info, pid=os.getpid()))
            while not self._stopped:
                self.turn()
            self.release()
        except ChannelClosed as closed:
            log.info("engine_gone", role=self.role, reason=str(closed))
            self._hold()
        except Exception as error:
            self._last_words(error)
            raise

    def release(self) -> None:
        """Free all sessions."""
        for session_id in [*self._sessions, *self._held]:
            self._close(session_id)
        self.prefixes.clear()

    def expire(self) -> None:
        """Free the held sessions if no engine has resumed them in time."""
        if self._held and time.monotonic() >= self._held_until_s:
            self._release_held()

    def turn(self, timeout_s: float | None = None) -> None:
        """One turn of the loop: take in what has arrived, then do one unit of work for the session whose turn it is.

        The unit is a piece of its preparation, or a round of decoding, in which all sessions take part that are ready.
        After a piece, sessions that decode have a turn before the next piece of any session.

        Without work to do it waits for a message, at most ``timeout_s`` (None: as long as no session runs out of
        patience).
        """
        self.expire()
        if self._inbox or self._next_ready() is not None:
            timeout_s = 0
        elif timeout_s is None:
            timeout_s = self._patience_s()
        self._read(timeout_s)
        while self._inbox:
            self._handle(self._inbox.popleft())
        if (session := self._next_ready()) is None:
            return
        together = self._together(session)
        for each in together:
            self._turns.remove(each.id)
            self._turns.append(each.id)
        if not session.prepared:
            self._turns = deque(sorted(self._turns, key=lambda number: not self._sessions[number].prepared))
        self.mark.set(*(each.id for each in together))
        try:
            if session.prepared:
                run_rounds(self, together)
            else:
                self.guarded(session.id, session.prepare_on)
        except ChannelClosed:  # no fault of the unit
            self.mark.set()
            raise
        self.mark.set()  # where the unit ends the actor, the mark stays
        if self.prefixes.changed:
            self._report_prefixes()

    def _report_prefixes(self) -> None:
        kept = self.prefixes.reported()
        self.mailbox.post(PrefixesKept(role=self.role, count=kept.count, nbytes=kept.nbytes, evicted=kept.evicted))

    def _together(self, session: ActorSession) -> list[ActorSession]:
        """A session and those that take part in its round: all that are ready, if the backend and they can share."""
        if not session.prepared or not session.opening.shares or not isinstance(self.backend, SharedPasses):
            return [session]
        turns = [self._sessions[number] for number in self._turns]
        return [other for other in turns if other.prepared and other.opening.shares and other.ready()]

    def tick(self, *sessions: ActorSession) -> None:
        """Called when a pass begins and between its layers, as far as the backend reports these. Raises WorkAbandoned
        if none of its sessions wants it any longer.
        """
        self.progress += 1
        for session in sessions:
            session.meanwhile()
        if time.monotonic() - self._looked_s >= self.look_every_s:
            self.look(*sessions)

    def undisturbed(self) -> bool:
        """No message is waiting and there is but one session: what it does in small steps need not end yet."""
        return not self._inbox and len(self._sessions) == 1

    def shared(self, session: ActorSession) -> bool:
        """Has another session been prefilled, and so passes in turn with this one or together with it?"""
        return any(other.prepared for other in self._sessions.values() if other is not session)

    def read(self) -> None:
        """Look into the mailbox in the middle of work."""
        self._looked_s = time.monotonic()
        self._read(0)

    def look(self, *sessions: ActorSession) -> None:
        """`read` in the middle of work for ``sessions``. Raises as `tick`."""
        self.read()
        if self._inbox and all(self._outdated(session) for session in sessions):
            raise WorkAbandoned

    def arrived(self, session: ActorSession, wanted: Callable[[SessionMessage], bool]) -> list[SessionMessage]:
        """Take those messages of a session that have been read in the middle of its round, up to the first that is not
        ``wanted``.
        """
        if not self._inbox:
            return []
        found: list[SessionMessage] = []
        kept: deque[ToActor] = deque()
        for index, message in enumerate(self._inbox):
            if not isinstance(message, SessionMessage) or message.session != session.id:
                kept.append(message)
            elif wanted(message):
                found.append(message)
            else:
                kept.extend(islice(self._inbox, index, None))
                break
        self._inbox = kept
        return found

    def _outdated(self, session: ActorSession) -> bool:
        """Has a message come that makes the session's work worthless?"""
        for message in self._inbox:
            match message:
                case Stop():
                    return True
                case SessionMessage() if message.session == session.id:
                    if isinstance(message, Close) or session.outdates(message):
                        return True
        return False

    def tick_prefill(self, session: ActorSession, fraction: float) -> None:
        """Called between the layers of a prefill, and tells how far it has come. Raises as `tick`."""
        self.progress += 1
        self.look(session)
        now = time.monotonic()
        if now - self._told_progress_s >= PROGRESS_EVERY_S:
            self._told_progress_s = now
            self.mailbox.post(PrefillProgress(session=session.id, role=self.role, fraction=min(1.0, fraction)))

    def _next_ready(self) -> ActorSession | None:
        """The session whose turn it is: of those that have something urgent to do the one that had its last turn
        longest ago; if there is none, of those that have anything to do.
        """
        ready = [
            session for number in self._turns if (session := self._sessions[number]).ready() and not session.start.waits
        ]
        return next((session for session in ready if session.urgent()), ready[0] if ready else None)

    def _patience_s(self) -> float | None:
        waits = [wait for session in self._sessions.values() if (wait := session.patience_s()) is not None]
        if self._held:
            waits.append(max(0.0, self._held_until_s - time.monotonic()))
        return min([*waits, PATIENCE_MAX_S]) if waits else None

    def _read(self, timeout_s: float | None) -> None:
        """Move what has arrived into the inbox; wait for the first message at most ``timeout_s``."""
        while (message := self.mailbox.take(timeout_s)) is not None:
            timeout_s = 0
            if isinstance(message, Ping):
                self.mailbox.post(
                    Pong(
                        nonce=message.nonce,
                        role=self.role,
                        progress=self.progress,
                        sessions=len(self._sessions) + len(self._held),
                        dropped=self.mailbox.dropped,
                        at_s=time.monotonic(),
                    )
                )
            else:
                self._inbox.append(message)

    def _handle(self, message: ToActor) -> None:
        match message:
            case Stop():
                self._stopped = True
            case Open():
                self.guarded(message.session, lambda: self._open(message))
            case Close():
                self._close(message.session)
                self.mailbox.post(Closed(session=message.session, role=self.role))
            case Pin():
                self.prefixes.pin(message.videos)
            case Recall():
                self._recall(message.engine)
            case Resume():
                self.guarded(message.session, lambda: self._resume(message))
            case SessionMessage():
                # A message for a session that has failed or been closed is late, not wrong.
                if (session := self._sessions.get(message.session)) is not None:
                    self.guarded(session.id, partial(session.take, message))

    def _open(self, opening: Open) -> None:
        self._close(opening.session)
        self._sessions[opening.session] = self.new_session(opening)
        self._turns.append(opening.session)

    def _recall(self, engine: int) -> None:
        if not (known := engine == self._engine):
            self._release_held()
            self._engine = engine
        self._held_until_s = time.monotonic() + HOLD_S
        self.mailbox.post(Recalled(role=self.role, known=known, sessions=tuple(self._held)))
        self._report_prefixes()

    def _resume(self, message: Resume) -> None:
        if (session := self._held.get(message.session)) is None:
            raise ValueError(f"session {message.session} cannot be resumed, only opened: its cache is gone")
        settled, most = len(message.committed), session.opening.sampling.max_tokens
        if not 0 < settled < most:
            raise ValueError(f"an answer of {most} tokens cannot be resumed after {settled}")
        self._sessions[session.id] = self._held.pop(session.id)
        self._turns.append(session.id)
        session.resume(message)
        log.info("session_resumed", role=self.role, session=session.id)

    def _hold(self) -> None:
        """Keep what can be resumed of the sessions of a lost connection."""
        for session_id, session in list(self._sessions.items()):
            if session.resumable():
                self._turns.remove(session_id)
                self._held[session_id] = self._sessions.pop(session_id)
                self._held_until_s = time.monotonic() + HOLD_S
            else:
                self._close(session_id)

    def _release_held(self) -> None:
        for session_id in list(self._held):
            self._close(session_id)

    def guarded(self, session_id: int, action: Callable[[], None]) -> None:
        """A session that fails takes nobody with it."""
        self.progress += 1
        try:
            action()
        except WorkAbandoned:
            pass
        except ChannelClosed:
            raise
        except Exception as error:
            self._close(session_id)
            self.mailbox.post(Failed(session=session_id, role=self.role, **error_fields(error)))

    def _close(self, session_id: int) -> None:
        if (session := self._sessions.pop(session_id, None)) is not None:
            self._turns.remove(session_id)
            session.close()
        if (session := self._held.pop(session_id, None)) is not None:
            session.close()

    def _last_words(self, error: Exception) -> None:
        try:
            self.mailbox.post(dying(self.role, error))
        except ChannelClosed:
            pass
