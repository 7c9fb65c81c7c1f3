"""The half of a checkpoint for text: its tokenizer, its end tokens, and its settings for generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvlm_protocols.backend import ModelInfo, PromptError

from .generation import end_token_ids, ignored_generation_options
from .prompt import PreparedPrompt
from .tokenizer import TextTokenizer


class TextProcessor:
    """Text to ids and back, as `pvlm_protocols.backend.Processor` wants it.

    Args:
        folder: the checkpoint's folder.
        config: its config.json.

    Raises:
        CheckpointError: a file is missing or damaged, or has an unsupported value.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._tokenizer = TextTokenizer(folder)
        self._end_token_ids = end_token_ids(folder, config)
        self._ignored = ignored_generation_options(folder)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self._end_token_ids

    @property
    def tokenizer_fingerprint(self) -> str:
        """Equal for tokenizers that give the same ids to every text without added tokens."""
        return self._tokenizer.fingerprint

    @property
    def ignored_generation_options(self) -> tuple[str, ...]:
        """``name=value`` of the logits processors in generation_config.json; pvlm applies none of them."""
        return self._ignored

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of a text; see `pvlm_protocols.backend.TextEncoding`."""
        return self._tokenizer.encode(text)[0]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of answer tokens without special tokens; incomplete UTF-8 at the end reads as U+FFFD."""
        return self._tokenizer.decode(tokens)

    def tokens_as_text(self) -> Sequence[str]:
        """The vocabulary by id."""
        return self._tokenizer.tokens_as_text

    def check_model(self, model: ModelInfo, prompt: PreparedPrompt, capacity: int) -> None:
        """Raise PromptError if ``model`` lacks the embedding of a token, or positions for ``capacity`` more tokens."""
        largest = int(prompt.ids.max())
        if largest >= model.vocab_size:  # on a GPU, the look-up would end the whole process
            raise PromptError(
                f"the prompt holds the token {self.tokens_as_text()[largest]!r}, whose id {largest} has no embedding: "
                f"the model's ids end at {model.vocab_size - 1}; the token was added to the tokenizer alone"
            )
        prompt.check_positions(capacity, model.max_positions)
