"""From token ids to text as it streams: whole characters only, and no possible beginning of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class TextStream:
    """Detokenises an answer token by token.

    ``decode`` turns ids into text, with U+FFFD for an incomplete UTF-8 sequence at the end. The text excludes the stop
    string that ended it; `tokens` includes the token that completed the stop string.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self.text = ""
        """The released text."""
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        self._held = ""
        self._context = 0  # tokens from here are decoded, so that a tokenizer that joins with spaces sees its context
        self._read = 0  # tokens up to here are in `text` or `_held`
        self._shown = 0  # the number of characters after `_context` that are in `text` or `_held`

    def push(self, token: int) -> str:
        """Take one token; return the text that it releases, often none. Do not call it after `stopped`."""
        self.tokens.append(token)
        text = self._decode(self.tokens[self._context :])
        whole = text.rstrip(REPLACEMENT)
        self._held += whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if len(whole) == len(text):
            self._context, self._read = self._read, len(self.tokens)
            self._shown = len(self._decode(self.tokens[self._context :]))
        return self._release()

    def flush(self) -> str:
        """Release the held text at the end of the answer."""
        if self.stopped:
            return ""
        self._held += self._decode(self.tokens[self._context :])[self._shown :]
        self._context = self._read = len(self.tokens)
        self._shown = 0
        at = self._first_stop()
        return self._give(len(self._held) if at is None else at)

    def _release(self) -> str:
        at = self._first_stop()
        if at is not None:
            self.stopped = True
            return self._give(at)
        return self._give(len(self._held) - self._possible_stop())

    def _first_stop(self) -> int | None:
        places = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        return min(places, default=None)

    def _possible_stop(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _give(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        self.text += text
        return text
