"""Videos: which frames to take, and reading them without trusting the file.

`read_video` is what the engine calls. Decoding happens in a process of its own (`pvlm.video.decoding`), so that a
damaged file can neither crash nor block the caller; the formula for the frame indices is in `pvlm.video.sampling`.
"""

from pvlm.video.readers import ENTRY_POINT_GROUP, VideoReader
from pvlm.video.reading import Video, check_source, read_video

__all__ = ["ENTRY_POINT_GROUP", "Video", "VideoReader", "check_source", "read_video"]
