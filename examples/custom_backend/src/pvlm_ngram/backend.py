"""The plug-in: the interface of a model (`pvlm_protocols.backend`) over an n-gram model.

The model never uses the video. A draft may do so: it only guesses, and the target decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvlm_protocols.backend import BackendError, CheckpointError, LoadOptions, ModelInfo, Processor, Prompt, PromptError

if TYPE_CHECKING:  # importing a plug-in must be cheap: heavy packages are imported where they are needed
    import torch

    from pvlm_backends.families.llava_onevision import LlavaOnevisionProcessor

    from .model import NgramModel

MAX_POSITIONS = 1 << 20
"""An n-gram model has no bound, but `ModelInfo` needs a number."""


class NgramBackend:
    """An n-gram model. `load` makes it in the worker; the engine's process calls `processor` alone."""

    def __init__(self, name: str, model: NgramModel, processor: LlavaOnevisionProcessor) -> None:
        self._model = model
        self._processor = processor
        self.info = ModelInfo(
            name=name,
            family="ngram",
            vocab_size=model.vocab_size,
            end_token_ids=processor.end_token_ids,
            tokenizer_fingerprint=processor.tokenizer_fingerprint,
            layers=1,
            hidden_size=1,
            max_positions=MAX_POSITIONS,
            parameters=sum(len(followed) for followed in model.counts.values()),
            dtype="float32",
            device="cpu",
        )

    def open(self, prompt: Prompt, capacity: int) -> NgramSession:
        """Start on a prompt. Raises PromptError."""
        prepared = self._processor.prepare(prompt)
        # The target's number of video tokens, though none is used: any prune mask of the target then fits.
        return NgramSession(self._model, prepared.video_tokens, len(prepared) - prepared.video_tokens, capacity)

    def close(self) -> None:
        """Nothing to free."""

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        """The target's processor, so that the tokenizers agree. Raises CheckpointError."""
        return load_processor(cls._read(model))

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> NgramBackend:
        """Load a model. Raises CheckpointError, and BackendError for the role of a target."""
        if options.role == "target":
            raise BackendError("an n-gram model does not see the video: it can be a draft, not a target")
        if options.extra:
            raise BackendError(f"unknown backend option {next(iter(options.extra))!r}")
        model = cls._read(options.model)
        backend = cls(options.model, model, load_processor(model))
        if on_progress is not None:
            on_progress(1.0)
        return backend

    @staticmethod
    def _read(path: str) -> NgramModel:
        from .model import NgramModel

        return NgramModel.read(path)


class NgramSession:
    """One answer; its cache is its tokens."""

    def __init__(self, model: NgramModel, video_tokens: int, text_tokens: int, capacity: int) -> None:
        self.video_tokens = video_tokens
        self.prompt_tokens = text_tokens + video_tokens
        self._model = model
        self._capacity = capacity
        self._tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self._tokens)

    def prefill(
        self,
        keep: torch.Tensor | None = None,
        *,
        compact_positions: bool = False,
        early_layer: int | None = None,
        on_early_layer: Callable[..., Any] | None = None,
        early_attention: bool = False,
        on_progress: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Logits of the first token, float32 ``(vocab_size,)``."""
        if on_early_layer is not None:
            raise BackendError("an n-gram model has no layers: it can be a draft, not a target")
        if on_progress is not None:
            on_progress()
        return self._logits([0])[0]

    def extend(self, tokens: Sequence[int], *, on_progress: Callable[[], None] | None = None) -> torch.Tensor:
        """Float32 ``(n, vocab_size)``: row i predicts what follows ``tokens[i]``. There are no layers to report."""
        if not tokens or min(tokens) < 0 or max(tokens) >= self._model.vocab_size:
            raise ValueError(f"tokens must be one or more ids below {self._model.vocab_size}, not {list(tokens)}")
        before = self.length
        if before + len(tokens) > self._capacity:
            raise PromptError(f"{before} answer tokens and {len(tokens)} more exceed the {self._capacity} reserved")
        self._tokens += tokens
        return self._logits(range(before + 1, self.length + 1))

    def truncate(self, length: int) -> None:
        """Rollback."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} answer tokens to {length}")
        del self._tokens[length:]

    def close(self) -> None:
        self._tokens.clear()

    def _logits(self, lengths: Sequence[int]) -> torch.Tensor:
        """A row for each prefix of the answer."""
        import numpy as np
        import torch

        return torch.from_numpy(np.stack([self._model.log_probabilities(self._tokens[:length]) for length in lengths]))


def load_processor(model: NgramModel) -> LlavaOnevisionProcessor:
    """Text and frames as the target has them. Raises CheckpointError."""
    from pvlm_backends.families import load_processor

    processor = load_processor(str(tokenizer_folder(model.tokenizer)))
    if processor.tokenizer_fingerprint != model.tokenizer_fingerprint:
        raise CheckpointError(f"the tokenizer of '{model.tokenizer}' has changed since the training: train again")
    return processor


def tokenizer_folder(name: str) -> Path:
    """The folder of a checkpoint's tokenizer. Raises CheckpointError."""
    from pvlm.config import BUNDLED, bundled
    from pvlm_backends.processing.files import locate_checkpoint

    return locate_checkpoint(bundled("target") if name == BUNDLED else name, weights=False)
