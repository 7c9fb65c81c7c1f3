"""The small pair that tests use where a model must understand something: it knows drawn shapes, and is fast."""

from __future__ import annotations

from pathlib import Path

from pvlm.config import bundled

SMALL = Path(bundled("target")).parent
"""Its folder, with ``target`` and ``draft``."""
PAIR = {role: str(SMALL / role) for role in ("target", "draft")}
"""Both as settings of an engine."""
FLAGS = [f"--{role}={model}" for role, model in PAIR.items()]
"""Both as options of a command."""
