"""The small pair that tests use where a model must understand something: it knows drawn shapes, and is fast.

Its target is the draft of the bundled pair; its own draft is smaller still, and is not shipped.
"""

from __future__ import annotations

from pathlib import Path

SMALL = Path(__file__).parents[1] / "pair"
"""Its folder, with ``target`` and ``draft``."""
PAIR = {role: str(SMALL / role) for role in ("target", "draft")}
"""Both as settings of an engine."""
FLAGS = [f"--{role}={model}" for role, model in PAIR.items()]
"""Both as options of a command."""
