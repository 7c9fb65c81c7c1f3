"""Text that is safe to show: short, and without payloads and credentials. Every error and log line passes through."""

from __future__ import annotations

import re
import reprlib

MAX_TEXT = 4000
"""Characters of one text. Of a longer one the middle is left out."""
MAX_WORD = 300
"""Characters without a space. A longer word is a payload, or as good as one."""

_HIDDEN = (
    (re.compile(r"\b(data:[\w.+/-]*(?:;[\w.=+-]+)*,)[^\s'\"]+"), r"\1…"),  # the payload of a data: URL
    (re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^\s/@'\"]+@"), r"\1…@"),  # user and password of a URL
    (re.compile(r"([?#&])[\w.~%\[\]-]+=[^\s'\"]*"), r"\1…"),  # the query of a URL
    (re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[abp]-|AKIA)[\w-]{8,}"), r"\1…"),  # keys of well-known services
    (re.compile(r"\b(bearer\s+|authorization:\s*\w+\s+)[\w.~+/=-]{12,}", re.IGNORECASE), r"\1…"),
    (re.compile(r"\b((?:\w+[_-])?(?:token|secret|password|passwd|api_?key)=)[^\s'\",;)]+", re.IGNORECASE), r"\1…"),
)
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlong = 80


def redacted(text: str, max_characters: int | None = MAX_TEXT) -> str:
    """The text without the payload of a ``data:`` URL, the user and query of any URL, and keys; shortened.

    ``max_characters``: None keeps the length of the whole, as for a traceback.
    """
    for secret, shown_as in _HIDDEN:
        text = secret.sub(shown_as, text)
    text = _LONG_WORD.sub(_shortened, text)
    if max_characters is not None and len(text) > max_characters:
        half = max_characters // 2
        text = f"{text[:half]}… ({len(text) - 2 * half} characters left out) …{text[-half:]}"
    return text


def shown(value: object) -> str:
    """A value as an error shows it: its ``repr``, short and redacted."""
    try:
        return redacted(_short.repr(value))
    except Exception:  # a `repr` may fail in any way; an integer of 5000 digits has none
        return f"<{type(value).__name__}>"


def _shortened(word: re.Match[str]) -> str:
    text = word.group()
    return f"{text[:60]}…({len(text)} characters)…{text[-20:]}"
