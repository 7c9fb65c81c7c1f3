"""Running actors, and the sessions over them: what stands between `Engine` and the coordinators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count
from types import TracebackType

import anyio
import anyio.abc
import structlog

from pvlm.commands import Command, DraftGone, Event, TargetGone, ToDraftActor, ToTargetActor
from pvlm.config import BUNDLED, EngineConfig, Method, WindowSetting, bundled
from pvlm.coordinator import Coordinator
from pvlm.errors import (
    ConfigError,
    EngineBusy,
    EngineStateError,
    ModelError,
    ModelMismatch,
    RemoteTraceback,
    TargetLost,
)
from pvlm.plugins import load_plugin
from pvlm.speculation.windows import AutoWindow, FixedWindow, WindowPolicy
from pvlm.transports import ChannelClosed, ChannelFull
from pvlm.workers.launch import RunningActor, launch
from pvlm.workers.placement import worker_spec
from pvlm_protocols.backend import Backend, ModelInfo, Processor, Role
from pvlm_protocols.messages import Closed, Dying, Failed, FromActor, Schedule, SessionMessage, ToActor

RESTART_PAUSE_S = 0.5
"""Before a lost draft is started again; doubled each time."""
CLOSE_TIMEOUT_S = 2.0

log = structlog.get_logger()

OnLoading = Callable[[Role, float], None]


class Runtime:
    """The actors of one engine while it is open. An async context manager; the task group belongs to it.

    Commands are carried out in the call that received the event, and sending never waits: so the order of a
    coordinator's commands is the order on the wire.
    """

    def __init__(self, config: EngineConfig, on_loading: OnLoading) -> None:
        self.config = config
        self.method = config.resolved_method()
        self._on_loading = on_loading
        self._tasks = anyio.create_task_group()
        self._actors: dict[Role, RunningActor] = {}
        self._sessions: dict[int, LiveSession] = {}
        self._turns = anyio.Semaphore(config.max_sessions)
        self._closed = False
        self._numbers = count(1)
        self._policies: dict[Method, WindowPolicy] = {}
        self._last_words: dict[Role, Dying] = {}
        self._lost_reasons: dict[Role, str] = {}
        self._restarts = 0

    async def __aenter__(self) -> Runtime:
        await self._tasks.__aenter__()
        try:
            self.target_processor = await self._processor("target")
            self.draft_processor = await self._processor("draft") if self.method != "ar" else None
            self._check_tokenizers()
            async with anyio.create_task_group() as launching:
                for role in self._roles():
                    launching.start_soon(self._launch, role)
            if ignored := self.target_processor.ignored_generation_options:
                log.warning("generation_options_ignored", options=list(ignored), model=self._model("target"))
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._stop_actors()
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
            raise _first(error) from _first(error).__cause__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._closed = True
        for _ in range(self._turns.statistics().tasks_waiting):
            self._turns.release()
        for session in list(self._sessions.values()):
            for role in self._roles():
                session.lost(role, "the engine was closed")
        with anyio.CancelScope(shield=True):
            await self._stop_actors()
        self._tasks.cancel_scope.cancel()
        # The caller's error goes its own way: given to the task group, it would come back in an exception group.
        await self._tasks.__aexit__(None, None, None)
        return None

    # ---- sessions -------------------------------------------------------------------------------------------------

    @property
    def has_draft(self) -> bool:
        return "draft" in self._actors

    @property
    def draft_away(self) -> str:
        """Why there is no draft just now; empty if there is one, or none was asked for."""
        return "" if self.has_draft else self._lost_reasons.get("draft", "")

    @property
    def models(self) -> dict[Role, ModelInfo]:
        return {role: actor.info for role, actor in self._actors.items()}

    def vocab_size(self, role: Role) -> int:
        """Width of a logits row. Raises KeyError if the actor is not there."""
        return self._actors[role].info.vocab_size

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A place among the answers that are written at once; first come, first served.

        Raises EngineBusy at once if too many wait, EngineStateError if the engine is closed meanwhile.
        """
        config = self.config
        waiting = self._turns.statistics().tasks_waiting
        if self._turns.value == 0 and waiting >= config.max_waiting:
            raise EngineBusy(
                f"{config.max_sessions} answers are being written (max_sessions) and {waiting} wait (max_waiting): "
                "try again later, or allow more"
            )
        async with self._turns:
            if self._closed:
                raise EngineStateError("this engine was closed while the answer waited for its turn")
            yield

    def next_session(self) -> int:
        return next(self._numbers)

    def schedule(self, method: Method) -> Schedule:
        """How draft and target share the work under a method."""
        match method:
            case "ar":
                return Schedule(alone=True)
            case "sd":
                return Schedule(bonus=True, lead=1, overlap_prefill=False)
            case "parallel":
                return Schedule(
                    bonus=not self.config.parallel_decode,
                    lead=2 if self.config.parallel_decode else 1,
                    overlap_prefill=self.config.parallel_prefill,
                )

    def window_policy(self, method: Method, window: WindowSetting) -> WindowPolicy:
        """What chooses the windows under a method. One that learns is kept, for what it has learned holds for the
        next answer.
        """
        if window != "auto":
            return FixedWindow(window)
        return self._policies.setdefault(method, AutoWindow(vanilla=self.schedule(method).bonus))

    def open(self, coordinator: Coordinator, on_command: Callable[[Command], None]) -> LiveSession:
        """Start a session. ``on_command`` gets what is not for an actor, at once. Raises TargetLost."""
        self.check_target()
        session = LiveSession(self, coordinator, on_command)
        self._sessions[coordinator.session] = session
        self._tell_shared()
        session.execute(coordinator.start())
        return session

    async def close(self, session: LiveSession) -> None:
        """Wait until both actors have freed the session, at most `CLOSE_TIMEOUT_S`."""
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True) as scope:
            await session.freed.wait()
        if scope.cancelled_caught:
            log.warning("session_not_freed", session=session.id, within_s=CLOSE_TIMEOUT_S)
        self._sessions.pop(session.id, None)
        self._tell_shared()

    def _tell_shared(self) -> None:
        for session in self._sessions.values():
            session.coordinator.shared = len(self._sessions) > 1

    def check_target(self) -> None:
        """Raises TargetLost if there is no target."""
        if "target" in self._actors:
            return
        last = self._last_words.get("target")
        cause = RemoteTraceback(last.traceback) if last else None
        raise TargetLost(
            f"the target '{self._model('target')}' is gone: {self._lost_reasons.get('target', '')}"
        ) from cause

    def send(self, role: Role, message: ToActor) -> None:
        """Post to an actor. One that is gone or does not read is noticed elsewhere (`_watch`) or lost here."""
        actor = self._actors.get(role)
        if actor is None:
            return
        try:
            actor.channel.post(message)
        except ChannelClosed:
            pass
        except ChannelFull:
            self._lost(role, "it does not read its mailbox")

    # ---- actors ---------------------------------------------------------------------------------------------------

    def _roles(self) -> Iterable[Role]:
        return ("target",) if self.method == "ar" else ("target", "draft")

    def _model(self, role: Role) -> str:
        model = self.config.target if role == "target" else self.config.draft_model
        assert model is not None
        return bundled(role) if model == BUNDLED else model

    def _backend(self, role: Role) -> str:
        return self.config.backend if role == "target" else self.config.draft_backend or self.config.backend

    async def _processor(self, role: Role) -> Processor:
        try:
            backend: type[Backend] = load_plugin("pvlm.backends", self._backend(role))
            return await anyio.to_thread.run_sync(
                lambda: backend.processor(self._model(role), trust_remote_code=self.config.trust_remote_code)
            )
        except ConfigError:
            raise
        except Exception as error:
            raise ModelError(f"cannot load the {role} '{self._model(role)}': {error}") from error

    def _check_tokenizers(self) -> None:
        target, draft = self.target_processor, self.draft_processor
        if draft is None or target.tokenizer_fingerprint == draft.tokenizer_fingerprint:
            return
        ours, theirs = target.tokens_as_text(), draft.tokens_as_text()
        differing = [
            f"{index}: {a!r} / {b!r}" for index, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b
        ][:5]
        if not differing:
            differing = [f"{len(ours)} tokens / {len(theirs)} tokens, or other rules for splitting text"]
        raise ModelMismatch(
            f"the tokenizers of target '{self._model('target')}' and draft '{self._model('draft')}' differ "
            f"(id: target / draft): {'; '.join(differing)}. A draft must share the target's tokenizer."
        )

    async def _launch(self, role: Role) -> None:
        spec = worker_spec(self.config, role, self._model(role), self._backend(role), alone=self.method == "ar")
        actor = await launch(role, self.config, spec, self._on_loading)
        self._actors[role] = actor
        self._tasks.start_soon(self._receive, actor)
        self._tasks.start_soon(self._watch, actor)

    async def _receive(self, actor: RunningActor) -> None:
        try:
            while True:
                self._dispatch(actor, await actor.channel.receive())
        except ChannelClosed:
            pass

    def _dispatch(self, actor: RunningActor, message: FromActor) -> None:
        match message:
            case SessionMessage():
                if (session := self._sessions.get(message.session)) is not None:
                    session.receive(actor.role, message)
            case Dying():
                self._last_words[actor.role] = message
                self._lost(actor.role, f"{message.error}: {message.message}")

    async def _watch(self, actor: RunningActor) -> None:
        reason = await actor.host.wait()
        self._lost(actor.role, reason, actor)

    def _lost(self, role: Role, reason: str, actor: RunningActor | None = None) -> None:
        """An actor is gone: every session goes on without it, or fails."""
        current = self._actors.get(role)
        if current is None or (actor is not None and actor is not current):
            return
        del self._actors[role]
        log.warning("actor_lost", role=role, reason=reason)
        self._tasks.start_soon(current.aclose)
        self._lost_reasons[role] = reason
        for session in list(self._sessions.values()):
            session.lost(role, reason)
        if role == "draft":
            self._tasks.start_soon(self._restart_draft)

    async def _restart_draft(self) -> None:
        """Start the draft again for the answers to come."""
        pause = RESTART_PAUSE_S
        while self._restarts < self.config.draft_restarts:
            self._restarts += 1
            await anyio.sleep(pause)
            try:
                await self._launch("draft")
            except ModelError as error:
                log.warning("draft_restart_failed", attempt=self._restarts, error=str(error))
                pause *= 2
            else:
                log.info("draft_restarted", attempt=self._restarts)
                return
        log.error("draft_given_up", restarts=self._restarts)

    async def _stop_actors(self) -> None:
        actors, self._actors = list(self._actors.values()), {}
        async with anyio.create_task_group() as tasks:
            for actor in actors:
                tasks.start_soon(actor.aclose)


class LiveSession:
    """One coordinator at work."""

    def __init__(self, runtime: Runtime, coordinator: Coordinator, on_command: Callable[[Command], None]) -> None:
        self.id = coordinator.session
        self.coordinator = coordinator
        self.freed = anyio.Event()
        self._runtime = runtime
        self._on_command = on_command
        self._holders: set[Role] = {"target"}
        if coordinator.with_draft:
            self._holders.add("draft")

    def receive(self, role: Role, message: FromActor) -> None:
        self.handle(message)
        if isinstance(message, Closed | Failed):
            self._free(role)

    def handle(self, event: Event) -> None:
        self.execute(self.coordinator.handle(event))

    def execute(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case ToTargetActor(message):
                    self._runtime.send("target", message)
                case ToDraftActor(message):
                    self._runtime.send("draft", message)
                case _:
                    self._on_command(command)

    def lost(self, role: Role, reason: str) -> None:
        self.handle(DraftGone(reason) if role == "draft" else TargetGone(reason))
        self._free(role)

    def _free(self, role: Role) -> None:
        self._holders.discard(role)
        if not self._holders:
            self.freed.set()


def _first(error: BaseException) -> BaseException:
    """Out of a group, the first error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
