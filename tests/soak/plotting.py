"""A soak as a picture: resident memory and file descriptors of each process over time, and when workers were killed."""

from __future__ import annotations

from pathlib import Path

from pvlm.cli.plotting import new_figure, plain_panel
from tests.soak.soak import Report
from tests.soak.watching import MEGABYTE, Sample

COLOURS = {"host": "#444444", "target": "#1f5fa8", "draft": "#d07c2e"}


def plot(report: Report, path: Path) -> None:
    figure = new_figure(9.0, 5.2)
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for panel, name in zip(panels, ("resident memory in MB", "file descriptors"), strict=True):
        plain_panel(panel)
        panel.set_title(name, loc="left", fontsize=9)
        for role, colour in COLOURS.items():
            label: str | None = role
            for samples in lives(report.samples, role):
                minutes = [sample.at_s / 60 for sample in samples]
                resident = [sample.resident / MEGABYTE for sample in samples]
                values = resident if panel is panels[0] else [sample.descriptors for sample in samples]
                panel.plot(minutes, values, color=colour, marker=".", markersize=3, linewidth=1, label=label)
                label = None
        for role, killed in report.kills.items():
            for at_s in killed:
                panel.axvline(at_s / 60, color=COLOURS[role], linewidth=0.5, alpha=0.5)
        panel.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8, ncols=3, loc="lower right")
    panels[1].set_xlabel("minutes; a vertical line: a worker was killed", fontsize=9)
    figure.savefig(path, format="png", dpi=160)


def lives(samples: list[Sample], role: str) -> list[list[Sample]]:
    """The samples of a role, process by process."""
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.role == role:
            found.setdefault(sample.pid, []).append(sample)
    return list(found.values())
