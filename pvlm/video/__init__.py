"""Videos: choosing frames, and reading them without trusting the file.

The engine calls `read_video`. Decoding runs in a process of its own (`pvlm.video.decoding`), so a damaged file can
neither crash nor block the caller. `pvlm.video.selection` has the formula for the frame indices.
"""

from pvlm.video.readers import ENTRY_POINT_GROUP, VideoReader
from pvlm.video.reading import Video, check_source, read_video
from pvlm.video.room import Lease, Room

__all__ = ["ENTRY_POINT_GROUP", "Lease", "Room", "Video", "VideoReader", "check_source", "read_video"]
