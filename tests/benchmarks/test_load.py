"""The callers of the measurement under load, at an application on toy models in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import Case, Tally, call_all
from tests.serving.conftest import SLOW, asking, serving
from tests.support.plugin import toy_plugin


@pytest.fixture(autouse=True)
def _toys(tmp_path: Path) -> Iterator[None]:
    with toy_plugin(tmp_path / "site"):
        yield


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_callers_end_with_the_answer_or_leave() -> None:
    async with serving({**SLOW, "max_sessions": 2, "max_waiting": 6}) as (client, engine, app):
        text = (await engine.answer(None, "Why?", max_tokens=8)).text
        cases = [Case(asking("Why?", max_tokens=8), text), Case(asking("Why?", max_tokens=8), "another")]
        tally = Tally()
        await call_all(str(client.base_url), cases, 16, 1 / 4, 3, tally)
        assert app.state.workload.requests == 0
    assert len(tally.ends) == 16
    assert tally.ends.count("left") > 0
    assert tally.ends.count("exact") > 0
    assert tally.refused > 0
    assert 0 < len(tally.first_tokens_s) < 16
    assert tally.ends.count("wrong") > 0
