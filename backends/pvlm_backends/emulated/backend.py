"""The ``emulated`` plug-in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from pvlm_protocols.backend import (
    BackendError,
    CheckpointError,
    FrameDefaults,
    LoadOptions,
    ModelInfo,
    Processor,
    Prompt,
    Session,
    Visual,
)
from pvlm_protocols.prefixes import KeptPrefix

from .model import EmulatedModel, read_model
from .text import END_TOKEN, Guesses, Text, guesses_of

if TYPE_CHECKING:
    import torch

    from ..processing import PreparedPrompt
    from .session import EmulatedSession

MAX_POSITIONS = 1 << 20
"""An emulated model has no bound, but the interface needs a number."""
FIRST_TOKENS = 4
"""Prompt tokens before the video."""


class EmulatedBackend:
    """A model that takes given times and answers a given text; made by `load`.

    It measures the runtime for a pair of models with known times and a known acceptance rate.
    """

    def __init__(
        self, name: str, model: EmulatedModel, text: Text, guesses: Guesses | None, device: torch.device
    ) -> None:
        from .session import HIDDEN_SIZE

        self._model = model
        self._text = text
        self._guesses = guesses
        self._device = device
        self._closed = False
        points = model.pruned_pass_ms or (model.pass_ms if isinstance(model.pass_ms, dict) else None)
        self.info = ModelInfo(
            name=name,
            family="emulated",
            vocab_size=model.vocab_size,
            end_token_ids=(END_TOKEN,),
            tokenizer_fingerprint=EmulatedProcessor(model).tokenizer_fingerprint,
            layers=model.layers,
            hidden_size=HIDDEN_SIZE,
            max_positions=MAX_POSITIONS,
            parameters=len(points) if points else 1,  # its pass times
            dtype="float32",
            device=str(device),
        )

    def open(self, prompt: Prompt, capacity: int) -> EmulatedSession:
        """Take the vision tower's time.

        Raises:
            PromptError: prompt and ``capacity`` exceed the positions.
            BackendError: the backend is closed.
        """
        return self.open_on(prompt, capacity, None, lambda: None)

    def open_on(
        self,
        prompt: Prompt,
        capacity: int,
        find: Callable[[bytes], KeptPrefix | None] | None,
        on_progress: Callable[[], None],
    ) -> EmulatedSession:
        """See `pvlm_protocols.prefixes.KeptPrefixes`. Raises as `open`."""
        from ..prefix import find_prefix, visuals_after
        from .session import EmulatedSession, wait_until

        started = time.perf_counter()
        if self._closed:
            raise BackendError("this backend is closed")
        prepared = self._prepare(prompt)
        prepared.check_positions(capacity, self.info.max_positions)
        prefix = find_prefix(prepared, find)
        left = visuals_after(prepared, prefix)
        for visual in left:
            visual.values  # noqa: B018  raises FramesMissing
        if left:
            on_progress()
            wait_until(started + self._model.open_s())
        session = EmulatedSession(self._model, self._text, self._guesses, prepared, capacity, self._device, prefix)
        session.keeps = find is not None
        return session

    def _prepare(self, prompt: Prompt) -> PreparedPrompt:
        """A token for each word, after those of all videos."""
        from ..processing import PreparedPrompt
        from ..processing.prompt import Pixels

        turns, each = prompt.conversation, self._model.video_tokens
        visuals = [part for turn in turns for part in turn.parts if isinstance(part, Visual)]
        start, stop = FIRST_TOKENS, FIRST_TOKENS + len(visuals) * each
        words: list[str] = []
        begins = []
        for turn in turns:
            if turn.role == "user":
                begins.append(stop + len(words))
            words += [word for part in turn.parts if isinstance(part, str) for word in part.split()]
        ids = np.array([0] * stop + [crc32(word.encode()) for word in words or ["?"]], np.int64)
        tokens = len(ids)
        return PreparedPrompt(
            ids=ids,
            visuals=tuple(
                Pixels(
                    visual.kind,
                    lambda: np.zeros(0, np.float32),
                    (0, 0),
                    start + index * each,
                    visual.digest,
                    visual.missing,
                )
                for index, visual in enumerate(visuals)
            ),
            placeholders=np.arange(start, stop),
            video=np.arange(start, stop),
            runs=((1, each),) * len(visuals),
            question=np.arange(min(begins[-1], tokens - 1), tokens),
            positions=np.arange(tokens)[None],
            begins=np.unique([min(begin, tokens - 1) for begin in begins]),
        )

    def extend_together(
        self,
        parts: Sequence[tuple[Session, Sequence[int]]],
        *,
        on_progress: Callable[[], None] | None = None,
    ) -> list[torch.Tensor]:
        """See `pvlm_protocols.backend.SharedPasses`. It takes the time of one pass over all tokens."""
        from ..session import append_together, progress
        from .session import EmulatedSession, shared_pass

        started = time.perf_counter()
        return append_together(parts, EmulatedSession, lambda ours: shared_pass(ours, progress(on_progress), started))

    def close(self) -> None:
        """Nothing to free."""
        self._closed = True

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        """Make a processor of meaningless words. Raises CheckpointError."""
        return EmulatedProcessor(read_model(model))

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> EmulatedBackend:
        """``options.model``: see `read_model`. The dtype has no meaning here.

        Raises:
            CheckpointError: the specification is invalid, or has a draft's keys for a target.
            BackendError: an option is unknown, or the device cannot be used.
        """
        from ..options import check_extra_options, choose_devices

        check_extra_options(options)
        device = choose_devices(options)[0]
        model = read_model(options.model)
        guesses = None
        if options.role == "draft":
            guesses = guesses_of(model)
        else:
            for name in ("acceptance", "trace", "pruned_pass_ms"):
                if getattr(model, name) is not None:
                    raise CheckpointError(f"{name} is a draft's, but this emulated model is to be the target")
        if on_progress is not None:
            on_progress(1.0)
        name = "emulated" if options.model.lstrip().startswith("{") else options.model
        return cls(name, model, Text(model.seed, model.vocab_size, model.answer_tokens), guesses, device)


class EmulatedProcessor:
    """Token 17 is the word "w17 "; frames stay as they are."""

    frame_defaults = FrameDefaults()
    end_token_ids = (END_TOKEN,)
    ignored_generation_options = ()

    def __init__(self, model: EmulatedModel) -> None:
        self._vocab_size = model.vocab_size
        self._video_tokens = model.video_tokens

    @property
    def tokenizer_fingerprint(self) -> str:
        """Equal for equal vocabularies."""
        return f"emulated-{self._vocab_size}"

    def resize(self, frames: np.ndarray) -> np.ndarray:
        """Nothing to do: the model ignores frames."""
        return frames

    def resize_image(self, image: np.ndarray, images: int) -> np.ndarray:
        """Nothing to do: the model ignores images."""
        return image

    def video_grid(self, frames: np.ndarray) -> tuple[int, int, int]:
        """Return ``(T, h, w)`` with h as near to w as possible.

        If T frames cannot share the model's tokens evenly, return one row for all frames: ``(1, 1, m)``.
        """
        each, left = divmod(self._video_tokens, len(frames))
        if left:
            return 1, 1, self._video_tokens
        rows = next(rows for rows in range(math.isqrt(each), 0, -1) if each % rows == 0)
        return len(frames), rows, each // rows

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the words, each with a space after it, without the end token."""
        return "".join(f"w{token} " for token in tokens if token != END_TOKEN)

    def tokens_as_text(self) -> Sequence[str]:
        """The vocabulary by id."""
        return ["<end>", *(f"w{token} " for token in range(1, self._vocab_size))]
