"""Models that fail to load: a ModelError says what is wrong where, caused by the worker's traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pvlm import Engine, ModelError, RemoteTraceback, VideoError
from pvlm.config import bundled
from pvlm.video import read_video
from pvlm_protocols.backend import FrameDefaults
from tests.support.pair import PAIR
from tests.support.processes import children, descriptors_left
from tests.workers.conftest import pending_tasks
from tests.workers.remote_workers import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_nothing_left", "_toys")]


async def failed(**settings: object) -> ModelError:
    """The error of opening an engine; nothing runs afterwards."""
    tasks = pending_tasks()
    with pytest.raises(ModelError) as caught:
        async with Engine.create(**settings):
            raise AssertionError
    assert children() == []
    assert pending_tasks() == tasks
    return caught.value


@pytest.mark.parametrize("role", ["target", "draft"])
async def test_a_path_that_is_not_there(role: str) -> None:
    error = await failed(**{**PAIR, role: "/no/such/model"})
    assert f"cannot load the {role} '/no/such/model'" in str(error)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A checkpoint whose text half is whole, so that only the worker can find the damage."""
    folder = tmp_path / "damaged"
    shutil.copytree(PAIR["draft"], folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    return folder


@pytest.mark.parametrize("where", ["ipc", "inproc"])
async def test_damaged_weights_have_the_remote_traceback_as_their_cause(damaged: Path, where: str) -> None:
    error = await failed(target=str(damaged), transport=where)
    assert f"cannot load the target '{damaged}'" in str(error)
    assert "model.safetensors" in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "Traceback (most recent call last)" in str(error.__cause__)
    assert "CheckpointError" in str(error.__cause__)


async def test_a_damaged_draft_does_not_leave_the_target_running(damaged: Path) -> None:
    error = await failed(target=PAIR["target"], draft=str(damaged))
    assert f"cannot load the draft '{damaged}'" in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)


async def test_weights_that_are_missing(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(PAIR["draft"], folder)
    (folder / "model.safetensors").unlink()
    error = await failed(target=str(folder), transport="inproc")
    assert str(folder) in str(error)


async def test_a_device_that_is_not_there() -> None:
    error = await failed(target=PAIR["draft"], device="cuda:77", transport="inproc")
    assert "cuda" in str(error)


@pytest.mark.parametrize(
    "settings", [{"transport": "ipc"}, {"transport": "tcp"}, {"target_listen": "tcp://127.0.0.1:"}]
)
@pytest.mark.parametrize("left", [1, 6])
async def test_a_limit_of_the_system_is_named(settings: dict[str, str], left: int) -> None:
    if "target_listen" in settings:
        settings = {"target_listen": f"{settings['target_listen']}{free_port()}"}
    engine = Engine.create(backend="emulated", target='{"pass_ms": 1}', method="ar", **settings)
    with descriptors_left(left) as limit, pytest.raises(ModelError, match=rf"\(ulimit -n\) is reached; it is {limit}"):
        await engine.__aenter__()
    assert children() == []


async def test_a_video_for_which_no_descriptor_is_left() -> None:
    clip = Path(bundled("clips")) / "one-scene.mp4"
    with descriptors_left(2) as limit, pytest.raises(VideoError, match=rf"ulimit -n.* it is {limit}"):
        await read_video(str(clip), num_frames=1, fps=None, start=None, end=None, defaults=FrameDefaults())


@pytest.mark.parametrize(
    ("role", "model", "said", "traceback"),
    [
        ("target", "memory", "cannot allocate 144 GiB", "MemoryError"),
        ("draft", "package", "No module named 'no_such_package'", "ModuleNotFoundError"),
        ("draft", "info", "backend 'broken' says of its model what cannot be: Expected `int` >= 1", "ModelError"),
        (
            "target",
            "exit",
            "was lost while it loaded: exit status 3; its last output was:\nthe driver is too old",
            None,
        ),
    ],
)
async def test_a_worker_that_cannot_start_fails_the_opening(
    role: str, model: str, said: str, traceback: str | None
) -> None:
    pair = {"target": "0", "draft": model} if role == "draft" else {"target": model, "draft": None}
    error = await failed(backend="broken", **pair)
    assert said in str(error)
    assert f"{role}" in str(error)
    if traceback is not None:
        assert isinstance(error.__cause__, RemoteTraceback)
        assert traceback in str(error.__cause__)


async def test_a_worker_that_hangs_while_it_loads_is_given_up_in_time() -> None:
    error = await failed(backend="broken", target="hang", draft=None, start_timeout_s=1.5)
    assert "was not loaded within 1.5 s (start_timeout_s)" in str(error)
