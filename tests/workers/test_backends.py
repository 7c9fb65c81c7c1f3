"""``auto`` runs a model with the fastest plug-in that can run it, and says why a faster one cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from pvlm import Engine
from pvlm.cli.doctor import automatic_backend
from pvlm.workers.backends import choose_backend
from pvlm_backends.native import library
from pvlm_protocols.backend import LoadOptions
from tests.backends.families.qwen3_vl.checkpoint import qwen3_checkpoint
from tests.support.native import NATIVE, NOT_NATIVE
from tests.support.pair import PAIR

DRAFT = PAIR["draft"]


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CC", "no-such-compiler")
    library.kernels.cache_clear()
    yield
    library.kernels.cache_clear()


@pytest.mark.skipif(not NATIVE, reason=NOT_NATIVE)
def test_native_is_chosen_where_it_can_run_the_model(tmp_path: Path) -> None:
    """Of the Qwen2 kind and of the Qwen3 kind."""
    for model in (DRAFT, str(qwen3_checkpoint(tmp_path / "qwen3"))):
        assert choose_backend("auto", LoadOptions(model))[::2] == ("native", "")
    assert automatic_backend() == "native"


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device": "meta"}, {"device": "cpu:0,cpu:1"}])
def test_torch_is_chosen_for_other_dtypes_and_devices(options: dict[str, str]) -> None:
    name, _, reason = choose_backend("auto", LoadOptions(DRAFT, **options))  # type: ignore[arg-type]
    assert name == "torch"
    assert "computes in float32 on the CPU" in reason


@pytest.mark.usefixtures("_no_compiler")
def test_the_doctor_says_what_is_missing() -> None:
    found = automatic_backend()
    assert found.startswith("torch: ")
    assert "no C compiler (no-such-compiler)" in found or "x86-64 processor" in found


def test_a_name_is_taken_as_it_is() -> None:
    assert choose_backend("torch", LoadOptions(DRAFT))[::2] == ("torch", "")


@pytest.mark.anyio
@pytest.mark.usefixtures("_no_compiler")
async def test_each_worker_says_what_it_chose() -> None:
    """In its log line, in the statistics, and in the facts of its model."""
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    one_thread: dict[str, Any] = {"transport": "inproc", "threads": 1, "draft_threads": 1}
    with capture_logs() as logs:
        async with Engine.create(PAIR, **one_thread, draft_backend="torch") as engine:
            answer = await engine.answer(frames, "What happens?", max_tokens=4)
            alone = await engine.answer(frames, "What happens?", max_tokens=4, method="ar")
            models = engine.models
    assert (answer.stats.target_backend, answer.stats.draft_backend) == ("torch", "torch")
    assert alone.stats.draft_backend is None
    assert {role: info.backend for role, info in models.items()} == {"target": "torch", "draft": "torch"}
    assert "backend 'native'" in models["target"].backend_reason
    assert models["draft"].backend_reason == ""
    told = {line["role"]: (line["backend"], line["reason"]) for line in logs if line["event"] == "worker_ready"}
    assert told == {role: (info.backend, info.backend_reason) for role, info in models.items()}
