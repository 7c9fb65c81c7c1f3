"""``python -m tests.soak``: see `make soak`.

That sets ``MALLOC_MMAP_THRESHOLD_`` to what glibc begins with, which keeps glibc from raising it: else it learns to
hold on to blocks that were freed, up to 32 MiB each, and what is resident at rest is a matter of chance, by a tenth.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import anyio
import msgspec
import structlog

from tests.soak.soak import Plan, Report, soak

MOST_GROWTH = 0.02


def main() -> int:
    """Exit status 1 if an answer was wrong, or something has leaked or grown."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="directory for soak.json and soak.png")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    seconds = 60 * options.minutes
    plan = Plan(seconds=seconds, seed=options.seed, host_warm_up_s=min(300.0, seconds / 3))
    report = anyio.run(soak, plan)
    from tests.soak.plotting import plot  # here, for it takes more memory than all that is watched

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    plot(report, options.out / "soak.png")
    problems = faults_of(report)
    print("\n".join(summary(report)))
    print("\n".join(problems) or "nothing was wrong, nothing has leaked, nothing has grown")
    return 1 if problems else 0


def summary(report: Report) -> list[str]:
    kills = ", ".join(f"{len(when)} of the {role}" for role, when in report.kills.items())
    restarts = ", ".join(f"{count} of the {role}" for role, count in report.restarts.items())
    lines = [
        f"{report.seconds / 60:.1f} minutes, seed {report.seed}: {report.answers} answers, "
        f"{sum(report.compared.values())} compared with their reference",
        f"kills: {kills}; restarts: {restarts}",
        *(f"  {count:6} {outcome}" for outcome, count in report.outcomes.items()),
        *(f"  {count:6} {fault}" for fault, count in report.faults.items()),
    ]
    for role in ("host", "target", "draft"):
        if grown := [one for one in report.growth if one.role == role]:
            most, lived = max(one.resident for one in grown), max(one.seconds for one in grown)
            descriptors = max(one.descriptors for one in grown)
            lines.append(
                f"{role}: memory has grown by at most {most:.2%} after the warm-up, descriptors by {descriptors} "
                f"({len(grown)} processes that lived long enough, the longest for {lived / 60:.1f} minutes)"
            )
    return lines


def faults_of(report: Report) -> list[str]:
    """What must not be."""
    grown = [
        f"the {one.role} {one.pid} has grown by {one.resident:.2%} and {one.descriptors} descriptors in "
        f"{one.seconds:.0f} s"
        for one in report.growth
        if one.resident >= MOST_GROWTH or one.descriptors > 0
    ]
    return [*report.wrong, *report.leaked, *grown]


if __name__ == "__main__":
    sys.exit(main())
