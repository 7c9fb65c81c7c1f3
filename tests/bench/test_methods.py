"""``pvlm bench`` and ``pvlm bench scaling``: who is measured, in which order, and what the rows say. No speed."""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from PIL import Image

from pvlm import ConfigError, EngineConfig, ModelError, OptionError
from pvlm.bench import comparison, scaling
from pvlm.bench.comparison import MethodRow, measure_methods, turns
from pvlm.bench.memory import peak_mb, reset_peak
from pvlm.bench.methods import CONTENDERS, Clip, Contender, Measurement, OpenContenders, contenders, read_clip
from pvlm.bench.peers import PeerModels, PeerProcess
from pvlm.bench.scaling import measure_scaling
from pvlm.cli import main
from pvlm.cli.bench.methods import conclusions
from pvlm.config import bundled
from pvlm_backends.hf import HuggingFaceBackend
from pvlm_protocols.backend import LoadOptions, Prompt

CLIPS = Path(bundled("clips"))
CLIP = Clip(np.zeros((2, 4, 4, 3), np.uint8), (0.0, 1.0), "?")
ROW_OF_THE_ISSUE = [
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


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Script:
    """Stands in for the models: what each method answers, how fast, and who was asked when."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.decode_s = dict.fromkeys(CONTENDERS, 1.0)
        self.tokens = dict.fromkeys(CONTENDERS, (1, 2, 3))

    def __call__(self, config: EngineConfig, chosen: Sequence[Contender], max_tokens: int) -> Script:
        return self

    async def __aenter__(self) -> Script:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @property
    def pair(self) -> Any:
        class Pair:
            models = {"target": type("Info", (), {"layers": 6})}  # noqa: RUF012

        return Pair

    async def answer(self, contender: Contender, clip: Clip) -> Measurement:
        self.asked.append(contender.name)
        drafted = contender.drafts
        return Measurement(
            tokens=self.tokens[contender.name],
            prefill_s=1.0,
            decode_s=self.decode_s[contender.name],
            first_token_s=1.0,
            peak_mb=10.0,
            windows=(4, 2) if drafted else (),
            accepted_tokens=4 if drafted else 0,
            rejected_tokens=1 if drafted else 0,
            target_pass_ms=8.0,
            target_passes_ms=((1, 10.0), (8, 10.0)),
            draft_token_ms=1.0 if drafted else None,
        )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()

    async def time_passes(passes: Any, stats_of: Any) -> None:
        passes.observe(1, 8.0)

    monkeypatch.setattr(comparison, "OpenContenders", script)
    monkeypatch.setattr(comparison, "time_passes", time_passes)
    monkeypatch.setattr(scaling, "OpenContenders", script)
    return script


async def measured(names: Sequence[str], clips: int = 1, rounds: int = 3) -> dict[str, MethodRow]:
    rows = await measure_methods(EngineConfig(), [CLIP] * clips, contenders(names), rounds=rounds, note="on two cores")
    return {row.method: row for row in rows}


# ---- who, and in which order --------------------------------------------------------------------------------------


def test_the_methods_of_the_issue() -> None:
    assert [contender.name for contender in contenders(CONTENDERS)] == list(CONTENDERS)
    assert [contender.name for contender in contenders(["sd"])] == ["ar", "sd"]
    with pytest.raises(OptionError, match="no method 'sdd' to measure: use some of ar, "):
        contenders(["sdd"])


def test_transformers_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvlm.bench.peers.find_spec", lambda name: None)
    assert len(contenders(["parallel"])) == 2
    for name in ("generate", "assisted", "prompt-lookup"):
        with pytest.raises(OptionError, match=r"pip install 'pvlm\[hf\]'"):
            contenders([name])


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


# ---- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_row_has_what_the_issue_names(script: Script) -> None:
    script.decode_s |= {"sd": 0.5, "ar-all-cores": 0.8}
    rows = await measured(["sd", "ar-all-cores"])
    written = json.loads(msgspec.json.encode(rows["sd"]))
    assert set(ROW_OF_THE_ISSUE) <= set(written)
    assert {name: written[name] for name in ROW_OF_THE_ISSUE} == {
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
@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"max_tokens": 1}, {"clips": []}])
async def test_a_run_that_cannot_be(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"clips": [CLIP], **wrong}
    with pytest.raises(OptionError, match="at least|no clip"):
        await measure_methods(EngineConfig(), given.pop("clips"), contenders(["ar"]), **given)


@pytest.mark.anyio
async def test_a_draft_that_is_missing_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="'sd' needs a draft"):
        async with OpenContenders(EngineConfig(draft=None), contenders(["sd"]), 8):
            pass


@pytest.mark.anyio
async def test_scaling_slows_short_videos_down_and_compares_tokens(script: Script) -> None:
    script.decode_s["parallel"] = 0.5
    rows = await measure_scaling(EngineConfig(), CLIPS / "one-scene.mp4", "?", frames=[16, 4], rounds=2)
    assert [row.frames for row in rows] == [4, 16]  # of the clip's six
    assert [row.same_tokens for row in rows] == [True, True]
    assert [(row.speedup_vs_ar, row.end_to_end_vs_ar, row.c) for row in rows] == [(2.0, pytest.approx(4 / 3), 8.0)] * 2
    script.tokens["parallel"] = (9,)
    rows = await measure_scaling(EngineConfig(), CLIPS / "one-scene.mp4", "?", frames=[4], rounds=1)
    assert [row.same_tokens for row in rows] == [False]
    with pytest.raises(OptionError, match="0 frames"):
        await measure_scaling(EngineConfig(), CLIPS / "one-scene.mp4", "?", frames=[0])


@pytest.mark.anyio
async def test_repeated_frames_are_in_order() -> None:
    six = await read_clip(EngineConfig(), CLIPS / "one-scene.mp4", "?")
    twelve = await read_clip(EngineConfig(), CLIPS / "one-scene.mp4", "?", 12, repeat=True)
    assert len(six.frames) == 6
    assert np.array_equal(twelve.frames, np.repeat(six.frames, 2, axis=0))
    assert twelve.timestamps_s == tuple(np.repeat(six.timestamps_s, 2))


# ---- memory, and transformers' loops ------------------------------------------------------------------------------


def test_the_peak_is_that_since_it_was_reset() -> None:
    own = [os.getpid()]
    reset_peak(own)
    before = peak_mb(own)
    block = mmap.mmap(-1, 40_000_000)  # memory of its own, not what was freed before
    np.frombuffer(block, np.uint8)[:] = 1
    with_block = peak_mb(own)
    assert 35 < with_block - before < 60
    block.close()
    assert peak_mb(own) == pytest.approx(with_block, abs=5)  # the kernel counts in batches
    reset_peak(own)
    assert peak_mb(own) < with_block - 30


@pytest.mark.anyio
async def test_the_assistant_sees_the_video() -> None:
    """It accepts what the same draft accepts in pvlm; blind, as transformers leaves it, it would have 0.5."""
    clip = await read_clip(EngineConfig(), CLIPS / "two-scenes.mp4", "Describe the video.")
    target, draft = (HuggingFaceBackend.load(LoadOptions(bundled(role))) for role in ("target", "draft"))
    prompt = Prompt(clip.question, clip.frames)
    alone = target.generate(prompt, 120)
    assisted = target.generate(prompt, 120, assistant=draft)
    looked_up = target.generate(prompt, 120, lookup_tokens=10)
    assert assisted.tokens == looked_up.tokens == alone.tokens
    assert alone.target_passes == len(alone.tokens)
    assert alone.windows == ()
    assert assisted.target_passes < len(alone.tokens) / 4
    assert assisted.accepted_tokens / (assisted.accepted_tokens + assisted.rejected_tokens) > 0.85
    assert looked_up.target_passes < len(alone.tokens)
    assert assisted.prefill_s < assisted.first_token_s
    assert draft.generate(prompt, 4).tokens  # it has been left as it was


@pytest.mark.anyio
async def test_a_peer_that_cannot_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing-here"):
        async with PeerProcess(PeerModels(str(tmp_path / "nothing-here"), None), [0]):
            pass


@pytest.mark.anyio
async def test_a_peer_that_dies_is_told() -> None:
    async with PeerProcess(PeerModels(bundled("draft"), None), sorted(os.sched_getaffinity(0))[:1]) as peer:
        assert len(os.sched_getaffinity(peer.process)) == 1
        os.kill(peer.process, signal.SIGKILL)
        with pytest.raises(ModelError, match="has ended"), anyio.fail_after(30):
            await peer.answer("generate", Prompt("?"), 2)


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


# ---- the commands -------------------------------------------------------------------------------------------------


def test_a_tiny_run_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real models in worker processes, with a peer; the command gives a table, rows and a picture."""
    rows_file, picture = tmp_path / "rows.json", tmp_path / "speed.png"
    command = ["bench", "--videos", str(CLIPS / "one-scene.mp4"), "--rounds", "1", "--max-tokens", "12"]
    command += [
        "--methods",
        "ar-all-cores",
        "specvlm",
        "parallel-no-pp",
        "parallel-no-pd",
        "assisted",
        "--note",
        "on two cores",
    ]
    assert main([*command, "--json", str(rows_file), "--plot", str(picture)]) == 0
    rows = json.loads(rows_file.read_text())
    names = ["ar", "ar-all-cores", "specvlm", "parallel-no-pp", "parallel-no-pd", "assisted"]
    assert [row["method"] for row in rows] == names
    assert all(set(ROW_OF_THE_ISSUE) <= set(row) for row in rows)
    assert all(row["same_tokens"] and row["tokens"] == 12 for row in rows)
    assert {(row["target_layers"], row["note"]) for row in rows} == {(6, "on two cores")}
    assert all(row["peak_rss_mb"] > 100 for row in rows)
    assert rows[2]["peak_rss_mb"] > rows[0]["peak_rss_mb"] + 100  # the draft's process
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*names, "same tokens", "on two cores"])
    assert min(size_of(picture)) > 300


def test_a_tiny_scaling_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_file, picture = tmp_path / "rows.json", tmp_path / "scaling.png"
    command = ["bench", "scaling", "--frames", "2", "8", "--rounds", "1", "--max-tokens", "24"]
    assert main([*command, "--json", str(rows_file), "--plot", str(picture)]) == 0
    rows = json.loads(rows_file.read_text())
    assert [(row["frames"], row["video_tokens"], row["same_tokens"]) for row in rows] == [(2, 32, True), (8, 128, True)]
    assert "frames" in capsys.readouterr().out
    assert min(size_of(picture)) > 300


@pytest.fixture
def rows() -> list[MethodRow]:
    given: dict[str, Any] = {
        **dict.fromkeys(MethodRow.__struct_fields__),
        **dict.fromkeys(["tokens_per_second", "time_to_first_token_s", "prefill_s", "decode_s", "peak_rss_mb"], 1.0),
        **dict.fromkeys(["tokens", "clips", "rounds"], 1),
        "note": "on two cores",
        "speedup_vs_ar_quartiles": (1.0, 1.0),
        "end_to_end_vs_ar": 1.0,
        "same_tokens": True,
    }
    speeds = {"ar": 1.0, "sd": 2.0, "parallel": 3.0, "generate": 0.5}
    return [MethodRow(**{**given, "method": name, "speedup_vs_ar": speed}) for name, speed in speeds.items()]


def test_the_conclusions(rows: list[MethodRow]) -> None:
    rows[2] = msgspec.structs.replace(rows[2], predicted=4.0, speedup_vs_ar_all_cores=1.5)
    lines = conclusions(rows)
    assert lines[0] == "parallel: 3.00× plain decoding, 1.50× plain decoding on all cores; " + (
        "0.750 of theorem 7, which says 4.00×"
    )
    assert lines[1] == "parallel decodes faster than sd 1.50×, generate 6.00×"
    assert "on two cores" in lines


def test_other_tokens_are_an_exit_status(
    rows: list[MethodRow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measured(*_: object, **__: object) -> list[MethodRow]:
        return rows

    monkeypatch.setattr("pvlm.cli.bench.methods.measure_methods", measured)
    assert main(["bench"]) == 0
    rows[1] = msgspec.structs.replace(rows[1], same_tokens=False)
    assert main(["bench"]) == 1
    assert "NO" in capsys.readouterr().out


def test_bad_options_are_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--methods", "sdd"])
    assert "invalid choice: 'sdd'" in capsys.readouterr().err
    assert main(["bench", "--plot", "speed.gif"]) == 1
    assert "must end in .png" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "scaling", "--plot", "speed.png"]) == 1
    assert "pvlm[plot]" in capsys.readouterr().err
