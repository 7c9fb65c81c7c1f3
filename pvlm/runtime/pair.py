"""Running actors, and the sessions over them: what stands between `Engine` and the coordinators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, zip_longest
from types import TracebackType

import anyio
import structlog

from pvlm.config import EngineConfig, Method, WindowSetting
from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import (
    Command,
    DraftBack,
    DraftGone,
    TargetBack,
    TargetGivenUp,
    TargetGone,
)
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
from pvlm.runtime.session import LiveSession
from pvlm.runtime.supervisor import ActorHealth, Supervisor
from pvlm.speculation.windows import AutoWindow, FixedWindow, WindowPolicy
from pvlm.telemetry.metrics import REQUESTS_RUNNING, REQUESTS_WAITING
from pvlm.telemetry.recorder import Recorder
from pvlm.telemetry.reporter import AnswerReport, Reporter
from pvlm.workers.placement import worker_spec
from pvlm_protocols.backend import Backend, ModelInfo, Processor, Role
from pvlm_protocols.messages import FromActor, Pruning, Schedule, SessionMessage

log = structlog.get_logger()

OnLoading = Callable[[Role, float], None]
POLICIES = 64
"""Kinds of answers whose window policies are kept."""


class Runtime:
    """The actors of one engine while it is open. An async context manager; the task group belongs to it.

    Commands are carried out in the call that received the event, and sending never waits: so the order of a
    coordinator's commands is the order on the wire.
    """

    def __init__(self, config: EngineConfig, on_loading: OnLoading, reporter: Reporter) -> None:
        self.config = config
        self._reporter = reporter
        self.method = config.resolved_method()
        self._tasks = anyio.create_task_group()
        self._actors = {role: self._supervisor(role, on_loading) for role in self._roles()}
        self._sessions: dict[int, LiveSession] = {}
        self._turns = anyio.Semaphore(config.max_sessions)
        self._closed = False
        self._numbers = count(1)
        self._policies: dict[tuple[Schedule, str, float], WindowPolicy] = {}

    async def __aenter__(self) -> Runtime:
        await self._tasks.__aenter__()
        try:
            self.target_processor = await self._processor("target")
            self.draft_processor = await self._processor("draft") if self.method != "ar" else None
            self._check_tokenizers()
            async with anyio.create_task_group() as launching:
                for actor in self._actors.values():
                    launching.start_soon(actor.start)
            if ignored := self.target_processor.ignored_generation_options:
                log.warning("generation_options_ignored", options=list(ignored), model=self._model("target"))
        except BaseException as error:
            await self._stop()
            raise _first(error) from _first(error).__cause__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._closed = True
        for _ in range(self._turns.statistics().tasks_waiting):
            self._turns.release()
        for session in list(self._sessions.values()):
            session.handle(TargetGivenUp("the engine was closed"))
            for role in self._roles():
                session.freed_by(role)
        await self._stop()
        return None

    async def _stop(self) -> None:
        """First the tasks, for one of them may be starting an actor again."""
        self._tasks.cancel_scope.cancel()
        try:
            # The caller's error goes its own way: given to the task group, it would come back in an exception group.
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as stopping:
                    for actor in self._actors.values():
                        stopping.start_soon(actor.aclose)

    # ---- sessions -------------------------------------------------------------------------------------------------

    @property
    def draft_away(self) -> str:
        """Why there is no draft just now; empty if there is one, or none was asked for."""
        draft = self._actors.get("draft")
        return "" if draft is None or draft.running else draft.reason

    @property
    def models(self) -> dict[Role, ModelInfo]:
        """Those that are there, by role."""
        return {role: actor.info for role, actor in self._actors.items() if actor.running and actor.info is not None}

    @property
    def processes(self) -> dict[Role, int]:
        """Those on this host."""
        return {role: actor.pid for role, actor in self._actors.items() if actor.pid is not None}

    def vocab_size(self, role: Role) -> int:
        """Width of a logits row, also while the actor is away."""
        info = self._actors[role].info
        assert info is not None  # both have been started once
        return info.vocab_size

    async def health(self, timeout_s: float) -> dict[Role, ActorHealth]:
        """Ask every actor, at most ``timeout_s``."""
        found: dict[Role, ActorHealth] = {}

        async def ask(actor: Supervisor) -> None:
            found[actor.role] = await actor.health(timeout_s)

        async with anyio.create_task_group() as asking:
            for actor in self._actors.values():
                asking.start_soon(ask, actor)
        return found

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
        async with AsyncExitStack() as holding:
            with self._reporter.during(REQUESTS_WAITING):
                await holding.enter_async_context(self._turns)
            if self._closed:
                raise EngineStateError("this engine was closed while the answer waited for its turn")
            with self._reporter.during(REQUESTS_RUNNING):
                yield

    def next_session(self) -> int:
        return next(self._numbers)

    def schedule(
        self, method: Method, *, parallel_prefill: bool | None = None, parallel_decode: bool | None = None
    ) -> Schedule:
        """How draft and target share the work under a method; None: as the engine was set up."""
        if parallel_prefill is None:
            parallel_prefill = self.config.parallel_prefill
        if parallel_decode is None:
            parallel_decode = self.config.parallel_decode
        match method:
            case "ar":
                return Schedule(mode="alone")
            case "sd":
                return Schedule(mode="turns", overlap_prefill=False)
            case "parallel":
                return Schedule(mode="together" if parallel_decode else "turns", overlap_prefill=parallel_prefill)

    def window_policy(self, schedule: Schedule, pruning: Pruning, window: WindowSetting) -> WindowPolicy:
        """What chooses the windows. One that learns is kept, for what it has learned holds for the next answer with
        the same schedule and the same view of the video; of `POLICIES` at most, those that were used last.
        """
        if window != "auto":
            return FixedWindow(window)
        alike = schedule, pruning.method, pruning.ratio
        if (policy := self._policies.pop(alike, None)) is None:
            policy = AutoWindow(vanilla=schedule.mode == "turns")
        self._policies[alike] = policy  # as the last one
        if len(self._policies) > POLICIES:
            del self._policies[next(iter(self._policies))]
        return policy

    def open(
        self,
        coordinator: Coordinator,
        on_command: Callable[[Command], None],
        report: AnswerReport | None = None,
        recorder: Recorder | None = None,
    ) -> LiveSession:
        """Start a session; `target_there` comes before. ``on_command`` gets what is not for an actor, at once;
        ``recorder`` every event and command; ``report`` the commands of every event, when they are out.
        """
        session = LiveSession(self._actors, coordinator, on_command, self._reporter, report, recorder)
        self._sessions[coordinator.session] = session
        self._tell_shared()
        session.execute(coordinator.start())
        return session

    async def close(self, session: LiveSession) -> None:
        """Return when both actors have freed the session. One that does not within `close_timeout_s` is replaced."""
        timeout_s = self.config.close_timeout_s
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(timeout_s):
                await session.freed()
            while session.holders:
                role = next(iter(session.holders))
                self._reporter.fault("session_not_freed", role=role, session=session.id, within_s=timeout_s)
                await self._actors[role].replace(f"it did not free a session within {timeout_s:g} s (close_timeout_s)")
                session.freed_by(role)
        self._sessions.pop(session.id, None)
        self._tell_shared()

    def _tell_shared(self) -> None:
        for session in self._sessions.values():
            session.coordinator.measurements.shared = len(self._sessions) > 1

    async def target_there(self) -> None:
        """Wait while a lost target is being started again. Raises TargetLost, EngineStateError."""
        if not self._closed and await (target := self._actors["target"]).settled():
            return
        if self._closed:
            raise EngineStateError("this engine was closed meanwhile")
        cause = RemoteTraceback(target.traceback) if target.traceback else None
        raise TargetLost(f"the target '{self._model('target')}' is gone: {target.reason}") from cause

    # ---- actors ---------------------------------------------------------------------------------------------------

    def _roles(self) -> Iterable[Role]:
        return ("target",) if self.method == "ar" else ("target", "draft")

    def _model(self, role: Role) -> str:
        model = self.config.checkpoint(role)
        assert model is not None
        return model

    async def _processor(self, role: Role) -> Processor:
        try:
            backend: type[Backend] = load_plugin("pvlm.backends", self.config.backend_of(role))
            return await anyio.to_thread.run_sync(
                lambda: backend.processor(self._model(role), trust_remote_code=self.config.trust_remote_code)
            )
        except ConfigError:
            raise
        except Exception as error:
            raise ModelError(f"cannot load the {role} '{self._model(role)}': {error}") from error

    def _check_tokenizers(self) -> None:
        """Raise ModelMismatch where the same ids stand for other text in the draft."""
        target, draft = self.target_processor, self.draft_processor
        if draft is None:
            return
        differing = _differing_tokens(target.tokens_as_text(), draft.tokens_as_text())
        shown = "; ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        if target.tokenizer_fingerprint != draft.tokenizer_fingerprint:
            raise ModelMismatch(
                f"the tokenizers of target '{self._model('target')}' and draft '{self._model('draft')}' differ "
                + (f"(id: target / draft): {shown}." if shown else "in their rules for splitting text.")
                + " A draft must share the target's tokenizer."
            )
        if differing:
            log.info("added_tokens_differ", tokens=shown)

    def _supervisor(self, role: Role, on_loading: OnLoading) -> Supervisor:
        here = [other for other in self._roles() if self.config.listen(other) is None]
        spec = worker_spec(self.config, role, self._model(role), self.config.backend_of(role), alone=here == [role])
        return Supervisor(role, self.config, spec, self._tasks, self, on_loading, self._check_worker, self._reporter)

    def _check_worker(self, role: Role, info: ModelInfo) -> None:
        """Raise ModelMismatch where a worker on another host has not loaded the model that is known here."""
        processor = self.target_processor if role == "target" else self.draft_processor
        assert processor is not None
        where = f"the {role} worker on the other host has loaded '{info.name}'"
        if info.tokenizer_fingerprint != processor.tokenizer_fingerprint:
            raise ModelMismatch(f"{where}, whose tokenizer is not that of '{self._model(role)}' here")
        if set(info.end_token_ids) != set(processor.end_token_ids):
            raise ModelMismatch(
                f"{where}, whose end tokens {info.end_token_ids} are not those of '{self._model(role)}' here, "
                f"{processor.end_token_ids}"
            )
        if (first := self._actors[role].info) is not None:
            for name in ("family", "vocab_size", "layers", "hidden_size", "parameters"):
                if (now := getattr(info, name)) != (before := getattr(first, name)):
                    raise ModelMismatch(
                        f"{where}, which is another model than before: {name} {now} instead of {before}"
                    )

    # ---- what supervisors tell ------------------------------------------------------------------------------------

    def heard(self, role: Role, message: FromActor) -> None:
        if isinstance(message, SessionMessage) and (session := self._sessions.get(message.session)) is not None:
            session.receive(role, message)

    def lost(self, role: Role, reason: str) -> None:
        for session in list(self._sessions.values()):
            if role in session.holders and not session.coordinator.done:
                self._reporter.fault("session_interrupted", role=role, session=session.id, reason=reason)
            session.handle(DraftGone(reason) if role == "draft" else TargetGone())
            session.freed_by(role)

    def back(self, role: Role) -> None:
        for session in list(self._sessions.values()):
            session.handle(DraftBack() if role == "draft" else TargetBack())
            if role in session.holders:
                log.info("session_resumed", role=role, session=session.id)

    def unheard(self, role: Role) -> None:
        """The engine goes down with the scope that it was opened in, and its workers with it: what they hold is freed
        then, and nobody would hear of it earlier.
        """
        for session in list(self._sessions.values()):
            session.freed_by(role)

    def given_up(self, role: Role) -> None:
        if role == "target":
            target = self._actors["target"]
            for session in list(self._sessions.values()):
                session.handle(TargetGivenUp(target.reason, target.traceback))


def _differing_tokens(target: Sequence[str], draft: Sequence[str]) -> list[str]:
    """``id: target / draft`` for every id whose token differs; one that a side does not have is empty."""
    pairs = enumerate(zip_longest(target, draft, fillvalue=""))
    return [f"{index}: {ours!r} / {theirs!r}" for index, (ours, theirs) in pairs if ours != theirs]


def _first(error: BaseException) -> BaseException:
    """Out of a group, the first error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
