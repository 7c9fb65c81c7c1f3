"""The page ``timeline.html``: one file, which fetches nothing."""

from __future__ import annotations

import html
import re
from base64 import b64encode
from importlib.resources import files
from pathlib import Path

import msgspec

from pvlm.telemetry.figures import BEFORE_DECODING, SHOWN_S, figures
from pvlm.trace.recording import Recording
from pvlm.trace.timeline import Cell, Timeline
from pvlm.trace.tokens import pieces

SCRIPTS = ("page.js", "surroundings.js")


class TextPiece(msgspec.Struct, frozen=True, kw_only=True):
    """Characters of the answer, and their tokens, the first at answer position ``start``.

    ``cut``: in or after the stop string, and no part of the answer's text.
    """

    text: str
    start: int
    cells: tuple[Cell, ...]
    cut: bool


def page(recording: Recording, timeline: Timeline, sheet: bytes | None) -> bytes:
    """The page, UTF-8. ``sheet``: the picture of the frames, PNG, which the page contains."""
    subject, answer = recording.subject, recording.answer
    around = subject.circumstances
    source = files(__name__)
    data = {
        "question": subject.opening.question,
        "models": {role: _short(subject.models[role].name) for role in timeline.rows if role in subject.models},
        "about": [
            around.video,
            f"{recording.date:%Y-%m-%d %H:%M:%S %z}",
            *(f"{name} {_words(value)}" for name, value in around.settings.items()),
        ],
        "times": _times(recording),
        "frames": "" if sheet is None else f"data:image/png;base64,{b64encode(sheet).decode()}",
        "ended": "" if answer is not None else _why_unfinished(timeline),
        "figures": [] if answer is None else figures(answer.stats),
        "pieces": _text_pieces(recording, timeline),
        "timeline": timeline,
    }
    parts = {
        "title": html.escape(f"pvlm: {subject.opening.question}"),
        "style": source.joinpath("page.css").read_text(encoding="utf-8"),
        "script": "\n".join(source.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS),
        # JSON has "<" only in strings; escaped, no text of a model or a user can end the element.
        "data": msgspec.json.encode(data).decode().replace("<", "\\u003c"),
    }
    template = source.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], template).encode()


def _times(recording: Recording) -> list[tuple[str, float]]:
    """The parts of the whole time, in seconds, in order."""
    before, answer = recording.subject.circumstances.before_s, recording.answer
    times = {name: before.get(field, 0.0) for name, field in BEFORE_DECODING.items()}
    if answer is not None:
        times |= {"prefill": answer.stats.prefill_s, "decoding": answer.stats.decode_s}
    return [(name, seconds) for name, seconds in times.items() if seconds >= SHOWN_S]


def _words(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _short(model: str) -> str:
    """A hub name as it is; the last two parts of a path, because a page may be shown to others."""
    return str(Path(*Path(model).parts[-2:])) if Path(model).is_absolute() else model


def _why_unfinished(timeline: Timeline) -> str:
    failed = [mark.text for mark in timeline.marks if mark.kind == "failed"]
    return f"The answer failed: {failed[0]}" if failed else "The caller left the answer before it was complete."


def _text_pieces(recording: Recording, timeline: Timeline) -> list[TextPiece]:
    """The text so far: that of the answer, else that of the verdicts."""
    settled: dict[int, Cell] = {}
    for item in timeline.verdicts():
        assert item.start is not None
        settled.update(enumerate(item.cells, item.start))
    answer = recording.answer
    count = len(settled) if answer is None else len(answer.tokens)
    tokens = [settled[position].token for position in range(count)]
    shown = []
    length = 0
    for text, start, stop in pieces(recording.subject.processor, tokens):
        length += len(text)
        cut = answer is not None and length > len(answer.text)
        cells = tuple(settled[position] for position in range(start, stop))
        shown.append(TextPiece(text=text, start=start, cells=cells, cut=cut))
    return shown
