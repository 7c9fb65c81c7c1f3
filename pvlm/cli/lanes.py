"""What draft and target did over time, as two lanes of characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from pvlm.trace.timeline import Slice, Timeline
    from pvlm_protocols.backend import Role

ACCEPTED, REJECTED, PASS, IDLE = ("█", "green"), ("░", "red"), ("█", "cyan"), ("·", "dim")
PLAIN = {"█": "#", "░": "x", "·": "."}
"""Where the terminal shows ASCII alone."""
PASSES = 12
"""Passes of the target that are shown."""


def lanes(timeline: Timeline, columns: int = 60, *, unicode: bool) -> Text:
    """Both lanes from the first token on, each ``columns`` wide. A column is what an actor did in its middle."""
    from rich.text import Text

    decoding = [piece for piece in timeline.slices if piece.begin_ms >= timeline.decoding_ms]
    passes = [piece for piece in decoding if piece.kind == "pass"][:PASSES]
    if not passes:
        return Text()
    begin_ms, end_ms = passes[0].begin_ms, passes[-1].end_ms
    column_ms = (end_ms - begin_ms) / columns
    signs = {} if unicode else PLAIN
    text = Text()
    for role in timeline.rows:
        text.append(f"{role:<8}")
        for column in range(columns):
            sign, style = _looks(decoding, role, begin_ms + (column + 0.5) * column_ms)
            text.append(signs.get(sign, sign), style)
        text.append("\n")
    text.append(f"{'':<8}{end_ms - begin_ms:.0f} ms, {len(passes)} passes of the target\n{'':<8}")
    for (sign, style), what in (
        (ACCEPTED, "draft, accepted"),
        (REJECTED, "rejected"),
        (PASS, "target"),
        (IDLE, "idle"),
    ):
        text.append(signs.get(sign, sign), style)
        text.append(f" {what}  ")
    return text


def _looks(slices: list[Slice], role: Role, at_ms: float) -> tuple[str, str]:
    for piece in slices:
        if piece.row == role and piece.begin_ms <= at_ms < piece.end_ms:
            if piece.kind == "pass":
                return PASS
            if piece.kind == "window" and piece.cells:
                share = (at_ms - piece.begin_ms) / (piece.end_ms - piece.begin_ms)
                cell = piece.cells[int(share * len(piece.cells))]
                return REJECTED if cell.state in ("rejected", "unused") else ACCEPTED
            if piece.kind in ("window", "stopped"):
                return REJECTED
    return IDLE
