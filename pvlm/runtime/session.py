"""One coordinator at work: its events come from the actors, and its commands go to them and to the answer."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping

import anyio

from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import Command, Event, Judged, ToDraftActor, ToTargetActor, WindowsPrepared, WindowTaken
from pvlm.runtime.supervisor import Supervisor
from pvlm.telemetry.metrics import PREFIX_HITS, PREFIX_QUERIES
from pvlm.telemetry.recorder import Recorder
from pvlm.telemetry.reporter import AnswerReport, Reporter
from pvlm_protocols.backend import Role
from pvlm_protocols.messages import (
    Closed,
    Failed,
    FromActor,
    NeedVideo,
    Open,
    Opened,
    PrefillDone,
    ToActor,
    VideoContent,
)


class LiveSession:
    """One coordinator at work. ``holders``: the actors that hold a cache for its session; ``prefilling``: those that
    have not filled it yet. ``losses``: how often an actor was lost in its work for this session alone; ``suspected``:
    those that were lost in a pass that it shared. They are to give it passes of its own, until it is known who did it.
    ``done``: set once the answer is complete, has failed, or was left; after that only `freed` remains. ``on_change``:
    called where ``holders``, ``prefilling`` or ``done`` has changed.
    """

    def __init__(
        self,
        actors: Mapping[Role, Supervisor],
        coordinator: Coordinator,
        on_command: Callable[[Command], None],
        on_change: Callable[[], None],
        reporter: Reporter,
        report: AnswerReport | None,
        recorder: Recorder | None,
    ) -> None:
        self.id = coordinator.session
        self.coordinator = coordinator
        self.holders: set[Role] = set()
        self.prefilling: set[Role] = set()
        self.losses: Counter[Role] = Counter()
        self.suspected: set[Role] = set()
        self.done = anyio.Event()
        self._actors = actors
        self._on_command = on_command
        self._on_change = on_change
        self._recorder = recorder
        self._reporter = reporter
        self._report = report
        self._freed = anyio.Event()
        self._events: deque[Event] = deque()
        self._handling = False

    def receive(self, role: Role, message: FromActor) -> None:
        self.handle(message)
        if isinstance(message, Failed):
            what = f"{message.error}: {message.message}"
            self._reporter.fault("session_failed", role=role, session=self.id, reason=what)
        if isinstance(message, PrefillDone):
            self.prefilling.discard(role)
            self._on_change()
        if isinstance(message, Opened):
            self._reporter.add(PREFIX_QUERIES, message.prompt_tokens, role=role)
            self._reporter.add(PREFIX_HITS, message.cached_tokens, role=role)
        if isinstance(message, NeedVideo):
            self._send_pixels(role)
        if isinstance(message, Closed | Failed):
            self.freed_by(role)

    def handle(self, event: Event) -> None:
        """Give the coordinator an event, and execute its commands. An event that comes up while commands are executed
        waits until they are out.
        """
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        finally:
            self._handling = False

    def _handle(self, event: Event) -> None:
        commands = self.coordinator.handle(event)
        if self._recorder is not None:
            self._recorder.handled(event, commands)
        self.execute(commands)
        self.coordinator.reconsider()
        if self._report is not None:
            self._report.handled(commands)
        if self.coordinator.done and not self.done.is_set():
            self.done.set()
            self._on_change()
            if self._report is not None:
                self._report.tell()

    def execute(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case ToTargetActor(message):
                    self._send("target", message)
                case ToDraftActor(message):
                    self._send("draft", message)
                case WindowTaken() | WindowsPrepared() | Judged():
                    pass
                case _:
                    self._on_command(command)

    def _send(self, role: Role, message: ToActor) -> None:
        if isinstance(message, Open):
            self.holders.add(role)
            self.prefilling.add(role)
            self._freed = anyio.Event()
            self._on_change()
        self._actors[role].post(message)

    def _send_pixels(self, role: Role) -> None:
        """The actor has evicted the rows of a video whose pixels stayed here."""
        openings = self.coordinator.openings
        if (opening := openings.target if role == "target" else openings.draft) is not None:
            self._actors[role].post(VideoContent(session=self.id, visuals=opening.visuals))

    def freed_by(self, role: Role) -> None:
        """An actor has closed the session, or is lost and its cache with it."""
        self.holders.discard(role)
        self.prefilling.discard(role)
        if not self.holders:
            self._freed.set()
        self._on_change()

    async def freed(self) -> None:
        """Wait until no actor holds the session; call it when the coordinator is done."""
        if self.holders:
            await self._freed.wait()
