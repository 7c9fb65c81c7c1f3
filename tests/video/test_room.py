"""Room for decoded frames, and progress while they are read."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import anyio
import pytest
from conftest import FILES, Read, children

from pvlm.errors import OptionError, VideoError
from pvlm.video import Room
from pvlm.video.conversation import Listener, Reporter

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]

FRAME = 96 * 160 * 3


async def test_room_is_taken_until_the_lease_is_left(read: Read) -> None:
    room = Room(30 * FRAME)
    with room.lease() as lease:
        video = await read(FILES / "live.webm", num_frames=4, lease=lease)
        assert room.taken_bytes == 4 * FRAME
    assert room.taken_bytes == 0
    assert video.without_frames().frames.shape == (0, 96, 160, 3)


async def test_a_wait_for_room_does_not_count_for_the_time_limit() -> None:
    room = Room(10)
    await room.take(10)
    ours, theirs = socket.socketpair()
    reporter = Reporter(theirs.detach())
    with ours, anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                with anyio.CancelScope(deadline=anyio.current_time() + 0.3) as limit:
                    await Listener(ours, room.lease(), None).listen(limit)
                assert not limit.cancelled_caught

            tasks.start_soon(listen)
            asked = threading.Thread(target=reporter.ask_for, args=(4,))
            asked.start()
            await anyio.sleep(0.6)
            assert asked.is_alive()
            room.give_back(10)
            await anyio.to_thread.run_sync(asked.join)
            assert room.taken_bytes == 4
            reporter.close()


async def test_first_come_first_served() -> None:
    room, order = Room(10), []
    await room.take(8)

    async def one(name: str, size: int) -> None:
        await room.take(size)
        order.append(name)

    async with anyio.create_task_group() as tasks:
        for name, size in (("large", 9), ("left", 10), ("small", 1)):
            scope = anyio.CancelScope()

            async def waiting(name: str = name, size: int = size, scope: anyio.CancelScope = scope) -> None:
                with scope:
                    await one(name, size)

            tasks.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            if name == "left":
                left = scope
        assert order == []  # the small one would have fitted
        left.cancel()
        room.give_back(8)
    assert order == ["large", "small"]
    assert room.taken_bytes == 10
    with pytest.raises(OptionError, match="11 bytes of frames are more than all videos may take: 10"):
        await room.take(11)


async def test_a_wait_for_room_that_is_cancelled_leaves_nothing(read: Read) -> None:
    room = Room(4 * FRAME)
    await room.take(FRAME)
    with anyio.move_on_after(1):
        await read(FILES / "live.webm", num_frames=4, lease=room.lease())
    assert room.taken_bytes == FRAME
    assert not children()


@pytest.mark.parametrize("reader", ["Failing", "Crashing", "Short"])
async def test_a_failure_gives_the_room_back(read: Read, videos: Path, reader: str) -> None:
    room = Room()
    with pytest.raises(VideoError), room.lease() as lease:
        await read(videos / "plain.mp4", reader=f"fake_readers:{reader}", lease=lease)
    assert room.taken_bytes == 0


async def test_a_video_larger_than_all_room_is_refused_before_a_frame_is_decoded(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_text("anything")
    says = r"10 frames of 16000x16000 need 7.2 GiB, more than the limit of 1.0 GiB .*max_video_bytes.*at most 1 frames"
    with pytest.raises(OptionError, match=says):
        await read(path, reader="fake_readers:Huge", num_frames=10, lease=Room(1 << 30).lease())


async def test_progress(read: Read, videos: Path) -> None:
    told: list[float] = []
    await read(videos / "plain.mp4", num_frames=60, on_progress=told.append)
    assert told == sorted(set(told))
    assert len(told) > 20
    assert told[-1] == 1.0


async def test_a_progress_callback_that_raises_ends_the_decoder(read: Read, videos: Path) -> None:
    def on_progress(fraction: float) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await read(videos / "plain.mp4", on_progress=on_progress)


async def test_nonsense_of_the_decoder_is_an_error(read: Read, videos: Path) -> None:
    with pytest.raises(VideoError, match="says what it should not say"):
        await read(videos / "plain.mp4", reader="fake_readers:Chatting")
