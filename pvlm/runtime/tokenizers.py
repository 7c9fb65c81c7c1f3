"""Whether target and draft read and write text with the same ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest

from pvlm_protocols.backend import Processor, TextEncoding

_JOINED = 48
"""Tokens in a text of several: enough to cross many borders between words."""
_STRIDE = 7919
"""Steps through the vocabulary in an order without neighbours; a prime."""

_TEXTS = (
    "What happens first in the video? It's the 1st of 12,345 scenes; we've seen 3.14% (about π).",
    "  two  spaces,\ttabs\t\tand\r\nlines\n\n\nwith  \n trailing   ",
    "don't DON'T I'LL they'RE l'été naïve e\u0301te\u0301 \u212b \ufb01 \u00a0\u3000 \u200d\ufeff",
    "0 00 000 0000 1234567890 ١٢٣ ²³ ½ Ⅷ",
    "視頻裡發生了什麼？ ビデオで何が起こりますか 비디오에서 무슨 일이 Что происходит на видео? वीडियो में क्या होता है",
    "🎬👩‍👩‍👧‍👦🏳️‍🌈 e=mc² ∀x∈ℝ: x² ≥ 0 — “quoted” …",
    "def f(x):\n    return {'a': [x, *range(10)]}  # <b>&amp;</b> https://example.org/?q=1&r=%20",
    "!!! ??? ... ((())) --- ___ === ~~~ ''' \"\"\" \\\\ //",
)


class TokenizerComparison:
    """Target and draft compared by their fingerprints and, if these differ, by what they do.

    Fingerprints may differ without consequence: one tokenizer can be written down in many ways.
    """

    def __init__(self, target: Processor, draft: Processor) -> None:
        pairs = enumerate(zip_longest(target.tokens_as_text(), draft.tokens_as_text(), fillvalue=""))
        self._differing = {index: pair for index, pair in pairs if pair[0] != pair[1]}
        self.difference = ""
        """How a text's ids differ; empty if they do not."""
        if target.tokenizer_fingerprint != draft.tokenizer_fingerprint:
            self.difference = self._difference(target, draft)

    @property
    def tokens(self) -> str:
        """``id: target / draft`` for the first five ids whose tokens differ, and the number of the others."""
        shown = [f"{index}: {ours!r} / {theirs!r}" for index, (ours, theirs) in islice(self._differing.items(), 5)]
        others = len(self._differing) - len(shown)
        return "; ".join(shown) + (f" and {others} more" if others else "")

    def _difference(self, target: Processor, draft: Processor) -> str:
        shown = f"(id: target / draft): {self.tokens}" if self._differing else "in their rules for splitting text"
        if not isinstance(target, TextEncoding) or not isinstance(draft, TextEncoding):
            return shown
        for text in probe(target):
            ours, theirs = list(target.encode(text)), list(draft.encode(text))
            if ours != theirs:
                start = next(i for i, pair in enumerate(zip_longest(ours, theirs)) if pair[0] != pair[1])
                return (
                    f"{shown}. The first text with different ids is {text!r}: from token {start} on, it is "
                    f"{_few(ours[start:])} for the target and {_few(theirs[start:])} for the draft"
                )
        # Special tokens, which decode to nothing, may differ.
        return shown if any(side.decode([index]) for index in self._differing for side in (target, draft)) else ""


def probe(processor: Processor) -> Iterator[str]:
    """Yield texts that show how a tokenizer splits text: awkward ones, each token's own, and mixtures of tokens."""
    yield from _TEXTS
    tokens = [processor.decode([index]) for index in range(len(processor.tokens_as_text()))]
    texts = [text for text in tokens if text and "\ufffd" not in text]
    yield from texts
    for start in range(0, len(texts), _JOINED):
        yield "".join(texts[index * _STRIDE % len(texts)] for index in range(start, start + _JOINED))


def _few(ids: Sequence[int]) -> str:
    return str(list(ids[:4]))[:-1] + (", ...]" if len(ids) > 4 else "]")
