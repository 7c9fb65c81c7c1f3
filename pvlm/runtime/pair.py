"""The pair of running actors, and the sessions that they share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Coroutine, Set
from itertools import count
from types import TracebackType
from typing import Any

import anyio

from pvlm.children import reached_limit
from pvlm.config import EngineConfig
from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import (
    Command,
    DraftBack,
    DraftGone,
    TargetBack,
    TargetGivenUp,
    TargetGone,
)
from pvlm.coordination.modes import State
from pvlm.errors import (
    ConfigError,
    EngineStateError,
    ModelError,
    ModelMismatch,
    RemoteTraceback,
    TargetLost,
    first_of,
)
from pvlm.log import log
from pvlm.plugins import Group, check_plugin
from pvlm.runtime.policies import WindowPolicies
from pvlm.runtime.restarts import Restarts
from pvlm.runtime.revival import Revival
from pvlm.runtime.session import LiveSession
from pvlm.runtime.starter import Starter
from pvlm.runtime.supervisor import ActorHealth, Supervisor
from pvlm.runtime.tokenizers import TokenizerComparison
from pvlm.telemetry.recorder import Recorder
from pvlm.telemetry.reporter import AnswerReport, Reporter
from pvlm.workers.backends import find_backend
from pvlm.workers.placement import worker_spec
from pvlm_protocols.backend import ModelInfo, Processor, Role
from pvlm_protocols.limits import MAX_PINNED
from pvlm_protocols.messages import Failed, FromActor, Pin, SessionMessage

OnLoading = Callable[[Role, float], None]

LOSSES = 2
"""How often an actor may be lost in its work for one session. Then the session fails, and is not opened again."""


class Pair:
    """The actors of one open engine: target and draft, or the target alone. An async context manager.

    Each command is carried out in the call that received the event, and sending never waits. So messages travel in the
    order of the coordinator's commands.
    """

    def __init__(self, config: EngineConfig, on_loading: OnLoading, reporter: Reporter) -> None:
        self.config = config
        self._reporter = reporter
        self.policies = WindowPolicies()
        self._tasks = anyio.create_task_group()
        self._roles: tuple[Role, ...] = ("target",) if config.resolved_method() == "ar" else ("target", "draft")
        self._actors = {role: self._supervisor(role, on_loading) for role in self._roles}
        self._sessions: dict[int, LiveSession] = {}
        self._suspects: dict[Role, LiveSession] = {}
        """In whose work an actor that is away was lost, if that was for the first time."""
        self._revivals = {"target": Revival("target", TargetBack), "draft": Revival("draft", DraftBack)}
        self._pinned = Counter[bytes]()
        """Digests of videos, and how many want their prefixes to stay."""
        self._closed = False
        self._numbers = count(1)

    async def __aenter__(self) -> Pair:
        await self._tasks.__aenter__()
        try:
            await self._check_plugins()
            self.target_processor = await self._processor("target")
            self.draft_processor = await self._processor("draft") if "draft" in self._roles else None
            await anyio.to_thread.run_sync(self._check_tokenizers)
            async with anyio.create_task_group() as launching:
                for actor in self._actors.values():
                    launching.start_soon(actor.open)
            if ignored := self.target_processor.ignored_generation_options:
                log.warning("generation_options_ignored", options=list(ignored), model=self._model("target"))
        except BaseException as error:
            await self._stop()
            raise first_of(error) from first_of(error).__cause__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._closed = True
        for session in list(self._sessions.values()):
            session.handle(TargetGivenUp("the engine was closed"))
            for role in self._roles:
                session.freed_by(role)
        await self._stop()
        return None

    async def _stop(self) -> None:
        """Stop the tasks first: one of them may be restarting an actor."""
        self._tasks.cancel_scope.cancel()
        try:
            # Without the caller's error: the task group would wrap it in an exception group.
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as stopping:
                    for actor in self._actors.values():
                        stopping.start_soon(actor.aclose)

    # ---- sessions -------------------------------------------------------------------------------------------------

    @property
    def draft_away(self) -> str:
        """Why no draft is running; empty if one is running, or the engine has none."""
        draft = self._actors.get("draft")
        return "" if draft is None or draft.running else draft.loss.reason

    @property
    def models(self) -> dict[Role, ModelInfo]:
        """The models of running actors, by role."""
        return {role: actor.info for role, actor in self._actors.items() if actor.running and actor.info is not None}

    @property
    def processes(self) -> dict[Role, int]:
        """The process ids of actors on this host, by role."""
        return {role: actor.pid for role, actor in self._actors.items() if actor.pid is not None}

    def info(self, role: Role) -> ModelInfo | None:
        """The model of an actor, also while the actor is away. None: it has never been started, as a draft may be."""
        return self._actors[role].info

    async def health(self, timeout_s: float) -> dict[Role, ActorHealth]:
        """Ask every actor for its health. Waits at most ``timeout_s``."""
        found: dict[Role, ActorHealth] = {}

        async def ask(actor: Supervisor) -> None:
            found[actor.role] = await actor.health(timeout_s)

        async with anyio.create_task_group() as asking:
            for actor in self._actors.values():
                asking.start_soon(ask, actor)
        return found

    def next_session(self) -> int:
        return next(self._numbers)

    def open(
        self,
        coordinator: Coordinator,
        on_command: Callable[[Command], None],
        report: AnswerReport | None = None,
        recorder: Recorder | None = None,
    ) -> LiveSession:
        """Start a session. Call `target_there` first.

        ``on_command`` receives each command that is not for an actor, at once. ``recorder`` receives every event and
        command. ``report`` receives every event after its commands were carried out.
        """
        session = LiveSession(
            self._actors, coordinator, on_command, self._tell_others, self._reporter, report, recorder
        )
        self._sessions[coordinator.session] = session
        session.execute(coordinator.start())
        return session

    async def close(self, session: LiveSession) -> None:
        """Wait until both actors have freed the session: as long as it takes, for the work in hand may be long."""
        try:
            await session.freed()
        finally:
            self._sessions.pop(session.id, None)

    def pin(self, videos: Set[bytes]) -> None:
        """Keep the prefixes of these videos, by their digests, in both actors; until `unpin`."""
        self._pinned.update(videos)
        self._tell_pinned(*self._roles)

    def unpin(self, videos: Set[bytes]) -> None:
        """See `pin`."""
        self._pinned -= Counter(videos)
        self._tell_pinned(*self._roles)

    def _tell_pinned(self, *roles: Role) -> None:
        pin = Pin(videos=tuple(self._pinned)[-MAX_PINNED:])
        for role in roles:
            self._actors[role].post(pin)

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run work of an answer in the task group. ``work`` must not raise, for it would end the engine."""
        self._tasks.start_soon(work)

    def _tell_others(self) -> None:
        """Tell each session how many decode in its passes or in turn with it, and whether one prefills."""
        there = [session for session in self._sessions.values() if not session.done.is_set()]
        prefilling = any(session.prefilling for session in there)
        decoding = [session for session in there if "target" in session.holders - session.prefilling]
        sharing = sum("target" not in session.suspected for session in decoding)
        info = self.info("target")
        for session in there:
            shared = info is not None and info.shares_passes and "target" not in session.suspected
            count = sharing if shared else len(decoding)
            session.coordinator.measurements.decoding(max(1, count), shared=shared, prefilling=prefilling)

    async def target_there(self) -> None:
        """Wait while a lost target is being restarted. Raises TargetLost, EngineStateError."""
        if not self._closed and await (target := self._actors["target"]).settled():
            return
        if self._closed:
            raise EngineStateError("this engine was closed meanwhile")
        cause = RemoteTraceback(target.loss.traceback) if target.loss.traceback else None
        pause_s = target.restarts.next_try_s
        again = "" if pause_s is None else f"; it is started again in {math.ceil(pause_s)} s"
        raise TargetLost(f"the target '{self._model('target')}' is gone: {target.loss.reason}{again}") from cause

    # ---- actors ---------------------------------------------------------------------------------------------------

    def _model(self, role: Role) -> str:
        model = self.config.checkpoint(role)
        assert model is not None
        return model

    async def _check_plugins(self) -> None:
        """Raise ConfigError or ModelError for a video reader or a pruner that answers could not use."""
        named: list[tuple[Group, str]] = [
            ("pvlm.video_readers", self.config.video_reader),
            ("pvlm.pruners", self.config.prune),
        ]
        for group, name in named:
            if name != "auto":
                await anyio.to_thread.run_sync(check_plugin, group, name)

    async def _processor(self, role: Role) -> Processor:
        try:
            backend = find_backend(self.config.backend_of(role))
            return await anyio.to_thread.run_sync(
                lambda: backend.processor(self._model(role), trust_remote_code=self.config.trust_remote_code)
            )
        except ConfigError:
            raise
        except Exception as error:
            raise ModelError(f"cannot load the {role} '{self._model(role)}': {reached_limit(error)}") from error

    def _check_tokenizers(self) -> None:
        """Raise ModelMismatch if an id stands for different text in target and draft."""
        target, draft = self.target_processor, self.draft_processor
        if draft is None:
            return
        compared = TokenizerComparison(target, draft)
        if compared.difference:
            raise ModelMismatch(
                f"the tokenizers of target '{self._model('target')}' and draft '{self._model('draft')}' differ "
                f"{compared.difference}. A draft must share the target's tokenizer."
            )
        if compared.tokens:
            log.info("added_tokens_differ", tokens=compared.tokens)

    def _supervisor(self, role: Role, on_loading: OnLoading) -> Supervisor:
        here = [other for other in self._roles if self.config.listen(other) is None]
        spec = worker_spec(self.config, role, self._model(role), self.config.backend_of(role), alone=here == [role])
        starter = Starter(role, self.config, spec, on_loading, self._check_worker, self._reporter)
        allowed = self.config.target_restarts if role == "target" else self.config.draft_restarts
        restarts = Restarts(allowed, self.config.restart_window_s)
        return Supervisor(starter, restarts, self._tasks, self, self._reporter)

    def _check_worker(self, role: Role, info: ModelInfo) -> None:
        """Raise ModelMismatch if a worker on another host has loaded a different model from the one known here."""
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

    # ---- reports of supervisors -----------------------------------------------------------------------------------

    def heard(self, role: Role, message: FromActor) -> None:
        if isinstance(message, SessionMessage) and (session := self._sessions.get(message.session)) is not None:
            session.receive(role, message)
            if self._revivals[role].waiting:
                self._revivals[role].proceed()

    def lost(self, role: Role, reason: str, suspects: tuple[int, ...]) -> int:
        self._revivals[role].end()
        self._suspects.pop(role, None)
        found = 0
        for session in list(self._sessions.values()):
            interrupted = role in session.holders and not session.coordinator.done
            if interrupted:
                self._reporter.fault("session_interrupted", role=role, session=session.id, reason=reason)
            session.freed_by(role)
            if interrupted and session.id in suspects and (losses := self._blame(session, role, reason, suspects)):
                found = losses
            else:
                session.handle(DraftGone(reason) if role == "draft" else TargetGone())
        return found

    def blame(self, role: Role, reason: str, suspects: tuple[int, ...]) -> int:
        sessions = [session for session in self._sessions.values() if session.id in suspects]
        return max((self._blame(session, role, reason, suspects) for session in sessions), default=0)

    def _blame(self, session: LiveSession, role: Role, reason: str, suspects: tuple[int, ...]) -> int:
        """Of several in one pass any may be the cause: from then on they have passes of their own."""
        if session.coordinator.done:
            return 0
        if len(suspects) > 1:
            session.suspected.add(role)
            return 0
        session.losses[role] += 1
        if session.losses[role] < LOSSES:
            self._suspects[role] = session
            return 0
        what = f"the {role} was lost {LOSSES} times in the work for this answer: {reason}"
        session.receive(role, Failed(session=session.id, role=role, error="WorkerLost", message=what, traceback=""))
        return LOSSES + (role in session.suspected)

    def back(self, role: Role, kept: Set[int]) -> None:
        if self._pinned:
            self._tell_pinned(role)
        suspect = self._suspects.pop(role, None)
        if suspect is not None and suspect.coordinator.state is State.FAILED:  # its caller has left
            self._actors[role].restarts.refund()
        self._revivals[role].begin(self._sessions.values(), kept)

    def freeing(self, role: Role) -> bool:
        return any(role in session.holders and session.done.is_set() for session in self._sessions.values())

    def given_up(self, role: Role) -> None:
        self._suspects.pop(role, None)
        if role == "target":
            target = self._actors["target"]
            for session in list(self._sessions.values()):
                session.handle(TargetGivenUp(target.loss.reason, target.loss.traceback))
