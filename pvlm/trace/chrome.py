"""The timeline in the Trace Event Format (Google, "Trace Event Format"), for Perfetto and chrome://tracing."""

from __future__ import annotations

from typing import Any

import msgspec

from pvlm.trace.recording import Recording
from pvlm.trace.timeline import Arrow, Cell, Mark, Slice, Timeline

PROCESS = 1
THREADS = {"draft": 1, "target": 2}
NAMES = {"open": "vision tower", "prefill": "prefill", "stopped": "stopped by a rollback", "wait": "waiting"}


def chrome_trace(recording: Recording, timeline: Timeline) -> bytes:
    """One JSON object with ``traceEvents``; times in µs since the session was opened.

    A thread for each actor; a complete event for each slice, an instant event for each mark, and flow events for the
    arrows that start in a slice.
    """
    events = [
        _metadata("process_name", 0, {"name": f"pvlm: {recording.subject.opening.question}"}),
        *(_metadata("thread_name", THREADS[role], {"name": role}) for role in timeline.rows),
        *(_metadata("thread_sort_index", THREADS[role], {"sort_index": THREADS[role]}) for role in timeline.rows),
        *(_complete(piece) for piece in timeline.slices),
        *(_instant(mark) for mark in timeline.marks),
    ]
    for number, arrow in enumerate(timeline.arrows):
        events += _flow(number, arrow, timeline)
    answer = recording.answer
    around = recording.subject.circumstances
    about = {
        "video": around.video,
        "date": recording.date,
        "settings": around.settings,
        "before_s": around.before_s,
        "question": recording.subject.opening.question,
        "text": "" if answer is None else answer.text,
        "models": {role: info.name for role, info in recording.subject.models.items()},
        "stats": None if answer is None else answer.stats,
    }
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about})


def _metadata(name: str, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": PROCESS, "tid": thread, "args": args}


def _complete(piece: Slice) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": _name(piece),
        "cat": piece.kind,
        "pid": PROCESS,
        "tid": THREADS[piece.row],
        "ts": piece.begin_ms * 1000,
        "dur": (piece.end_ms - piece.begin_ms) * 1000,
        "args": {**piece.detail, **_cells(piece.start, piece.cells)},
    }


def _name(piece: Slice) -> str:
    """Name of a slice; its digits are last, where Perfetto ignores them when it chooses a colour."""
    match piece.kind:
        case "window":
            dropped = "window, dropped" if piece.detail["dropped"] else "window"
            return f"{dropped} {piece.detail['accepted']}/{len(piece.cells)}"
        case "pass":
            return f"pass, rejects {len(piece.cells)}" if piece.detail["rejected"] else f"pass {len(piece.cells)}"
        case other:
            return NAMES[other]


def _instant(mark: Mark) -> dict[str, Any]:
    return {
        "ph": "i",
        "name": mark.text,
        "cat": mark.kind,
        "pid": PROCESS,
        "tid": THREADS[mark.row],
        "ts": mark.at_ms * 1000,
        "s": "t",
        "args": _cells(mark.start, mark.cells),
    }


def _cells(start: int | None, cells: tuple[Cell, ...]) -> dict[str, Any]:
    if start is None:
        return {}
    return {
        "start": start,
        "tokens": [cell.token for cell in cells],
        "text": [cell.text for cell in cells],
        "states": [cell.state for cell in cells],
    }


def _flow(number: int, arrow: Arrow, timeline: Timeline) -> list[dict[str, Any]]:
    """Two flow events. Each belongs to the slice that contains its time, so it is moved a little into its slice."""
    if arrow.source is None:
        return []
    source, sink = timeline.slices[arrow.source], timeline.slices[arrow.sink]
    ends = [
        ("s", source, source.end_ms * 1000 - _inside(source)),
        ("f", sink, sink.begin_ms * 1000 + _inside(sink)),
    ]
    return [
        {"ph": phase, "bp": "e", "id": number, "name": arrow.kind, "cat": "message", "pid": PROCESS,
         "tid": THREADS[piece.row], "ts": at}
        for phase, piece, at in ends
    ]  # fmt: skip


def _inside(piece: Slice) -> float:
    return min(1.0, (piece.end_ms - piece.begin_ms) * 1000 / 2)
