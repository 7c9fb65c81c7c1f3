"""The lanes of draft and target in the terminal."""

from __future__ import annotations

from pvlm.cli.lanes import lanes
from pvlm.trace.timeline import Cell, Slice, State, Timeline


def cells(*states: State) -> tuple[Cell, ...]:
    return tuple(Cell(token=1, text="a", state=state) for state in states)


LINE = Timeline(
    rows=("draft", "target"),
    slices=(
        Slice(row="target", kind="prefill", begin_ms=0.0, end_ms=100.0),
        Slice(row="target", kind="pass", begin_ms=100.0, end_ms=140.0, start=0, cells=cells("accepted")),
        Slice(row="draft", kind="window", begin_ms=100.0, end_ms=160.0, start=1, cells=cells("accepted", "rejected")),
        Slice(row="target", kind="pass", begin_ms=160.0, end_ms=200.0, start=1, cells=cells("corrected")),
    ),
    marks=(),
    arrows=(),
    decoding_ms=100.0,
    end_ms=200.0,
)


def test_each_actor_has_a_lane_from_the_first_pass_on() -> None:
    draft, target, span, legend = lanes(LINE, columns=10, unicode=True).plain.split("\n")
    assert draft == "draft   ███░░░····"
    assert target == "target  ████··████"
    assert span.strip() == "100 ms, 2 passes of the target"
    assert legend.split() == ["█", "draft,", "accepted", "░", "rejected", "█", "target", "·", "idle"]


def test_a_terminal_without_unicode_gets_letters() -> None:
    shown = lanes(LINE, columns=10, unicode=False).plain
    assert shown.isascii()
    assert "draft   ###xxx...." in shown


def test_without_a_pass_there_is_nothing_to_show() -> None:
    empty = Timeline(rows=("target",), slices=(), marks=(), arrows=(), decoding_ms=0.0, end_ms=0.0)
    assert lanes(empty, unicode=True).plain == ""
