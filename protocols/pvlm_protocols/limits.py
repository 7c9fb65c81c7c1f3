"""The limits of everything that pvlm accepts.

A caller's input is checked first, with an error that names the exceeded limit. The codec refuses messages beyond the
limits: a well-formed but absurd message never reaches an actor or a coordinator. `pvlm_protocols.codec` has the limits
of a message's bytes. An `Open` with every field at its limit, without its pixels, fits in.
"""

from __future__ import annotations

MAX_QUESTION_CHARACTERS = 16_384
"""Of a question; the model limits its number of tokens (`PromptError`)."""
MAX_ANSWER_TOKENS = 131_072
"""Of one answer."""
MAX_PROMPT_CHARACTERS = 65_536
"""Of all texts of a conversation."""
MAX_TURNS = 256
"""Of a conversation."""
MAX_PARTS = 256
"""Texts, videos and images of a turn."""
MAX_VISUALS = 32
"""Videos and images of a prompt."""
MAX_VIDEO_FRAMES = 16_384
"""Frames of all videos of a prompt that a model sees."""
MAX_FRAME_SIDE = 16_384
"""Pixels along either side of a frame."""
MAX_DIGEST_BYTES = 32
"""Of the digest of a video."""
MAX_PINNED = 1024
"""Videos and images whose prefixes an actor is to keep."""
MAX_VIDEO_TOKENS = 2**22
"""Of one prompt."""
MAX_WINDOW = 64
"""Tokens of a window; one that is longer than any sensible c = T_p / T_q only delays rejections."""
MAX_RANKS = 8
"""Other tokens for which the draft prepares at one position."""
MAX_OUTCOMES = 64
"""Windows that the draft prepares beside the one that it expects to be accepted."""
MAX_PROPOSAL = 1024
"""Ids in the proposal of a drafted token."""
MAX_STOP_TOKENS = 128
"""A caller's ids that end an answer, besides the model's own."""
MAX_END_TOKENS = 256
"""Ids that end an answer."""
MAX_STOPPED = 64
"""Stopped windows that the next window reports."""
MAX_ID = 2**31 - 1
"""The largest token id, and the largest count of anything else."""
MAX_MILLISECONDS = 1e9
"""Of a duration; eleven days."""

MAX_NAME_CHARACTERS = 4096
MAX_ERROR_CHARACTERS = 16_384
MAX_TRACEBACK_CHARACTERS = 65_536
MAX_HELD_SESSIONS = 65_536
"""That a worker may have kept while its connection was lost."""
