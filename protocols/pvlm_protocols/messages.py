"""The messages that actors exchange, grouped by who receives them.

Every struct is tagged, frozen, and travels as a map: a few bytes more than an array, but a reordered or
renamed field cannot decode silently wrong. `tests/protocols` pins the encoded bytes.

Positions count answer tokens: position 0 is the first token of the answer. Times are of the monotonic clock of the host
that reports them; the engine converts those of other hosts to its own clock.

The bounds of numbers, and the lengths of texts and tuples, are part of the types: what is beyond them does not decode.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from pvlm_protocols.backend import Count, ModelInfo, Name, Role
from pvlm_protocols.limits import (
    MAX_DIGEST_BYTES,
    MAX_HELD_SESSIONS,
    MAX_OUTCOMES,
    MAX_PINNED,
    MAX_STOPPED,
    MAX_TURNS,
    MAX_VIDEO_TOKENS,
    MAX_VISUALS,
    MAX_WINDOW,
)
from pvlm_protocols.numbers import Milliseconds as Milliseconds
from pvlm_protocols.numbers import Position as Position
from pvlm_protocols.numbers import Ratio as Ratio
from pvlm_protocols.numbers import Serial as Serial
from pvlm_protocols.numbers import Share as Share
from pvlm_protocols.numbers import Token as Token
from pvlm_protocols.numbers import Tokens as Tokens
from pvlm_protocols.numbers import WindowSize as WindowSize
from pvlm_protocols.numbers import WindowTokens as WindowTokens
from pvlm_protocols.parts import Coupling as Coupling
from pvlm_protocols.parts import ErrorText as ErrorText
from pvlm_protocols.parts import FinishReason as FinishReason
from pvlm_protocols.parts import Pruning as Pruning
from pvlm_protocols.parts import Sampling as Sampling
from pvlm_protocols.parts import SamplingOptions as SamplingOptions
from pvlm_protocols.parts import Schedule as Schedule
from pvlm_protocols.parts import TargetMode as TargetMode
from pvlm_protocols.parts import TracebackText as TracebackText
from pvlm_protocols.turns import OpenTurn, Seconds, VideoFrames
from pvlm_protocols.windows import Outcome as Outcome
from pvlm_protocols.windows import Parent as Parent
from pvlm_protocols.windows import Stopped as Stopped
from pvlm_protocols.windows import Window as Window


class Message(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Base of all messages."""


class SessionMessage(Message, frozen=True, kw_only=True):
    """A message that belongs to one session."""

    session: Serial


# ---- engine or coordinator -> actor -------------------------------------------------------------------------------


class Open(SessionMessage, frozen=True, kw_only=True):
    """Start a session, or continue one of a lost actor after the ``committed`` tokens, with an ``epoch`` above all
    earlier ones. ``turns``: the conversation, whose last turn asks. ``shares``: its passes may be shared with other
    sessions."""

    turns: Annotated[tuple[OpenTurn, ...], Meta(min_length=1, max_length=MAX_TURNS)]
    sampling: Sampling
    pruning: Pruning
    schedule: Schedule
    window: Window
    committed: Tokens = ()
    epoch: Serial = 0
    shares: bool = True

    @property
    def question(self) -> str:
        """The texts of the last turn, one a line."""
        return "\n".join(part for part in self.turns[-1].parts if isinstance(part, str))

    @property
    def visuals(self) -> tuple[VideoFrames, ...]:
        """The videos and images, in the order of the turns."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, VideoFrames))


class Resume(SessionMessage, frozen=True, kw_only=True):
    """Continue a session that this worker has kept while its connection was lost. ``committed`` and ``epoch`` as in
    `Open`, but at least one token: the worker truncates its cache to what agrees with them. Only after `Recalled`.
    """

    committed: Tokens
    epoch: Serial
    window: Window


class Close(SessionMessage, frozen=True, kw_only=True):
    """Free the session; answered by `Closed`."""


class VideoContent(SessionMessage, frozen=True, kw_only=True):
    """The videos and images of the session with their pixels: the answer to `NeedVideo`."""

    visuals: Annotated[tuple[VideoFrames, ...], Meta(max_length=MAX_VISUALS)]


class Pin(Message, frozen=True, kw_only=True):
    """Do not evict the prefixes of prompts with these videos, by their digests, until the next `Pin`."""

    videos: Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_DIGEST_BYTES)], ...], Meta(max_length=MAX_PINNED)]


class PruneMask(SessionMessage, frozen=True, kw_only=True):
    """Video tokens that the draft keeps. ``bits``: ``ceil(video_tokens / 8)`` bytes, most significant bit first.

    Travels from the target to the coordinator and on to the draft.
    """

    bits: Annotated[bytes, Meta(max_length=MAX_VIDEO_TOKENS // 8)]
    video_tokens: Annotated[int, Meta(ge=0, le=MAX_VIDEO_TOKENS)]
    kept: Annotated[int, Meta(ge=0, le=MAX_VIDEO_TOKENS)]
    method: Name
    ratio: Share


class DraftWindow(SessionMessage, frozen=True, kw_only=True):
    """Tokens that continue the prefix of length ``start``, drafted in ``epoch``.

    ``proposal_ids`` int32 and ``proposal_probs`` float32, both ``(len(tokens), K)``: the k-sparse distributions that
    the tokens were drawn from, unused places at id -1 and probability 0; None under greedy and Gumbel coupling.
    ``draft_ms``: time spent on the tokens. ``began_s`` and ``ended_s``: when the first was begun and the last was
    complete, in seconds of the monotonic clock of the draft's host. ``stopped``: what the draft has written in vain
    since the last window. Travels from the draft to the coordinator and on to the target.

    ``id``: names the window within its epoch. ``parent``: the window that it continues, 0 for the first after a
    rollback. ``beside``: how many prepared windows were written in the same passes, on average. ``adopted``: its first
    tokens were those of a prepared window in work, whose time is not in ``draft_ms``.
    """

    id: Serial = 0
    parent: Serial = 0
    epoch: Serial
    start: Position
    tokens: WindowTokens
    proposal_ids: np.ndarray | None = None
    proposal_probs: np.ndarray | None = None
    draft_ms: Milliseconds = 0.0
    began_s: Seconds = 0.0
    ended_s: Seconds = 0.0
    stopped: Annotated[tuple[Stopped, ...], Meta(max_length=MAX_STOPPED)] = ()
    beside: Annotated[float, Meta(ge=0, le=MAX_OUTCOMES)] = 0.0
    adopted: Annotated[int, Meta(ge=0, le=MAX_WINDOW)] = 0


class Prepared(SessionMessage, frozen=True, kw_only=True):
    """Windows that the draft has prepared in ``epoch`` for likely verdicts about an earlier window.

    ``proposal_ids``, ``proposal_probs``: as in `DraftWindow`, one row for each token of all outcomes, one outcome after
    the other. ``draft_ms``: time spent on them, 0 where they were written in the passes of a `DraftWindow`. Travels
    from the draft to the coordinator and on to the target, which keeps the windows until a verdict.
    """

    epoch: Serial
    outcomes: Annotated[tuple[Outcome, ...], Meta(max_length=MAX_OUTCOMES)]
    proposal_ids: np.ndarray | None = None
    proposal_probs: np.ndarray | None = None
    draft_ms: Milliseconds = 0.0
    ended_s: Seconds = 0.0


class SetMode(SessionMessage, frozen=True, kw_only=True):
    """Another mode for the target."""

    mode: TargetMode


class Rollback(SessionMessage, frozen=True, kw_only=True):
    """Keep ``keep`` answer tokens, append ``tokens``, and draft on from there in the new ``epoch``."""

    epoch: Serial
    keep: Position
    tokens: Tokens
    window: Window


class Advance(SessionMessage, frozen=True, kw_only=True):
    """The first ``length`` answer tokens are committed as drafted: the draft may write further ahead.

    ``branch``: the prepared window with which target and draft go on (0: with the line).
    """

    epoch: Serial
    length: Position
    window: Window
    branch: Serial = 0


class SetWindow(SessionMessage, frozen=True, kw_only=True):
    """New window sizes for the target."""

    window: Window


class Ping(Message, frozen=True, kw_only=True):
    nonce: Serial


class Recall(Message, frozen=True, kw_only=True):
    """Which sessions of this engine does the worker still have? It frees those of other engines, and answers with
    `Recalled`. ``engine``: a random number of its own.
    """

    engine: Serial


class Stop(Message, frozen=True, kw_only=True):
    """Close every session and leave the loop."""


# ---- actor -> engine or coordinator -------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """The actor has loaded its model and listens."""

    version: Count
    role: Role
    info: ModelInfo
    pid: Count


class Loading(Message, frozen=True, kw_only=True):
    """Loaded fraction of the model, 0 to 1."""

    role: Role
    fraction: Share


class Opened(SessionMessage, frozen=True, kw_only=True):
    """The prompt is built, and the vision tower has run. ``ended_s``: when, in seconds of the monotonic clock of the
    actor's host. ``cached_tokens``: those of the prompt whose rows the actor had kept.
    """

    role: Role
    prompt_tokens: Count
    video_tokens: Count
    cached_tokens: Count = 0
    open_ms: Milliseconds
    ended_s: Seconds = 0.0


class NeedVideo(SessionMessage, frozen=True, kw_only=True):
    """`Open` came without the pixels of a video (`VideoFrames.left_out`) whose rows the actor does not have.
    `VideoContent` answers it.
    """

    role: Role


class PrefillProgress(SessionMessage, frozen=True, kw_only=True):
    role: Role
    fraction: Share


class PrefillDone(SessionMessage, frozen=True, kw_only=True):
    """``prompt_tokens``: rows in the cache (a pruned draft has fewer than the prompt). ``ended_s`` as in `Opened`."""

    role: Role
    prompt_tokens: Count
    prefill_ms: Milliseconds
    ended_s: Seconds = 0.0


class Verdict(SessionMessage, frozen=True, kw_only=True):
    """What the target has settled: ``tokens`` follow the ``start`` tokens committed before.

    The first ``accepted`` of them are the draft's, a token after them is the target's own. ``rejected``: the target
    turned a drafted token down. ``judged``, ``offset``: the window of the last tested token, and its place there.
    ``branch``: the prepared window with which the target goes on after the rejection; 0: none, so it takes nothing
    more of ``epoch`` but a prepared window that arrives late. ``window``: drafted tokens that the pass took in (0: a
    solo step), ``pass_tokens`` and ``pass_ms``: size and time of the pass (0: settled without one), ``own_tokens``:
    those of this session in it, ``ended_s``: when it ended, in seconds of the monotonic clock of the target's host.
    ``finish``: why the answer ends here, if it does.
    """

    epoch: Serial
    start: Position
    tokens: Tokens
    accepted: Position
    rejected: bool = False
    window: Count = 0
    pass_tokens: Count = 0
    own_tokens: Count = 0
    pass_ms: Milliseconds = 0.0
    ended_s: Seconds = 0.0
    finish: FinishReason | None = None
    judged: Serial = 0
    offset: Annotated[int, Meta(ge=0, le=MAX_WINDOW)] = 0
    branch: Serial = 0


class Began(Message, frozen=True, kw_only=True):
    """A worker on another host begins to work for other sessions than before: those to blame if it dies."""

    role: Role
    sessions: Annotated[tuple[Serial, ...], Meta(max_length=MAX_HELD_SESSIONS)]


class PrefixesKept(Message, frozen=True, kw_only=True):
    """What the actor keeps of prompts: the number of prefixes, their bytes, and how many were evicted since the last
    report.
    """

    role: Role
    count: Count
    nbytes: Serial
    evicted: Count = 0


class Closed(SessionMessage, frozen=True, kw_only=True):
    role: Role


class Failed(SessionMessage, frozen=True, kw_only=True):
    """A session failed at an actor, which lives on."""

    role: Role
    error: Name
    message: ErrorText
    traceback: TracebackText


class Dying(Message, frozen=True, kw_only=True):
    """The whole actor is going down."""

    role: Role
    error: Name
    message: ErrorText
    traceback: TracebackText


class Recalled(Message, frozen=True, kw_only=True):
    """Sessions that can go on by `Resume`; the worker waits for one or for `Close`. ``known``: it has served this
    engine before, and has lived since.
    """

    role: Role
    known: bool
    sessions: Annotated[tuple[Serial, ...], Meta(max_length=MAX_HELD_SESSIONS)]


class Pong(Message, frozen=True, kw_only=True):
    """``progress`` counts layers and units of work; ``sessions``: how many are open; ``dropped``: how many messages
    it has dropped; ``at_s``: when it was said, in seconds of the monotonic clock of the actor's host.
    """

    nonce: Serial
    role: Role
    progress: Serial
    sessions: Count = 0
    dropped: Serial = 0
    at_s: Seconds = 0.0


ToEither = Open | VideoContent | Resume | Close | Pin | Ping | Recall | Stop
ToDraft = ToEither | PruneMask | Rollback | Advance
ToTarget = ToEither | DraftWindow | Prepared | SetMode | SetWindow
FromEither = (
    Hello
    | Loading
    | Opened
    | NeedVideo
    | PrefillProgress
    | PrefillDone
    | PrefixesKept
    | Began
    | Closed
    | Failed
    | Dying
    | Recalled
    | Pong
)
FromDraft = FromEither | DraftWindow | Prepared
FromTarget = FromEither | PruneMask | Verdict
ToActor = ToDraft | ToTarget
FromActor = FromDraft | FromTarget
