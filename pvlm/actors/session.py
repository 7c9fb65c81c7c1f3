"""One session at one actor: its state, what it does with a message, and its work."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pvlm.actors.abandonment import WorkAbandoned as WorkAbandoned
from pvlm.actors.prefixes import Prefixes, View
from pvlm.actors.start import PromptStart
from pvlm.transports import Mailbox
from pvlm_protocols.backend import Backend, Role, Session, SteppedPrefill
from pvlm_protocols.messages import FromActor, Open, Opened, Resume, SessionMessage, VideoContent

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pass:
    """A pass that has ended.

    ``logits``: for each part that the session fed float32 ``(n, vocab_size)``, one row for each token. ``ms``: its
    time. ``tokens``: those of all sessions that shared it.
    """

    logits: list[torch.Tensor]
    ms: float
    tokens: int


Parts = Sequence[tuple[Session, Sequence[int]]]
"""Tokens for the cache of a session's model, and for the caches of its branches."""

Round = Generator[Parts, Pass, None]
"""A round of decoding. It yields the parts that it wants in a pass, and receives the pass; it may want several passes,
or none."""


class Employer(Protocol):
    """What a session uses of its actor; see `pvlm.actors.actor.Actor`."""

    backend: Backend
    mailbox: Mailbox
    prefixes: Prefixes

    @property
    def role(self) -> Role: ...

    def tick(self, *sessions: ActorSession) -> None: ...

    def read(self) -> None: ...

    def look(self, *sessions: ActorSession) -> None: ...

    def arrived(self, session: ActorSession, wanted: Callable[[SessionMessage], bool]) -> list[SessionMessage]: ...

    def tick_prefill(self, session: ActorSession, fraction: float) -> None: ...

    def undisturbed(self) -> bool: ...

    def shared(self, session: ActorSession) -> bool: ...


class ActorSession(ABC):
    """See the module. First it is prepared, then it decodes in rounds."""

    def __init__(self, actor: Employer, opening: Open) -> None:
        self.actor = actor
        if (settled := len(opening.committed)) >= (most := opening.sampling.max_tokens):
            raise ValueError(f"an answer of {most} tokens cannot continue after {settled}")
        self.id = opening.session
        self.opening = opening
        self.model: Session | None = None
        self.prepared = False
        """The prompt and all committed tokens but the last are in the cache, as far as they can be."""
        self._pieces: Iterator[None] | None = None
        self.start = PromptStart(self)

    def prepare_on(self) -> None:
        """The next piece of `prepare`."""
        if self._pieces is None:
            self._pieces = self.prepare()
        try:
            next(self._pieces)
        except StopIteration:
            self._pieces, self.prepared = None, True
        except BaseException:
            self._pieces = None
            raise

    def take(self, message: SessionMessage) -> None:
        """Take a message in."""
        if isinstance(message, VideoContent):
            self.start.receive(message)
        else:
            self.handle(message)

    @abstractmethod
    def handle(self, message: SessionMessage) -> None:
        """Take a message in. Cheap: work is for `prepare` and `round`."""

    @abstractmethod
    def ready(self) -> bool:
        """Is there something to do?"""

    @abstractmethod
    def resumable(self) -> bool:
        """Whether `resume` can go on from the cache: the prompt is in it."""

    @abstractmethod
    def resume(self, message: Resume) -> None:
        """Go on from the committed tokens, with as much of the cache as agrees with them. The connection may have been
        lost in the middle of its work.
        """

    def urgent(self) -> bool:
        """Ready, and it gains nothing by letting other sessions go first."""
        return True

    @abstractmethod
    def prepare(self) -> Iterator[None]:
        """Open the prompt and prefill, in pieces between which other sessions may have passes."""

    @abstractmethod
    def round(self) -> Round:
        """One round of decoding: one verdict or several (target), a window or a part of it (draft)."""

    def meanwhile(self) -> None:
        """Called when a pass of its round begins and between its layers, as far as the backend reports these, and on a
        GPU when a pass has been asked for. For what need not wait for the result. Cheap.
        """
        return

    def outdates(self, message: SessionMessage) -> bool:
        """Does a message that has just come make the work in hand worthless?"""
        return False

    def patience_s(self) -> float | None:
        """Seconds until `ready` may change without a message (None: it will not)."""
        return None

    @abstractmethod
    def view(self) -> View:
        """What a kept prefix must have, for this session to run on it: see `pvlm.actors.prefixes`."""

    def open_model(self) -> Session:
        """Build the prompt, run the vision tower, and tell the coordinator."""
        started = time.monotonic()
        capacity = self.opening.sampling.max_tokens + 1  # a solo step may run over the last token
        self.model = self.start.open(capacity, lambda: self.actor.tick(self))
        self.post(
            Opened(
                session=self.id,
                role=self.actor.role,
                prompt_tokens=self.model.prompt_tokens,
                video_tokens=self.model.video_tokens,
                cached_tokens=self.start.cached_tokens,
                open_ms=milliseconds_since(started),
                ended_s=time.monotonic(),
            )
        )
        return self.model

    def run_prompt(
        self, model: Session, watch: Stopwatch, keep: torch.Tensor | None = None, **arguments: Any
    ) -> Generator[None, None, torch.Tensor]:
        """Prefill, in one piece where the model offers no other, and return the last position's logits.

        ``watch`` leaves out the time between the pieces. ``arguments`` are those of `SteppedPrefill.prefill_steps`.
        """
        layers = self.actor.backend.info.layers
        done = 0

        def on_progress() -> None:
            nonlocal done
            done += 1
            self.actor.tick_prefill(self, done / layers)

        logits: torch.Tensor | None = None
        if not isinstance(model, SteppedPrefill):
            logits = model.prefill(keep, on_progress=on_progress, **arguments)
        else:
            for logits in model.prefill_steps(keep, on_progress=on_progress, **arguments):
                if logits is None:
                    yield from watch.pause()
        assert logits is not None  # they come last
        self.start.keep()
        return logits

    def post(self, *messages: FromActor) -> None:
        self.actor.mailbox.post(*messages)

    def close(self) -> None:
        if self.model is not None:
            self.model.close()
            self.model = None
        self.start.close()


class Stopwatch:
    """Time since it was made, without pauses."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def pause(self) -> Iterator[None]:
        """Yield once, and leave out the time until the next step."""
        left_s = time.monotonic()
        yield
        self._began_s += time.monotonic() - left_s

    @property
    def ms(self) -> float:
        return milliseconds_since(self._began_s)


def milliseconds_since(started: float) -> float:
    """Milliseconds since ``started``, a reading of ``time.monotonic``."""
    return (time.monotonic() - started) * 1000
