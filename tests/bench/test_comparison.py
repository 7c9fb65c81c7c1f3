"""The comparison of all methods: the order of turns, and what the rows say. Speed is not tested here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from pvlm import EngineConfig, OptionError
from pvlm.bench.comparison import MethodRow, measure_methods, turns
from pvlm.bench.methods import Clip, Contender, Measurement, contenders
from tests.bench.conftest import CLIP, Script

FIGURES = [
    "method",
    "speedup_vs_ar",
    "speedup_vs_ar_all_cores",
    "tokens_per_second",
    "time_to_first_token_s",
    "prefill_s",
    "decode_s",
    "mean_accepted_length",
    "acceptance_rate",
    "window",
    "same_tokens",
    "peak_rss_mb",
]


async def measured(names: Sequence[str], clips: int = 1, rounds: int = 3) -> dict[str, MethodRow]:
    rows = await measure_methods(EngineConfig(), [CLIP] * clips, contenders(names), rounds=rounds, note="on two cores")
    return {row.method: row for row in rows}


@pytest.mark.anyio
async def test_methods_take_turns_and_the_first_round_does_not_count(script: Script) -> None:
    """On each clip every method is asked before the next clip, and each round starts one method further."""
    rows = await measured(["sd", "parallel"], clips=2, rounds=2)
    assert script.asked == [
        *("ar", "sd", "parallel") * 2,
        *("sd", "parallel", "ar") * 2,
        *("parallel", "ar", "sd") * 2,
    ]
    assert {(row.rounds, row.clips, row.tokens) for row in rows.values()} == {(2, 2, 6)}
    chosen = contenders(["sd", "parallel"])
    assert [turns(chosen, number)[0].name for number in range(4)] == ["ar", "sd", "parallel", "ar"]


@pytest.mark.anyio
async def test_a_row_has_the_figures(script: Script) -> None:
    script.decode_s |= {"sd": 0.5, "ar-all-cores": 0.8}
    rows = await measured(["sd", "ar-all-cores"])
    written = json.loads(msgspec.json.encode(rows["sd"]))
    assert set(FIGURES) <= set(written)
    assert {name: written[name] for name in FIGURES} == {
        "method": "sd",
        "speedup_vs_ar": 2.0,
        "speedup_vs_ar_all_cores": 1.6,
        "tokens_per_second": 6.0,
        "time_to_first_token_s": 1.0,
        "prefill_s": 1.0,
        "decode_s": 0.5,
        "mean_accepted_length": 4.0,
        "acceptance_rate": 0.8,
        "window": 3.0,
        "same_tokens": True,
        "peak_rss_mb": 10.0,
    }
    assert written["end_to_end_vs_ar"] == pytest.approx(2 / 1.5)
    assert written["note"] == "on two cores"
    assert rows["ar"].target_ms == {1: 8.0}
    assert rows["ar"].window is None


@pytest.mark.anyio
async def test_ratios_are_taken_within_a_round(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down from round to round changes no ratio, and one slow round not the median."""
    slowness = iter([1, 1, *[2] * 2, *[5] * 2, *[9] * 2])
    answer = script.answer

    async def slower(contender: Contender, clip: Clip) -> Measurement:
        measurement = await answer(contender, clip)
        return replace(measurement, decode_s=measurement.decode_s * next(slowness))

    monkeypatch.setattr(script, "answer", slower)
    script.decode_s["sd"] = 0.25
    row = (await measured(["sd"]))["sd"]
    assert row.speedup_vs_ar == 4.0
    assert row.speedup_vs_ar_quartiles == (4.0, 4.0)
    assert row.decode_s == 0.25 * 5


@pytest.mark.anyio
async def test_theory_is_that_of_the_method(script: Script) -> None:
    """c = 8, flat, and beta = 0.8: theorem 7 for parallel decoding, theorem 4 where draft and target take turns."""
    rows = await measured(["sd", "parallel", "parallel-no-pd", "assisted"])
    assert rows["parallel"].predicted == pytest.approx(8 * 5 / (2 + 8 + 0.8**3 / (1 - 0.8**8) * 8))  # gamma = 8, k = 2
    assert rows["sd"].predicted == rows["parallel-no-pd"].predicted == pytest.approx(2.27, abs=0.005)
    assert rows["parallel"].predicted_busy is not None
    assert rows["parallel"].predicted_busy < rows["parallel"].predicted * 0.9  # passes of 10 ms beside the draft
    assert rows["parallel"].predicted_busy > rows["parallel"].predicted * 0.8
    assert rows["sd"].predicted_busy is None
    assert rows["ar"].predicted is None
    assert rows["assisted"].predicted is None
    assert rows["parallel"].of_predicted == pytest.approx(1 / 2.68, abs=0.001)


@pytest.mark.anyio
async def test_other_tokens_are_noticed(script: Script) -> None:
    script.tokens["sd"] = (1, 2, 4)
    script.tokens["parallel"] = (1, 2)
    rows = await measured(["sd", "parallel", "generate"])
    assert {name: row.same_tokens for name, row in rows.items()} == {
        "ar": True,
        "sd": False,
        "parallel": False,
        "generate": True,
    }


@pytest.mark.anyio
async def test_a_lossy_method_is_compared_by_time_per_token(script: Script) -> None:
    """Its target sees a part of the video: here it writes two tokens more, of which the first is another one."""
    script.decode_s |= {"pruned-none": 0.8, "pruned-uv-10": 0.8}
    script.tokens |= {"pruned-uv-10": (1, 9, 3, 4, 5), "pruned-uv-50": (1, 2, 3)}
    rows = await measured(["pruned-uv", "ar-all-cores"])
    tenth, half = rows["pruned-uv-10"], rows["pruned-uv-50"]
    assert (tenth.lossy, tenth.same_tokens, tenth.exact_answers) == (True, True, 0.0)
    assert tenth.agreement == pytest.approx(2 / 5)
    assert tenth.decode_s == pytest.approx(0.4)  # four passes took 0.8 s, and the whole answer has two
    assert tenth.speedup_vs_ar == pytest.approx(2.0)
    assert tenth.speedup_vs_ar_all_cores is None
    assert (half.agreement, half.exact_answers) == (1.0, 1.0)
    assert not rows["pruned-none"].lossy
    assert rows["pruned-none"].speedup_vs_ar == pytest.approx(1.25)


@pytest.mark.anyio
async def test_a_lossy_method_gives_the_same_answer_in_every_round(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = script.answer

    async def restless(contender: Contender, clip: Clip) -> Measurement:
        script.tokens["pruned-uv-10"] = (len(script.asked),)
        return await answer(contender, clip)

    monkeypatch.setattr(script, "answer", restless)
    assert not (await measured(["pruned-uv"]))["pruned-uv-10"].same_tokens


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"max_tokens": 1}, {"clips": []}])
async def test_an_invalid_run(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"clips": [CLIP], **wrong}
    with pytest.raises(OptionError, match="at least|no clip"):
        await measure_methods(EngineConfig(), given.pop("clips"), contenders(["ar"]), **given)
