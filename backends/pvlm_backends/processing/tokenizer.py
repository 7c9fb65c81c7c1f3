"""A checkpoint's tokenizer, by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from pvlm_protocols.backend import CheckpointError

from .files import check_no_pointer, missing_part
from .fingerprint import fingerprint


class TextTokenizer:
    """Text to ids and back.

    Args:
        folder: a folder that holds tokenizer.json.

    Raises:
        CheckpointError: tokenizer.json is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise missing_part(
                folder, "tokenizer.json, which transformers makes if it saves the checkpoint's tokenizer"
            )
        try:
            check_no_pointer(path)
            self._tokenizer = Tokenizer.from_file(str(path))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __len__(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of ``text`` and each id's span of characters; recognises special tokens and adds none."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens`` without special tokens and unknown ids; incomplete UTF-8 reads as U+FFFD."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text and id of each special token."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    @cached_property
    def tokens_as_text(self) -> tuple[str, ...]:
        """The vocabulary by id, in the tokenizer's own spelling; an id without a token is empty."""
        table = [""] * len(self)
        for text, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            table[index] = text
        return tuple(table)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give the same ids to every text without added tokens; see `fingerprint`."""
        return fingerprint(self._tokenizer)
