"""The most of everything that pvlm takes in.

What a caller gives is checked against these before anything is done, with an error that says what was exceeded. The
codec refuses messages beyond them: what is well-formed but absurd never reaches an actor or a coordinator. The limits
of a message's bytes are in `pvlm_protocols.codec`: an `Open` with the most of everything, but for its pixels, fits in.
"""

from __future__ import annotations

MAX_QUESTION_CHARACTERS = 16_384
"""Of a question; how many tokens it may have is the model's to say (`PromptError`)."""
MAX_ANSWER_TOKENS = 131_072
"""Of one answer."""
MAX_VIDEO_FRAMES = 16_384
"""Frames that are taken of one video."""
MAX_FRAME_SIDE = 16_384
"""Pixels along either side of a frame."""
MAX_VIDEO_TOKENS = 2**22
"""Of one prompt."""
MAX_WINDOW = 64
"""Tokens of a window; one that is longer than any sensible c = T_p / T_q only delays rejections."""
MAX_LEAD = 16
"""Windows that the draft may be ahead."""
MAX_PROPOSAL = 1024
"""Ids that a drafted token's proposal lists."""
MAX_STOP_TOKENS = 128
"""Ids that a caller may let end an answer, beside the model's own."""
MAX_END_TOKENS = 256
"""Ids that end an answer."""
MAX_STOPPED = 64
"""Windows written in vain of which the next one tells."""
MAX_ID = 2**31 - 1
"""The largest token id, and the largest of whatever else is counted."""
MAX_MILLISECONDS = 1e9
"""Of a duration; eleven days."""

MAX_NAME_CHARACTERS = 4096
MAX_ERROR_CHARACTERS = 16_384
MAX_TRACEBACK_CHARACTERS = 65_536
MAX_HELD_SESSIONS = 65_536
"""That a worker may have kept while its connection was lost."""
