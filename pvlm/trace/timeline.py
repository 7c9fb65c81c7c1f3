"""The timeline of draft and target: slices, marks and arrows, from the messages of one answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Literal

import msgspec

from pvlm.coordination.events import (
    Command,
    DraftGone,
    Fail,
    Judged,
    ToDraftActor,
    ToTargetActor,
    WindowsPrepared,
    WindowTaken,
)
from pvlm.trace.recording import Handled, Recording
from pvlm.trace.tokens import label
from pvlm_protocols.backend import Role
from pvlm_protocols.messages import (
    DraftWindow,
    Failed,
    Opened,
    PrefillDone,
    PruneMask,
    Rollback,
    SetMode,
    Stopped,
    Verdict,
)

SliceKind = Literal["open", "prefill", "window", "stopped", "pass", "wait"]
MarkKind = Literal[
    "mask", "verdict", "rollback", "alone", "together", "lost", "failed", "prepared", "dropped", "hit", "late"
]
State = Literal["accepted", "rejected", "corrected", "alone", "late", "unused"]
SHORTEST_WAIT_MS = 0.02


class Cell(msgspec.Struct, frozen=True):
    """A token of a window or a verdict. ``text``: the text of this token alone.

    In a verdict a token is ``accepted`` (the draft's), ``corrected`` (the target's in place of a rejected one) or the
    target's ``alone``. In a window it is ``accepted``, ``rejected``, ``late`` (the target wrote the same token itself
    before the window arrived) or ``unused`` (after a rejection, or continuing an abandoned text).
    """

    token: int
    text: str
    state: State


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time of one actor, in ms since the session was opened.

    ``start``: the answer position of the first of ``cells``; None without cells. ``detail``: figures to show.
    """

    row: Role
    kind: SliceKind
    begin_ms: float
    end_ms: float
    start: int | None = None
    cells: tuple[Cell, ...] = ()
    detail: dict[str, int | float | str | bool] = {}


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A moment. A ``verdict`` is one without a pass; ``start`` and ``cells`` as in `Slice`."""

    row: Role
    kind: MarkKind
    at_ms: float
    text: str
    start: int | None = None
    cells: tuple[Cell, ...] = ()


class Arrow(msgspec.Struct, frozen=True, kw_only=True):
    """A message with an effect: a ``window`` and the pass that took it in, or a ``rollback`` and the draft's first work
    after it. ``source`` and ``sink`` are slices by number; ``source`` None: a moment between slices.
    """

    kind: Literal["window", "rollback"]
    source: int | None
    sink: int
    begin_ms: float
    end_ms: float


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Slices in order of time, by row without overlap; every token of the answer is in one slice of kind ``pass`` or
    one mark of kind ``verdict``.

    ``decoding_ms``: the end of the target's prefill.
    """

    rows: tuple[Role, ...]
    slices: tuple[Slice, ...]
    marks: tuple[Mark, ...]
    arrows: tuple[Arrow, ...]
    decoding_ms: float
    end_ms: float

    def verdicts(self) -> list[Slice | Mark]:
        """Items that settled tokens, in order: passes, and verdicts without a pass."""
        passes = [piece for piece in self.slices if piece.kind == "pass" and piece.cells]
        marks = [mark for mark in self.marks if mark.kind == "verdict"]
        return sorted([*passes, *marks], key=lambda item: item.start or 0)


def timeline(recording: Recording) -> Timeline:
    """The timeline of a recording.

    Slices and verdicts have the times that the actors reported (from another host: within half a round trip).
    Rollbacks and other orders have the time of the coordinator. A window that other sessions interrupted is one slice
    that ends where the window ended.
    """
    return _Builder(recording).build()


class _Builder:
    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._committed: list[int] = list(recording.subject.opening.committed)
        self._verdicts: list[Verdict] = []
        self._settled: dict[int, tuple[Verdict, State]] = {}
        self._forwarded: set[int] = set()
        self._left: dict[int, int] = {}
        """For windows of a line that a prepared window has replaced: how many verdicts there had been then."""
        self._windows: list[DraftWindow] = []
        self._slices: list[Slice] = []
        self._marks: list[Mark] = []
        self._arrows: list[Arrow] = []
        self._slice_of: dict[int, Slice] = {}
        processor = recording.subject.processor
        vocabulary = processor.tokens_as_text()
        self._label = cache(lambda token: label(processor, vocabulary, token))

    def build(self) -> Timeline:
        for handled in self._recording.handled:
            self._take(handled)
        for window in self._windows:
            self._draw_window(window)
        for verdict in self._verdicts:
            self._draw_verdict(verdict)
        self._slices += [wait for role in ("target", "draft") for wait in _waits(self._of(role))]
        self._slices.sort(key=lambda piece: piece.begin_ms)
        self._draw_arrows()
        rows: tuple[Role, ...] = ("draft", "target") if self._recording.subject.with_draft else ("target",)
        return Timeline(
            rows=rows,
            slices=tuple(self._slices),
            marks=tuple(sorted(self._marks, key=lambda mark: mark.at_ms)),
            arrows=tuple(self._arrows),
            decoding_ms=next((s.end_ms for s in self._slices if (s.row, s.kind) == ("target", "prefill")), 0.0),
            end_ms=max([0.0, *(s.end_ms for s in self._slices), *(m.at_ms for m in self._marks)]),
        )

    def _ms(self, at_s: float) -> float:
        return (at_s - self._recording.began_s) * 1000

    def _of(self, role: str) -> list[Slice]:
        return sorted((piece for piece in self._slices if piece.row == role), key=lambda piece: piece.begin_ms)

    # ---- from messages --------------------------------------------------------------------------------------------

    def _take(self, handled: Handled) -> None:
        at_ms = self._ms(handled.at_s)
        match handled.event:
            case Opened() as opened:
                detail = {"prompt_tokens": opened.prompt_tokens, "video_tokens": opened.video_tokens}
                self._add(opened.role, "open", opened.ended_s, opened.open_ms, detail)
            case PrefillDone() as done:
                self._add(done.role, "prefill", done.ended_s, done.prefill_ms, {"tokens": done.prompt_tokens})
            case PruneMask() as mask if mask.kept < mask.video_tokens:
                text = f"prune mask: {mask.kept} of {mask.video_tokens} video tokens stay ({mask.method})"
                self._marks.append(Mark(row="target", kind="mask", at_ms=at_ms, text=text))
            case DraftWindow() as window:
                self._windows.append(window)
            case Failed(role="draft") as failed:
                self._marks.append(Mark(row="draft", kind="lost", at_ms=at_ms, text=f"draft lost: {failed.message}"))
            case DraftGone(reason):
                self._marks.append(Mark(row="draft", kind="lost", at_ms=at_ms, text=f"draft lost: {reason}"))
        for command in handled.commands:
            self._take_command(command, at_ms)

    def _take_command(self, command: Command, at_ms: float) -> None:
        match command:
            case ToDraftActor(Rollback() as rollback):
                text = f"rollback to {rollback.keep + len(rollback.tokens)} tokens (epoch {rollback.epoch})"
                self._marks.append(Mark(row="draft", kind="rollback", at_ms=at_ms, text=text))
            case WindowTaken(window, sent=True):
                self._forwarded.add(id(window))
            case WindowsPrepared(prepared, kept):
                self._mark_prepared(len(prepared.outcomes), kept, self._ms(prepared.ended_s))
            case Judged(verdict, outcome):
                self._settle(verdict)
                if outcome is not None:
                    self._mark_hit(verdict)
            case ToTargetActor(SetMode(mode="alone")):
                self._marks.append(Mark(row="target", kind="alone", at_ms=at_ms, text="the target continues alone"))
            case ToTargetActor(SetMode()):
                text = "together with the draft again"
                self._marks.append(Mark(row="target", kind="together", at_ms=at_ms, text=text))
            case Fail(error, message):
                self._marks.append(Mark(row="target", kind="failed", at_ms=at_ms, text=f"{error}: {message}"))

    def _settle(self, verdict: Verdict) -> None:
        self._verdicts.append(verdict)
        for index in range(len(verdict.tokens)):
            state: State = "accepted" if index < verdict.accepted else "corrected" if verdict.rejected else "alone"
            self._settled[verdict.start + index] = verdict, state
        self._committed += verdict.tokens

    def _mark_prepared(self, count: int, kept: int, at_ms: float) -> None:
        kind: MarkKind = "prepared" if kept else "dropped"
        text = f"{count} windows prepared for likely verdicts" + ("" if kept else ", too late")
        self._marks.append(Mark(row="draft", kind=kind, at_ms=at_ms, text=text))

    def _mark_hit(self, verdict: Verdict) -> None:
        """The windows so far are not those with which the target goes on."""
        for window in self._windows:
            self._left.setdefault(id(window), len(self._verdicts))
        at_ms = self._ms(verdict.ended_s)
        if verdict.branch:
            text = "hit: the rejection's window was prepared"
            self._marks.append(Mark(row="target", kind="hit", at_ms=at_ms, text=text))
        else:
            text = "late hit: the rejection's window was under way"
            self._marks.append(Mark(row="target", kind="late", at_ms=at_ms, text=text))

    def _concerns(self, verdict: Verdict, window: DraftWindow) -> bool:
        """Was the window in the line that the verdict is about?"""
        number = next(index for index, known in enumerate(self._verdicts) if known is verdict)
        return verdict.epoch == window.epoch and number < self._left.get(id(window), len(self._verdicts))

    def _add(self, role: Role, kind: SliceKind, ended_s: float, took_ms: float, detail: dict[str, int]) -> None:
        end_ms = self._ms(ended_s)
        self._slices.append(Slice(row=role, kind=kind, begin_ms=end_ms - took_ms, end_ms=end_ms, detail={**detail}))

    # ---- windows and verdicts -------------------------------------------------------------------------------------

    def _draw_window(self, window: DraftWindow) -> None:
        for stopped in window.stopped:
            end_ms = self._ms(stopped.ended_s)
            self._slice_of[id(stopped)] = piece = Slice(
                row="draft", kind="stopped", begin_ms=end_ms - stopped.draft_ms, end_ms=end_ms, start=stopped.start,
                detail={"tokens": stopped.tokens, "epoch": stopped.epoch},
            )  # fmt: skip
            self._slices.append(piece)
        cells = tuple(
            Cell(token, self._label(token), self._fate(window, window.start + index))
            for index, token in enumerate(window.tokens)
        )
        accepted = sum(cell.state == "accepted" for cell in cells)
        end_ms = self._ms(window.ended_s)
        self._slice_of[id(window)] = piece = Slice(
            row="draft", kind="window", begin_ms=end_ms - window.draft_ms, end_ms=end_ms, start=window.start,
            cells=cells,
            detail={"epoch": window.epoch, "accepted": accepted, "dropped": id(window) not in self._forwarded},
        )  # fmt: skip
        self._slices.append(piece)

    def _fate(self, window: DraftWindow, position: int) -> State:
        """State of a drafted token. An accepted or rejected one has the epoch of its verdict."""
        if position not in self._settled:
            return "unused"
        verdict, state = self._settled[position]
        if state in ("accepted", "corrected") and self._concerns(verdict, window):
            return "accepted" if state == "accepted" else "rejected"
        token = window.tokens[position - window.start]
        agrees = self._committed[window.start : position + 1] == list(window.tokens[: position + 1 - window.start])
        return "late" if agrees and token == self._committed[position] else "unused"

    def _draw_verdict(self, verdict: Verdict) -> None:
        cells = tuple(
            Cell(token, self._label(token), self._settled[verdict.start + index][1])
            for index, token in enumerate(verdict.tokens)
        )
        end_ms = self._ms(verdict.ended_s)
        if not verdict.pass_tokens:
            if cells:
                text = "settled without a pass"
                self._marks.append(
                    Mark(row="target", kind="verdict", at_ms=end_ms, text=text, start=verdict.start, cells=cells)
                )
            return
        self._slice_of[id(verdict)] = piece = Slice(
            row="target", kind="pass", begin_ms=end_ms - verdict.pass_ms, end_ms=end_ms, start=verdict.start,
            cells=cells,
            detail={
                "pass_tokens": verdict.pass_tokens, "window": verdict.window, "accepted": verdict.accepted,
                "rejected": verdict.rejected, "epoch": verdict.epoch,
            },
        )  # fmt: skip
        self._slices.append(piece)

    # ---- arrows ---------------------------------------------------------------------------------------------------

    def _draw_arrows(self) -> None:
        number = {id(piece): index for index, piece in enumerate(self._slices)}
        for window in self._windows:
            verdict = next((v for v in self._verdicts if self._took_in(v, window)), None)
            if verdict is not None:
                source, sink = self._slice_of[id(window)], self._slice_of[id(verdict)]
                self._arrows.append(
                    Arrow(
                        kind="window", source=number[id(source)], sink=number[id(sink)],
                        begin_ms=source.end_ms, end_ms=sink.begin_ms,
                    )
                )  # fmt: skip
        for verdict, rollback in self._rollbacks():
            sink_of = self._first_work(rollback.epoch)
            if sink_of is not None:
                rejecting = self._slice_of.get(id(verdict))
                self._arrows.append(
                    Arrow(
                        kind="rollback", source=None if rejecting is None else number[id(rejecting)],
                        sink=number[id(sink_of)], begin_ms=self._ms(verdict.ended_s), end_ms=sink_of.begin_ms,
                    )
                )  # fmt: skip

    def _took_in(self, verdict: Verdict, window: DraftWindow) -> bool:
        """Whether the verdict's pass included tokens of the window."""
        end = window.start + len(window.tokens)
        overlaps = window.start < verdict.start + verdict.window and end > verdict.start
        sent = id(window) in self._forwarded and self._concerns(verdict, window)
        return bool(verdict.pass_tokens) and sent and overlaps and verdict.ended_s > window.ended_s

    def _rollbacks(self) -> Iterable[tuple[Verdict, Rollback]]:
        for handled in self._recording.handled:
            for command in handled.commands:
                match handled.event, command:
                    case Verdict() as verdict, ToDraftActor(Rollback() as rollback):
                        yield verdict, rollback

    def _first_work(self, epoch: int) -> Slice | None:
        works: list[tuple[int, Stopped | DraftWindow]] = []
        for window in self._windows:
            works += [(stopped.epoch, stopped) for stopped in window.stopped] + [(window.epoch, window)]
        return next((self._slice_of[id(work)] for of, work in works if of == epoch), None)


def _waits(busy: Sequence[Slice]) -> list[Slice]:
    """The gaps between an actor's slices, without invisibly short ones."""
    return [
        Slice(row=before.row, kind="wait", begin_ms=before.end_ms, end_ms=after.begin_ms)
        for before, after in pairwise(busy)
        if after.begin_ms - before.end_ms >= SHORTEST_WAIT_MS
    ]
