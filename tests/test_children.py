"""Children import what their parent imports, wherever they are started, and nothing of theirs is left behind."""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import pvlm
from pvlm.children import end_child, reached_limit, start_child

EMULATED = {"target": '{"pass_ms": 1}', "draft": '{"pass_ms": 1}', "backend": "emulated"}
pytestmark = pytest.mark.anyio
SHADOWS = ("queue", "numpy", "secrets", "pvlm")
PROBE = """
    import json, os, queue, secrets, sys
    import numpy, pvlm
    try:
        import plug_in
        beside = True
    except ModuleNotFoundError:
        beside = False
    modules = {module.__name__: module.__file__ for module in (queue, secrets, numpy, pvlm)}
    seen = {"modules": modules, "beside": beside, "argv": sys.argv, "directory": os.getcwd()}
    print(json.dumps({**seen, **os.environ}))
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a user's files that have the names of modules, and a plug-in."""
    folder, site = tmp_path / "user", tmp_path / "site"
    folder.mkdir()
    site.mkdir()
    for name in SHADOWS:
        importlib.import_module(name)  # this process has them already, as any that runs an engine
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user was executed')")
    (folder / "plug_in.py").touch()
    (site / "probe.py").write_text(textwrap.dedent(PROBE))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(folder)
    return folder


async def probed() -> dict[str, Any]:
    """What a child sees."""
    process = await start_child("probe", "--one", "two", stdout=subprocess.PIPE)
    try:
        said, complaint = await process.communicate()
        assert process.returncode == 0, complaint.decode()
        found: dict[str, Any] = json.loads(said)
    finally:
        await end_child(process)
    assert found["modules"] == {name: importlib.import_module(name).__file__ for name in SHADOWS}
    assert found["argv"][1:] == ["--one", "two"]
    return found


@pytest.mark.parametrize("place", [None, "", "."])
async def test_files_of_the_current_directory_shadow_nothing(
    hostile: Path, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ``python -P``, in a notebook, and with a relative path. A plug-in is found as by the parent."""
    if place is not None:
        monkeypatch.syspath_prepend(place)
    found = await probed()
    assert found["beside"] is (place is not None)
    assert "PVLM_PLACES" not in found


async def test_the_directory_of_the_script_shadows_nothing(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(hostile / "script.py"), raising=False)
    monkeypatch.syspath_prepend(str(hostile))
    monkeypatch.chdir("/")
    assert (await probed())["beside"]


async def test_the_environment_decides_nothing(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an empty one, nor one that puts the current directory on the path."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    assert (await probed())["PATH"] == os.defpath
    monkeypatch.setenv("PYTHONPATH", ":.:/no/such")
    assert not (await probed())["beside"]
    monkeypatch.setattr(sys, "executable", "")
    assert not (await probed())["beside"]


async def test_a_current_directory_that_is_deleted(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("")
    gone = hostile / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    found = await probed()
    assert not found["beside"]
    assert found["directory"] == "/"  # some libraries cannot be loaded in one that is deleted


def test_an_engine_in_a_hostile_place(hostile: Path) -> None:
    """Both workers and the decoder, without an environment."""
    clip = Path(pvlm.__file__).parent / "bundled" / "clips" / "one-scene.mp4"
    script = f"""
        import asyncio
        from pvlm import Engine

        async def main():
            async with Engine.create({EMULATED!r}) as engine:
                print((await engine.answer({str(clip)!r}, "?", max_tokens=3)).stats.new_tokens)

        asyncio.run(main())
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=hostile, env={}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["3"]


@pytest.mark.parametrize(("number", "said"), [(errno.EMFILE, "open files"), (errno.EAGAIN, "processes and threads")])
def test_a_limit_that_is_reached_is_named(number: int, said: str) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reason = reached_limit(OSError(number, os.strerror(number)))
    assert reason.startswith(os.strerror(number))
    assert said in reason
    assert number != errno.EMFILE or f"it is {soft}" in reason
    assert reached_limit(FileNotFoundError(errno.ENOENT, "No such file")) == "No such file"
