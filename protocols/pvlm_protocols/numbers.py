"""The numbers in messages, with their bounds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from pvlm_protocols.limits import MAX_ANSWER_TOKENS, MAX_ID, MAX_MILLISECONDS, MAX_WINDOW

Serial = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Names something: a session, an epoch, a seed."""
Position = Annotated[int, Meta(ge=0, le=MAX_ANSWER_TOKENS)]
"""Of an answer token, or how many of them there are."""
Token = Annotated[int, Meta(ge=0, le=MAX_ID)]
Tokens = Annotated[tuple[Token, ...], Meta(max_length=MAX_ANSWER_TOKENS)]
Milliseconds = Annotated[float, Meta(ge=0, le=MAX_MILLISECONDS)]
Share = Annotated[float, Meta(ge=0, le=1)]
Ratio = Annotated[float, Meta(ge=0, lt=1)]
"""The share of the video tokens that the draft does not see."""
WindowSize = Annotated[int, Meta(ge=1, le=MAX_WINDOW)]
"""Tokens of a window."""
WindowTokens = Annotated[tuple[Token, ...], Meta(max_length=MAX_WINDOW)]
