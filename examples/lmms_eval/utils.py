"""Functions of the task in pvlm_shapes.yaml. lmms-eval finds them by the name of this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CLIPS = Path(__file__).parents[2] / "pvlm" / "bundled" / "clips"


def doc_to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """A question about a clip."""
    video = {"type": "video", "url": str(CLIPS / doc["file"])}
    return [{"role": "user", "content": [video, {"type": "text", "text": doc["question"]}]}]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the exact answer, else 0."""
    return {"exact_match": float(results[0].strip() == doc["answer"])}
