"""How a session begins: on a kept prefix, or by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np

from pvlm.actors.abandonment import WorkAbandoned
from pvlm.actors.prefixes import Entry, Prefixes, View
from pvlm.transports import Mailbox
from pvlm_protocols.backend import (
    Backend,
    FramesMissing,
    InterruptibleOpening,
    Prompt,
    Role,
    Session,
    Turn,
    Visual,
)
from pvlm_protocols.messages import NeedVideo, Open, VideoContent
from pvlm_protocols.prefixes import KeptPrefix, KeptPrefixes, PrefixSession
from pvlm_protocols.turns import OpenTurn, VideoFrames


class Host(Protocol):
    """What it uses of the actor."""

    @property
    def backend(self) -> Backend: ...

    @property
    def mailbox(self) -> Mailbox: ...

    @property
    def prefixes(self) -> Prefixes: ...

    @property
    def role(self) -> Role: ...


class Beginner(Protocol):
    """What it uses of the session. ``view``: see `pvlm.actors.session.ActorSession`."""

    id: int
    opening: Open

    @property
    def actor(self) -> Host: ...

    def view(self) -> View: ...


class PromptStart:
    """Opens the prompt of one session, and keeps its prefixes for others.

    Of sessions that need the same prefix at the same time, the first computes it, and the others wait for it.
    """

    def __init__(self, session: Beginner) -> None:
        self.needs_video = False
        """It has asked for the pixels of its videos."""
        self._session = session
        self._model: PrefixSession | None = None
        self._entry: Entry | None = None
        self._asked: list[tuple[bytes, View]] = []
        """Prefixes that were not there: this session is about to compute them."""
        self._awaited: tuple[bytes, View] | None = None

    @property
    def waits(self) -> bool:
        """It cannot open before something has come: the pixels, or a prefix that another session computes."""
        return self.needs_video or (self._awaited is not None and self._prefixes.coming(*self._awaited))

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that a kept prefix covers."""
        return 0 if self._model is None else self._model.cached_tokens

    @property
    def rows(self) -> int | None:
        """Rows of the prompt in the cache; None where the backend does not say."""
        return None if self._model is None else self._model.prompt_rows

    @property
    def covers_video(self) -> bool:
        """Are all video tokens in the kept prefix on which the session runs?"""
        model = self._model
        return model is not None and model.cached_tokens > 0 and model.cached_video_tokens == model.video_tokens

    @property
    def _prefixes(self) -> Prefixes:
        return self._session.actor.prefixes

    def open(self, capacity: int, tick: Callable[[], None]) -> Session:
        """Build the prompt, and run the vision tower over what no kept prefix covers. ``tick`` is called in it.

        Raises WorkAbandoned where the session has to wait first, and what ``tick`` raises.
        """
        actor, turns = self._session.actor, self._session.opening.turns
        prompt = Prompt.of(tuple(Turn(turn.role, tuple(map(_part, turn.parts))) for turn in turns))
        backend = actor.backend
        self._awaited, self._asked = None, []
        if isinstance(backend, KeptPrefixes) and self._prefixes.max_bytes:
            try:
                self._model = model = backend.open_on(prompt, capacity, self._find, tick)
            except FramesMissing:
                raise self._asked_for_video() from None
            self._prefixes.announce(self._asked)
            return model
        if any(visual.left_out for visual in self._session.opening.visuals):
            raise self._asked_for_video()
        if isinstance(backend, InterruptibleOpening):
            return backend.open_in_steps(prompt, capacity, tick)
        return backend.open(prompt, capacity)

    def receive(self, content: VideoContent) -> None:
        """Take in the pixels. Raises ValueError where they are of other videos."""
        opening, left = self._session.opening, iter(content.visuals)
        if [visual.digest for visual in content.visuals] != [visual.digest for visual in opening.visuals]:
            raise ValueError("the pixels that came are those of other videos")
        turns = tuple(
            OpenTurn(role=turn.role, parts=tuple(part if isinstance(part, str) else next(left) for part in turn.parts))
            for turn in opening.turns
        )
        self._session.opening = msgspec.structs.replace(opening, turns=turns)
        self.needs_video = False

    def keep(self) -> None:
        """Keep what the prefill has computed; call it when it is complete."""
        self._withdraw()
        if (model := self._model) is None:
            return
        chain = model.prefixes()
        view = self._session.view()
        videos = frozenset(visual.digest for visual in self._session.opening.visuals)
        targets = self._session.actor.role == "target"
        views = [prefix.early_layer if targets else view for prefix in chain]
        self._prefixes.keep(chain, views, videos)
        for prefix, own in zip(chain, views, strict=True):
            if (entry := self._prefixes.find(prefix.key, own)) is not None and entry.prefix is prefix:
                self._use(entry)

    def close(self) -> None:
        """The session has ended."""
        self._withdraw()
        self._use(None)
        self._model = None

    def _find(self, key: bytes) -> KeptPrefix | None:
        view = self._session.view()
        if (entry := self._prefixes.find(key, view)) is not None:
            self._use(entry)
            return entry.prefix
        if self._prefixes.coming(key, view):
            self._awaited = key, view
            raise WorkAbandoned
        self._asked.append((key, view))
        return None

    def _use(self, entry: Entry | None) -> None:
        """The session runs on this prefix, and no longer on another one."""
        before, self._entry = self._entry, entry
        if entry is not None:
            self._prefixes.use(entry)
        if before is not None:
            self._prefixes.leave(before)

    def _withdraw(self) -> None:
        if self._model is not None:
            self._prefixes.withdraw(self._asked)
        self._asked = []

    def _asked_for_video(self) -> WorkAbandoned:
        self.needs_video = True
        self._session.actor.mailbox.post(NeedVideo(session=self._session.id, role=self._session.actor.role))
        return WorkAbandoned()


def _part(part: str | VideoFrames) -> str | Visual:
    if isinstance(part, str):
        return part
    frames = part.pixels
    if part.left_out:
        frames = np.broadcast_to(np.uint8(0), (part.left_out, *frames.shape[1:]))
    return Visual(frames, part.timestamps_s, part.kind, part.size, part.digest, missing=bool(part.left_out))
