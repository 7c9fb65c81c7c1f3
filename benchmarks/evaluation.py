"""One task of lmms-eval in three ways: plain decoding, parallel decoding, and parallel decoding through the server.

It runs in an environment that has lmms-eval too. The samples of all ways must be the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.server_process import serving
from pvlm.cli.bundled import clips_folder
from pvlm.errors import PvlmError

TASK = "pvlm_shapes"
TASKS = Path(__file__).parents[1] / "examples" / "lmms_eval"
FRAMES = 32
"""lmms-eval's model ``openai`` always asks for a number of frames."""
THREADS = {"threads": 1, "draft_threads": 1}
SERVER = ("--threads", "1", "--draft-threads", "1")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
EVALUATION_S = 1800.0


class EvaluationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A way's scores by metric, and tokens per second: in decoding, and for ``server`` by the whole request."""

    way: str
    scores: dict[str, float]
    tokens_per_second: float
    samples: int
    same_answers: bool


def evaluate() -> list[EvaluationRow]:
    """Run the task in each way. Raises PvlmError if a run fails."""
    rows: list[EvaluationRow] = []
    expected: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pvlm-lmms-eval-") as folder:
        for way, model, arguments in _ways():
            out = Path(folder) / way
            _run(model, arguments, out)
            (results,), (samples,) = ([*out.rglob(f"*_{kind}")] for kind in ("results.json", f"samples_{TASK}.jsonl"))
            found = json.loads(results.read_text())
            answers = [json.loads(line)["filtered_resps"][0] for line in samples.read_text().splitlines()]
            expected = expected or answers
            scores = {name.partition(",")[0]: value for name, value in found["results"][TASK].items()
                      if isinstance(value, float) and "stderr" not in name}  # fmt: skip
            rows.append(
                EvaluationRow(
                    way=way,
                    scores=scores,
                    tokens_per_second=found["throughput"]["avg_speed"],
                    samples=len(answers),
                    same_answers=answers == expected,
                )
            )
    return rows


def _ways() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, lmms-eval's model, and its arguments."""
    for method in ("ar", "parallel"):
        yield method, "pvlm", {"method": method, "num_frames": FRAMES, "max_sessions": 1, **THREADS}
    with clips_folder() as clips, serving(*SERVER, "--allowed-local-media-path", str(clips)) as (url, _):
        asked = {"model_version": "bundled", "base_url": f"{url}/v1", "api_key": "none", "timeout": 60}
        yield "server", "openai", {**asked, "pass_video_url": True, "max_frames_num": FRAMES, "num_concurrent": 1}


def _run(model: str, arguments: Mapping[str, Any], out: Path) -> None:
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = [
        sys.executable, "-m", "lmms_eval", "eval", "--model", model, "--model_args", given, "--tasks", TASK,
        "--include_path", str(TASKS), "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    cache = {"HF_HOME": os.environ.get("HF_HOME", str(out.parent / "cache"))}
    environment = {**os.environ, **OFFLINE, **cache}
    done = subprocess.run(
        command, cwd=TASKS.parents[1], env=environment, capture_output=True, text=True, timeout=EVALUATION_S
    )
    if done.returncode or not out.exists():
        raise PvlmError(f"lmms-eval failed for {given}: {(done.stderr or done.stdout)[-2000:]}")
