"""A backend without a network: logits are a fixed random function of the last tokens. For tests of the runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from pvlm_protocols.backend import (
    EarlyStates,
    FrameDefaults,
    LoadOptions,
    ModelInfo,
    Processor,
    Prompt,
    PromptError,
    Session,
    Visual,
)

VOCABULARY = 12
END_TOKEN = 0
CONTEXT = 2


class ToyBackend:
    """``noise``: how far its logits are from those of the toy with noise 0 (the target).

    ``end_logit`` shifts the end token's. ``calls`` records what was asked of its sessions. ``pass_ms`` is how long a
    pass sleeps, and a layer of the prefill. ``drafting``: its sessions offer `GreedyDrafting`. ``loaded`` holds what
    `load` has made in this process, by role.
    """

    loaded: ClassVar[dict[str, ToyBackend]] = {}

    def __init__(
        self,
        noise: float = 0.0,
        seed: int = 1,
        vocab_size: int = VOCABULARY,
        end_logit: float = -2.0,
        pass_ms: float = 0.0,
        drafting: bool = False,
    ) -> None:
        self.pass_ms = pass_ms
        self.drafting = drafting
        self.noise = noise
        self.seed = seed
        self.end_logit = end_logit
        self.calls: list[str] = []
        self.open_sessions = 0
        self._rows: dict[tuple[int, ...], torch.Tensor] = {}
        self.info = ModelInfo(
            name="toy",
            family="toy",
            vocab_size=vocab_size,
            end_token_ids=(END_TOKEN,),
            tokenizer_fingerprint="toy",
            layers=4,
            hidden_size=8,
            max_positions=4096,
            parameters=0,
            dtype="float32",
            device="cpu",
        )

    def row(self, prefix: Sequence[int]) -> torch.Tensor:
        """Logits after a prefix of answer tokens, float32 ``(vocab_size,)``."""
        context = tuple(prefix[-CONTEXT:])
        if context not in self._rows:
            shared = np.random.default_rng([self.seed, len(context), *context])
            row = shared.normal(size=VOCABULARY) * 2
            row[END_TOKEN] += self.end_logit
            if self.noise:
                own = np.random.default_rng([self.seed + 1, len(context), *context])
                row += own.normal(size=VOCABULARY) * self.noise
            padded = np.full(self.info.vocab_size, 50.0)  # padding ids must never be chosen by a draft
            padded[:VOCABULARY] = row
            self._rows[context] = torch.tensor(padded, dtype=torch.float32)
        return self._rows[context]

    def greedy(self, max_tokens: int, end_tokens: Sequence[int] = (END_TOKEN,)) -> list[int]:
        """The reference: plain greedy decoding."""
        tokens: list[int] = []
        while len(tokens) < max_tokens and not (tokens and tokens[-1] in end_tokens):
            tokens.append(int(self.row(tokens)[:VOCABULARY].argmax()))
        return tokens

    def open(self, prompt: Prompt, capacity: int) -> Session:
        return (DraftingToySession if self.drafting else ToySession)(self, prompt, capacity)

    def close(self) -> None:
        pass

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        return ToyProcessor()

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> ToyBackend:
        """``options.model`` is the noise and the time of a pass in ms, such as ``0.5@2``."""
        noise, _, pass_ms = options.model.partition("@")
        cls.loaded[options.role] = backend = cls(noise=float(noise), pass_ms=float(pass_ms or 0))
        return backend


class SharingToyBackend(ToyBackend):
    """Offers `SharedPasses` and `SteppedPrefill`, whose pieces are layers. ``failing``: shared passes raise."""

    failing = False

    def open(self, prompt: Prompt, capacity: int) -> Session:
        return SteppingToySession(self, prompt, capacity)

    def extend_together(
        self, parts: Sequence[tuple[Session, Sequence[int]]], *, on_progress: Callable[[], None] | None = None
    ) -> list[torch.Tensor]:
        self.calls.append(f"shared {len(parts)}")
        if self.failing:
            raise RuntimeError("no shared pass today")
        if on_progress is not None:
            on_progress()
        return [session.extend(tokens) for session, tokens in parts]


class ForkingToyBackend(SharingToyBackend):
    """Its sessions offer `Branches` too. ``open_sessions`` counts the branches."""

    def open(self, prompt: Prompt, capacity: int) -> Session:
        return ForkingToySession(self, prompt, capacity)


class ToySession:
    """Early states are random, and the same for every prompt of a length; half of the attention goes to the video, by
    the softmax of the states' first coordinate."""

    def __init__(self, backend: ToyBackend, prompt: Prompt, capacity: int) -> None:
        self._backend = backend
        self._capacity = capacity
        self._tokens: list[int] = []
        self._open = True
        parts = [part for turn in prompt.conversation for part in turn.parts]
        self.video_tokens = sum(4 * len(part.frames) for part in parts if isinstance(part, Visual)) or 16
        self.prompt = prompt
        self.prompt_tokens = self.video_tokens + 5
        backend.open_sessions += 1

    @property
    def length(self) -> int:
        return len(self._tokens)

    def prefill(
        self,
        keep: torch.Tensor | None = None,
        *,
        compact_positions: bool = False,
        early_layer: int | None = None,
        on_early_layer: Callable[[EarlyStates], None] | None = None,
        early_attention: bool = False,
        on_progress: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        for layer in range(1, self._backend.info.layers + 1):
            time.sleep(self._backend.pass_ms / 1000)
            if on_progress is not None:
                on_progress()
            if layer == early_layer and on_early_layer is not None:
                self._backend.calls.append("early")
                video, text = (
                    torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (self.video_tokens, 3)
                )
                attention = video[:, 0].softmax(dim=0) / 2 if early_attention else None
                on_early_layer(EarlyStates(layer, video, video.roll(1, 0), text, text.roll(1, 0), attention, 4))
        self._backend.calls.append(f"prefill {self.video_tokens if keep is None else int(keep.sum())}")
        return self._backend.row(())

    def extend(self, tokens: Sequence[int], *, on_progress: Callable[[], None] | None = None) -> torch.Tensor:
        assert self._open
        assert tokens
        if self.length + len(tokens) > self._capacity:
            raise PromptError(f"the cache holds {self._capacity} answer tokens")
        time.sleep(self._backend.pass_ms / 1000)
        if on_progress is not None:
            on_progress()
        rows = []
        for token in tokens:
            self._tokens.append(token)
            rows.append(self._backend.row(self._tokens))
        self._backend.calls.append(f"extend {len(tokens)}")
        return torch.stack(rows)

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} tokens to {length}")
        del self._tokens[length:]

    def close(self) -> None:
        if self._open:
            self._open = False
            self._backend.open_sessions -= 1


class SteppingToySession(ToySession):
    """Its prefill has a piece for each layer."""

    def prefill_steps(self, keep: torch.Tensor | None = None, **arguments: Any) -> Iterator[torch.Tensor | None]:
        for layer in range(1, self._backend.info.layers):
            self._backend.calls.append(f"piece {layer}")
            yield None
        yield self.prefill(keep, **arguments)


class ForkingToySession(ToySession):
    """A branch has a copy of the tokens, and checks what it was promised about the others."""

    _trunk: ForkingToySession | None = None
    _shared = 0
    _room = 0

    def fork(self, length: int, room: int) -> Session:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot fork {self.length} tokens at {length}")
        branch = ForkingToySession(self._backend, self.prompt, self._capacity)
        branch._tokens, branch._trunk, branch._shared, branch._room = self._tokens[:length], self, length, room
        return branch

    def adopt(self, branch: Session) -> None:
        assert isinstance(branch, ForkingToySession)
        assert branch._trunk is self
        branch._check()
        self._tokens = list(branch._tokens)
        branch.close()

    def extend(self, tokens: Sequence[int], *, on_progress: Callable[[], None] | None = None) -> torch.Tensor:
        self._check()
        assert self._trunk is None or self.length + len(tokens) <= self._shared + self._room
        return super().extend(tokens, on_progress=on_progress)

    def _check(self) -> None:
        assert self._trunk is None or self._trunk._tokens[: self._shared] == self._tokens[: self._shared]


class DraftingToySession(ToySession):
    """Written by the interface's words alone."""

    def draft(
        self,
        tokens: Sequence[int],
        count: int,
        *,
        vocab_limit: int,
        on_progress: Callable[[], None] | None = None,
    ) -> Iterator[int]:
        self._backend.calls.append(f"draft {count}")
        if self.length + len(tokens) + count - 1 > self._capacity:
            raise PromptError(f"the cache holds {self._capacity} answer tokens")
        for _ in range(count):
            tokens = [int(self.extend(tokens, on_progress=on_progress)[-1, :vocab_limit].argmax())]
            yield tokens[0]


class ToyProcessor:
    """Token 1 is "a", token 2 "b", and so on."""

    frame_defaults = FrameDefaults(num_frames=8)
    end_token_ids = (END_TOKEN,)
    tokenizer_fingerprint = "toy"
    ignored_generation_options = ()

    def resize(self, frames: np.ndarray) -> np.ndarray:
        return frames

    def resize_image(self, image: np.ndarray, images: int) -> np.ndarray:
        return image

    def video_grid(self, frames: np.ndarray) -> tuple[int, int, int]:
        return len(frames), 2, 2

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token - 1) for token in tokens if token != END_TOKEN)

    def tokens_as_text(self) -> Sequence[str]:
        return ["<end>", *"abcdefghijk"]
