"""No video makes the decoder open another file or address."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Read
from video_files import box, indices_of, make_video

from pvlm.errors import VideoError
from pvlm.video.auto_reader import AutoReader
from pvlm.video.containers import Container
from pvlm.video.decord_reader import DecordReader
from pvlm.video.packets import OpenVideo
from pvlm.video.pyav_reader import PyAVReader

pytestmark = pytest.mark.anyio

PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
    "hls key": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:9,\n{0}\n',
    "hls master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{0}\n",
    "m3u": "#EXTM3U\n{0}\n",
    "bare m3u": "{0}\n",
    "concat": "ffconcat version 1.0\nfile '{0}'\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static" mediaPresentationDuration="PT2S"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{0}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{0}\nm=video {1} RTP/AVP 96\n",
    "asx": '<asx version="3.0"><entry><ref href="{0}"/></entry></asx>',
    "smil": '<smil><body><video src="{0}"/></body></smil>',
    "f4m": '<manifest xmlns="http://ns.adobe.com/f4m/1.0"><media url="{0}"/></manifest>',
    "smooth streaming": '<?xml version="1.0"?><SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="{0}"/>',
    "pls": "[playlist]\nFile1={0}\nNumberOfEntries=1\n",
    "quicktime text": "RTSPtext\r{0}\r",
    "ram": "rtsp://127.0.0.1:{1}/\n{0}\n",
    "vobsub": "# VobSub index file, v7\nid: en, index: 0\n{0}\n",
    "avisynth": 'FFmpegSource2("{0}")\n',
    "filter": "movie={0}\n",
    "image sequence": "{0}%03d.png\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:09,000\n{0}\n",
}


def id3(size: int) -> bytes:
    return b"ID3\x04\0\0" + bytes([0, 0, size >> 7, size & 127]) + bytes(size)


FRONTS = {
    "": b"",
    "tag": id3(40),
    "two tags": id3(300) + id3(2),
    "byte order mark": b"\xef\xbb\xbf",
    "lines": b"\r\n\r\n",
    "cut tag": b"ID3\x04\0\0\0\0\0",
    "tag and mark": id3(7) + b"\xef\xbb\xbf\n",
}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def refuses(path: Path) -> None:
    for reader in (AutoReader, PyAVReader, DecordReader):
        with pytest.raises(VideoError, match="not a video"):
            reader(str(path))


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_not_followed(videos: Path, tmp_path: Path, kind: str, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    for number, place in enumerate((str(videos / "plain.mp4"), f"http://127.0.0.1:{port}/plain.mp4", "plain.mp4")):
        text = PLAYLISTS[kind].replace("{0}", place).replace("{1}", str(port)).encode()
        (tmp_path / "plain.mp4").write_bytes((videos / "plain.mp4").read_bytes())
        for name, front in FRONTS.items():
            path = tmp_path / f"{number}{name}.mp4"
            path.write_bytes(front + text)
            refuses(path)
    with pytest.raises(BlockingIOError):
        listener.accept()


async def test_the_same_as_an_upload(videos: Path, read: Read) -> None:
    for kind in ("hls", "concat"):
        text = PLAYLISTS[kind].replace("{0}", str(videos / "plain.mp4")).encode()
        with pytest.raises(VideoError, match="a playlist or a text file"):
            await read(id3(20) + text)


@pytest.mark.parametrize("name", ["tagged.ts", "tagged.mkv", "tagged.mp4"])
async def test_a_video_after_a_tag_is_read(tmp_path: Path, read: Read, name: str) -> None:
    """Segments of live streams begin with one."""
    data = make_video(tmp_path / name).read_bytes()
    video = await read(id3(300) + id3(2) + data, num_frames=5)
    assert tuple(indices_of(video.frames)) == video.indices == (0, 15, 30, 44, 59)


def test_frames_in_another_file_are_not_looked_for(videos: Path, tmp_path: Path) -> None:
    """QuickTime allows a data reference to another file. It is not opened, whatever becomes of the frames."""
    data = bytearray((videos / "plain.mp4").read_bytes())
    start, end = box(bytes(data), b"dref")
    place = f"file://{videos / 'faststart.mp4'}\0".encode()
    entry = (12 + len(place)).to_bytes(4, "big") + b"url " + bytes(4) + place
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = data.index(kind) - 4
        size = int.from_bytes(data[at : at + 4], "big") + len(entry) - (end - start - 8)
        data[at : at + 4] = size.to_bytes(4, "big")
    data[start + 8 : end] = entry
    path = tmp_path / "elsewhere.mov"
    path.write_bytes(data)
    opened: list[object] = []
    sys.addaudithook(lambda event, given: opened.append(given[0]) if event == "open" else None)
    try:
        assert indices_of(PyAVReader(str(path)).read([0, 59])) == [0, 59]  # its own
    except VideoError:
        pass
    assert str(videos / "faststart.mp4") not in opened


@pytest.mark.parametrize(("kind", "demuxer"), [("hls", "hls"), ("concat", "concat")])
def test_a_format_that_follows_references_gets_none(videos: Path, tmp_path: Path, kind: str, demuxer: str) -> None:
    """The list of containers leaves such formats out. If one was in it, nothing else would be opened all the same."""
    place = str(videos / "plain.mp4")
    path = tmp_path / "playlist"
    path.write_text(PLAYLISTS[kind].replace("{0}", place))
    opened: list[object] = []
    sys.addaudithook(lambda event, given: opened.append(given[0]) if event == "open" else None)
    with pytest.raises(VideoError, match="damaged"):
        OpenVideo(str(path), Container(kind, demuxer))
    assert str(path) in opened
    assert place not in opened
