"""The page, in a browser: what it shows, and that one can look around in it."""

from __future__ import annotations

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvlm import Engine
from pvlm.trace import Trace
from pvlm.trace.timeline import timeline
from shapes.clips import write_clip
from tests.trace.conftest import FRAMES, TOY, traced

pytestmark = pytest.mark.anyio

QUESTION = "</script><b>bold</b> & {{style}} \u2028 <!-- "
COLOURS = {"accepted": (0x16, 0x86, 0x6A), "corrected": (0xC4, 0x47, 0x0A), "prefill": (0xA7, 0x9F, 0xCA)}


def spans(dom: str) -> list[str]:
    """The states of the answer's pieces."""
    return re.findall(r'<span class="piece (\w+)[^"]*"', dom)


def driven(page: Path, script: str) -> str:
    """The address of a copy of the page with a script after its own; what that finds goes into ``result``."""
    copy = page.with_name("driven.html")
    code = f'<pre id="result"></pre><script>const result = document.getElementById("result");\n{script}</script>'
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{code}</body>"), encoding="utf-8")
    return copy.as_uri()


def result(dom: str) -> str:
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    return found[1]


async def test_the_page_shows_who_wrote_what_and_every_slice(chromium: Callable[..., str], tmp_path: Path) -> None:
    answer, trace = await traced(QUESTION)
    page, *_ = trace.write(tmp_path)
    dom = chromium(page.as_uri())
    states = {"d": "accepted", "c": "corrected", "t": "alone"}
    assert spans(dom) == [states[origin] for origin in answer.stats.origins]
    assert Counter(spans(dom))["accepted"] == answer.stats.accepted_tokens > 0
    line = timeline(trace.recording())
    assert len(re.findall(r'data-number="\d+"', dom)) == len(line.slices)
    assert len(re.findall(r'data-mark="\d+"', dom)) == len(line.marks)
    heading = re.search(r'<h1 id="question">(.*?)</h1>', dom, re.DOTALL)
    assert heading is not None
    assert heading[1] == QUESTION.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"{answer.stats.target_passes} of " in dom


async def test_the_page_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    _, trace = await traced()
    text = trace.write(tmp_path)[0].read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)|@import|url\((?!#)|fetch\(|XMLHttpRequest""", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


async def test_the_page_looks_like_something(chromium: Callable[..., str], tmp_path: Path) -> None:
    """A screenshot in which the colours of the timeline have their places."""
    _, trace = await traced(target="0@2", draft="1.0@1")
    page, *_ = trace.write(tmp_path)
    chromium(page.as_uri(), screenshot=tmp_path / "page.png")
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert picture.shape == (800, 1400, 3)
    for state, colour in COLOURS.items():
        assert (picture == colour).all(axis=-1).sum() > 400, state


async def test_one_can_zoom_move_and_point(chromium: Callable[..., str], tmp_path: Path) -> None:
    _, trace = await traced()
    page, *_ = trace.write(tmp_path)
    line = timeline(trace.recording())
    script = """
    const shown = () => svg.querySelectorAll("[data-number]").length;
    const say = (...words) => result.append(words.join(" ") + "\\n");
    const box = svg.getBoundingClientRect();
    const fire = (type, kind, options) =>
      svg.dispatchEvent(new kind(type, { bubbles: true, cancelable: true, clientY: box.top + 60, ...options }));
    say(shown());
    fire("wheel", WheelEvent, { deltaY: -900, clientX: box.right - 100 });
    fire("wheel", WheelEvent, { deltaY: -900, clientX: box.right - 100 });
    say(shown(), view.from > 0, location.hash !== "");
    const before = view.from;
    svg.setPointerCapture = () => {};
    fire("pointerdown", PointerEvent, { clientX: 300 });
    fire("pointermove", PointerEvent, { clientX: 400 });
    fire("pointerup", PointerEvent, { clientX: 400 });
    say(view.from < before);
    document.getElementById("whole").click();
    say(shown(), location.hash === "");
    const number = slices.findIndex((piece) => piece.kind === "pass" && piece.cells.length > 1);
    const pass = svg.querySelector(`[data-number="${number}"]`);
    pass.dispatchEvent(new PointerEvent("pointerenter", { clientX: 300, clientY: 300 }));
    say(slices[number].cells.length, document.querySelectorAll("#answer .lit").length);
    say(tip.textContent);
    """
    told = result(chromium(driven(page, script))).splitlines()
    whole = len(line.slices)
    assert told[0] == str(whole)
    zoomed, moved, addressed = told[1].split()
    assert (int(zoomed) < whole, moved, addressed) == (True, "true", "true")
    assert told[2] == "true"
    assert told[3] == f"{whole} true"
    lit = told[4].split()
    assert lit[0] == lit[1] != "0"
    assert told[5].startswith("pass of the target: ")


async def test_the_address_holds_a_view(chromium: Callable[..., str], tmp_path: Path) -> None:
    _, trace = await traced(target="0@2", draft="0.5@1")
    page, *_ = trace.write(tmp_path)
    line = timeline(trace.recording())
    begin, end = line.decoding_ms, (line.decoding_ms + line.end_ms) / 2
    inside = [piece for piece in line.slices if piece.end_ms >= begin and piece.begin_ms <= end]
    dom = chromium(f"{page.as_uri()}#{begin:.6f}-{end:.6f}")
    assert len(re.findall(r'data-number="\d+"', dom)) == pytest.approx(len(inside), abs=1) != len(line.slices)


async def test_the_target_alone_has_a_page_too(chromium: Callable[..., str], tmp_path: Path) -> None:
    answer, trace = await traced(method="ar")
    page, *_ = trace.write(tmp_path)
    dom = chromium(page.as_uri())
    assert spans(dom) == ["alone"] * answer.stats.new_tokens
    assert ">target</text>" in dom
    assert ">draft</text>" not in dom


async def test_text_behind_a_stop_string_is_struck_out(chromium: Callable[..., str], tmp_path: Path) -> None:
    whole, _ = await traced()
    stop = whole.text[10]
    answer, trace = await traced(stop=stop)
    dom = chromium(trace.write(tmp_path)[0].as_uri())
    pieces = re.findall(r'<span class="piece \w+( cut)?"[^>]*>(.)</span>', dom)
    assert "".join(text for cut, text in pieces if not cut) == answer.text
    assert [text for cut, text in pieces if cut] == [stop]


async def test_the_page_names_video_settings_and_date_and_shows_all_times(
    chromium: Callable[..., str], tmp_path: Path
) -> None:
    video = tmp_path / "holiday.mp4"
    write_clip(video, FRAMES)
    trace = Trace()
    engine = Engine.create(**TOY, threads=1)
    answer = await engine.answer(video, "What?", trace=trace, max_tokens=8, window=4)
    page, _, sheet = trace.write(tmp_path)
    dom = chromium(page.as_uri())
    about = re.search(r'<p id="about">(.*?)</p>', dom)
    assert about is not None
    name, date, *settings = about[1].split("  ·  ")
    assert name == "holiday.mp4"
    assert datetime.strptime(date, "%Y-%m-%d %H:%M:%S %z") <= datetime.now().astimezone()
    assert {"backend toy", "transport inproc", "threads 1", "max_tokens 8", "window 4"} == set(settings)
    assert answer.stats.startup_s > 0
    assert f"start-up {answer.stats.startup_s:.3f} s" in dom
    assert b64encode(sheet.read_bytes()).decode() in dom


async def test_a_question_about_no_video_has_a_page_without_frames(tmp_path: Path) -> None:
    trace = Trace()
    async with Engine.create(**TOY) as engine:
        await engine.answer(None, "What?", trace=trace, max_tokens=8)
    assert [path.name for path in trace.write(tmp_path)] == ["timeline.html", "timeline.json"]
