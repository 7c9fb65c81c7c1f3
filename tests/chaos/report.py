"""What `make chaos` has found: ``python -m tests.chaos.report`` prints it, and writes ``build/chaos.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path("build/chaos")


def main() -> None:
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    Path("build/chaos.json").write_text(json.dumps(found, indent=2) + "\n")
    for figures in found:
        sys.stdout.write(f"{figures['name']}: {figures['answers']}\n")
        for what in ("outcomes", "faults", "restarts", "reasons"):
            if figures[what]:
                counts = ", ".join(f"{times} {kind}" for kind, times in sorted(figures[what].items()))
                sys.stdout.write(f"    {what}: {counts}\n")
        if figures["restarts"]:
            sys.stdout.write(f"    continued with another target: {figures['recovered']}, ")
            sys.stdout.write(f"without a draft that was lost: {figures['without_draft']}\n")
        for wrong in figures["wrong"]:
            sys.stdout.write(f"    WRONG: {wrong}\n")


if __name__ == "__main__":
    main()
