"""What both actors have in common: the loop, the turns of the sessions, and how failures are told."""

from __future__ import annotations

import os
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import structlog

from pvlm.actors.mark import NOBODY, Mark
from pvlm.transports import ChannelClosed, Mailbox
from pvlm_protocols.backend import Backend, ModelInfo, Prompt, Role, Session
from pvlm_protocols.codec import PROTOCOL_VERSION
from pvlm_protocols.limits import MAX_ERROR_CHARACTERS, MAX_NAME_CHARACTERS, MAX_TRACEBACK_CHARACTERS
from pvlm_protocols.messages import (
    Close,
    Closed,
    Dying,
    Failed,
    FromActor,
    Hello,
    Open,
    Opened,
    Ping,
    Pong,
    PrefillProgress,
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

log = structlog.get_logger()


class SessionClosed(Exception):
    """The session that is being worked for has been closed."""


class WorkAbandoned(Exception):
    """A message has come that makes the work in hand worthless."""


class ActorSession(ABC):
    """One session at one actor: its state, what it does with a message, and its next unit of work."""

    def __init__(self, actor: Actor, opening: Open) -> None:
        self.actor = actor
        if (settled := len(opening.committed)) >= (most := opening.sampling.max_tokens):
            raise ValueError(f"an answer of {most} tokens cannot continue after {settled}")
        self.id = opening.session
        self.opening = opening
        self.model: Session | None = None

    @abstractmethod
    def handle(self, message: SessionMessage) -> None:
        """Take a message in. Cheap: work is for `work`."""

    @abstractmethod
    def ready(self) -> bool:
        """Is there something to do?"""

    @abstractmethod
    def resumable(self) -> bool:
        """Whether `resume` can go on from the cache: the prompt is in it."""

    @abstractmethod
    def resume(self, message: Resume) -> None:
        """Go on from the committed tokens, with as much of the cache as agrees with them. The connection may have been
        lost in the middle of `work`.
        """

    def urgent(self) -> bool:
        """Ready, and it gains nothing by letting other sessions go first."""
        return True

    @abstractmethod
    def work(self) -> None:
        """Do one unit: open, prefill, a window or a part of it (draft), one pass (target)."""

    def outdates(self, message: SessionMessage) -> bool:
        """Does a message that has just come make the work in hand worthless?"""
        return False

    def patience_s(self) -> float | None:
        """Seconds until `ready` may change without a message (None: it will not)."""
        return None

    def open_model(self) -> Session:
        """Build the prompt, run the vision tower, and tell the coordinator."""
        opening = self.opening
        video = opening.video
        prompt = (
            Prompt(opening.question) if video is None else Prompt(opening.question, video.pixels, video.timestamps_s)
        )
        started = time.monotonic()
        # One more than the answer: a solo step may run over the last token.
        self.model = self.actor.backend.open(prompt, opening.sampling.max_tokens + 1)
        self.post(
            Opened(
                session=self.id,
                role=self.actor.role,
                prompt_tokens=self.model.prompt_tokens,
                video_tokens=self.model.video_tokens,
                open_ms=milliseconds_since(started),
                ended_s=time.monotonic(),
            )
        )
        return self.model

    def post(self, message: FromActor) -> None:
        self.actor.mailbox.post(message)

    def close(self) -> None:
        if self.model is not None:
            self.model.close()
            self.model = None


class Actor(ABC):
    """A model that serves sessions in turn. `run` blocks its thread until `Stop`, or until the engine is gone."""

    role: Role
    look_every_s = 0.001
    """How often it looks into its mailbox between the layers of a pass."""

    def __init__(
        self, backend: Backend, mailbox: Mailbox, info: ModelInfo | None = None, mark: Mark | None = None
    ) -> None:
        """``info``: what it says of its model (None: the backend's own)."""
        self.backend = backend
        self.info = info or backend.info
        self.mailbox = mailbox
        self.mark = mark or Mark()
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

    def expire(self) -> None:
        """Free the held sessions if no engine has resumed them in time."""
        if self._held and time.monotonic() >= self._held_until_s:
            self._release_held()

    def turn(self, timeout_s: float | None = None) -> None:
        """One turn of the loop: take in what has arrived, then do one unit of work for the session whose turn it is.

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
        if (session := self._next_ready()) is not None:
            self._turns.remove(session.id)
            self._turns.append(session.id)
            self._work(session)

    def _work(self, session: ActorSession) -> None:
        """One unit of a session, under its mark. The mark stays where the unit ends the actor; a lost connection is no
        fault of the unit.
        """
        self.mark.set(session.id)
        try:
            self._guarded(session.id, session.work)
        except ChannelClosed:
            self.mark.set(NOBODY)
            raise
        self.mark.set(NOBODY)

    def tick(self, session: ActorSession) -> None:
        """Called between the layers of a pass. Raises SessionClosed or WorkAbandoned if it is no longer wanted."""
        self.progress += 1
        if time.monotonic() - self._looked_s >= self.look_every_s:
            self.look(session)

    def undisturbed(self) -> bool:
        """No message is waiting and there is but one session: what it does in small steps need not end yet."""
        return not self._inbox and len(self._sessions) == 1

    def look(self, session: ActorSession) -> None:
        """Look into the mailbox in the middle of work for ``session``. Raises as `tick`."""
        self._looked_s = time.monotonic()
        self._read(0)
        for message in self._inbox:
            match message:
                case Stop():
                    raise SessionClosed
                case SessionMessage() if message.session == session.id:
                    if isinstance(message, Close):
                        raise SessionClosed
                    if session.outdates(message):
                        raise WorkAbandoned

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
        ready = [session for number in self._turns if (session := self._sessions[number]).ready()]
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
                self._guarded(message.session, lambda: self._open(message))
            case Close():
                self._close(message.session)
                self.mailbox.post(Closed(session=message.session, role=self.role))
            case Recall():
                self._recall(message.engine)
            case Resume():
                self._guarded(message.session, lambda: self._resume(message))
            case SessionMessage():
                # A message for a session that has failed or been closed is late, not wrong.
                if (session := self._sessions.get(message.session)) is not None:
                    self._guarded(session.id, lambda: session.handle(message))

    def _open(self, opening: Open) -> None:
        self._close(opening.session)
        self._sessions[opening.session] = self.new_session(opening)
        self._turns.append(opening.session)

    def _recall(self, engine: int) -> None:
        if engine != self._engine:
            self._release_held()
            self._engine = engine
        self._held_until_s = time.monotonic() + HOLD_S
        self.mailbox.post(Recalled(role=self.role, sessions=tuple(self._held)))

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

    def _guarded(self, session_id: int, action: Callable[[], None]) -> None:
        """A session that fails takes nobody with it."""
        self.progress += 1
        try:
            action()
        except WorkAbandoned:
            pass
        except SessionClosed:
            self._close(session_id)
        except ChannelClosed:
            raise
        except Exception as error:
            self._close(session_id)
            self.mailbox.post(Failed(session=session_id, role=self.role, **_told(error)))

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


def dying(role: Role, error: BaseException) -> Dying:
    """The message by which an actor tells why it goes down."""
    return Dying(role=role, **_told(error))


def _told(error: BaseException) -> dict[str, str]:
    """An error as text that travels: within its fields' limits, and without halves of surrogate pairs, which names of
    files may hold. Of a traceback the end stays.
    """
    texts = type(error).__name__, str(error), "".join(traceback.format_exception(error))
    name, message, trace = (text.encode(errors="backslashreplace").decode() for text in texts)
    return {
        "error": name[:MAX_NAME_CHARACTERS],
        "message": message[:MAX_ERROR_CHARACTERS],
        "traceback": trace[-MAX_TRACEBACK_CHARACTERS:],
    }


def milliseconds_since(started: float) -> float:
    """Milliseconds since ``started``, a reading of ``time.monotonic``."""
    return (time.monotonic() - started) * 1000
