"""The interface that a model plug-in implements: a decoder with a cache.

One interface serves both roles. A plug-in is a class registered under the entry-point group
``pvlm.backends``; the runtime calls its two class methods (`Backend.processor` in the engine's process,
`Backend.load` in the worker) and never its constructor. Importing the class must be cheap: heavy
packages are imported inside those methods.

Lengths on this interface count **answer tokens**. A pruned draft's cache is shorter than its prompt, so each
session maps answer index to cache row, and positions to both, by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Meta

from pvlm_protocols.limits import MAX_END_TOKENS, MAX_ERROR_CHARACTERS, MAX_ID, MAX_NAME_CHARACTERS
from pvlm_protocols.prompt import Prompt as Prompt
from pvlm_protocols.prompt import Turn as Turn
from pvlm_protocols.prompt import Visual as Visual

if TYPE_CHECKING:
    import numpy as np
    import torch

Role = Literal["target", "draft"]
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
Count = Annotated[int, Meta(ge=0, le=MAX_ID)]

ENTRY_POINT_GROUP: Final = "pvlm.backends"


class BackendError(Exception):
    """A model plug-in could not do what was asked."""


class CheckpointError(BackendError):
    """A checkpoint is missing, damaged, or of a kind that the plug-in does not support."""


class PromptError(BackendError):
    """A prompt cannot be built, or does not fit into the model's positions or the cache."""


class FramesMissing(BackendError):
    """A prompt came without the pixels of its frames (`Visual.missing`), and no kept prefix covers them."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a loaded model that the runtime needs."""

    name: Name
    family: Name
    vocab_size: Annotated[int, Meta(ge=1, le=MAX_ID)]
    """Width of a logits row; ids at or above the tokenizer's size are padding."""
    end_token_ids: Annotated[tuple[Count, ...], Meta(max_length=MAX_END_TOKENS)]
    tokenizer_fingerprint: Name
    """Equal fingerprints mean that the same ids stand for the same text. Added tokens, such as a placeholder for a
    video, may differ, because no text contains them."""
    layers: Count
    hidden_size: Count
    max_positions: Count
    parameters: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    dtype: Name
    device: Name
    backend: Name = ""
    """The plug-in that runs the model. The worker fills it in."""
    backend_reason: Annotated[str, Meta(max_length=MAX_ERROR_CHARACTERS)] = ""
    """Why the setting ``auto`` did not choose a faster plug-in. The worker fills it in."""
    shares_passes: bool = False
    """Several sessions share a pass (`SharedPasses`). The worker fills it in."""


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a model.

    ``threads``: number of intra-op CPU threads (None: keep the process's setting).
    ``extra``: options of one plug-in; an unknown key is an error.
    """

    model: str
    role: Role = "target"
    device: str = "cpu"
    """Several, separated by commas, split the layers: ``"cuda:0,cuda:1"``."""
    dtype: str = "auto"
    """``auto``: float32 on the CPU, the checkpoint's own dtype elsewhere."""
    threads: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    """Allow weights that are not safetensors."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EarlyStates:
    """Hidden states of the target after the embedding and after an early layer.

    ``video_first, video_last``: ``(m, d)``, the m prunable video tokens; ``question_first, question_last``:
    ``(n, d)``, the tokens of the question's text. ``first`` is the decoder's input (layer 0), ``last`` the
    output of layer ``layer``. The dtype is the model's, the device that of its input.

    ``attention``, if requested: float32 ``(m,)``, the mean probability with which layer ``layer`` attends from a
    question token to each video token: softmax over all rows that the question token sees, then the mean over heads and
    question tokens (0 without question tokens).

    ``runs``: for each video and image in the order of the prompt's turns, its number of moments, and the tokens of each
    moment; empty if the backend does not report it.

    ``frames``: number of runs of equal length that the video tokens consist of, one moment of the video after another;
    1 if the backend does not report it, or if moments differ in length.
    """

    layer: int
    video_first: torch.Tensor
    video_last: torch.Tensor
    question_first: torch.Tensor
    question_last: torch.Tensor
    attention: torch.Tensor | None = None
    frames: int = 1
    runs: tuple[tuple[int, int], ...] = ()


class FrameDefaults(msgspec.Struct, frozen=True):
    """A checkpoint's choice of frames, for callers without one.

    ``consecutive``: every frame up to ``num_frames`` (a longer video is sampled uniformly); otherwise ``num_frames``
    frames, uniformly. ``fps``: frames a second, from ``min_frames`` to ``num_frames`` and a multiple of ``multiple``;
    for frames without times, as ``consecutive``.
    """

    num_frames: int = 32
    consecutive: bool = False
    fps: float | None = None
    min_frames: int = 1
    multiple: int = 1


@runtime_checkable
class Processor(Protocol):
    """The half of a checkpoint for text and frames, without weights. Cheap to load; used in the engine's process."""

    @property
    def frame_defaults(self) -> FrameDefaults:
        """Frames to take when the caller does not choose any."""
        ...

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        ...

    @property
    def tokenizer_fingerprint(self) -> str:
        """Equal fingerprints mean that the same ids stand for the same text (`ModelInfo`)."""
        ...

    @property
    def ignored_generation_options(self) -> tuple[str, ...]:
        """Logits processors in the checkpoint's generation config that pvlm does not apply."""
        ...

    def resize(self, frames: np.ndarray) -> np.ndarray:
        """Resize uint8 ``(T, H, W, 3)`` for the vision tower: uint8 ``(T, H', W', 3)``."""
        ...

    def video_grid(self, frames: np.ndarray) -> tuple[int, int, int]:
        """Grid ``(t, h, w)`` of the video tokens of resized ``frames``. The ``m = t * h * w`` prunable tokens are
        ordered by time, then row, then column.

        ``t`` is T where every frame has tokens of its own, and less where neighbours share them. Only the pictures of
        a trace use it.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of answer tokens without special tokens. Incomplete UTF-8 at the end becomes U+FFFD."""
        ...

    def tokens_as_text(self) -> Sequence[str]:
        """The vocabulary by id, to show where two tokenizers differ."""
        ...


@runtime_checkable
class Conversations(Protocol):
    """Optional for a processor: its backend takes conversations, several videos, and images (`Prompt.turns`)."""

    def resize_image(self, image: np.ndarray, images: int) -> np.ndarray:
        """Resize an image, uint8 ``(1, H, W, 3)``, for the vision tower: uint8 ``(T, H', W', 3)``.

        ``images``: how many the prompt has. A model may cut an image into T pieces.
        """
        ...


@runtime_checkable
class TextEncoding(Protocol):
    """Optional for a processor. Two tokenizers whose fingerprints differ are compared by the ids that they give."""

    def encode(self, text: str) -> Sequence[int]:
        """Ids of ``text``, in which added tokens are recognised and to which none is added."""
        ...


class Session(Protocol):
    """One prompt in one model: its cache and its positions."""

    @property
    def video_tokens(self) -> int:
        """m: number of prunable video tokens of the prompt, without the newline token."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the unpruned prompt, video included."""
        ...

    @property
    def length(self) -> int:
        """Number of answer tokens in the cache."""
        ...

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
        """Run the prompt; return the last position's logits, float32 ``(vocab_size,)``.

        ``keep``: bool ``(m,)``, the video tokens to keep (None: all). Kept tokens stay at their original positions
        unless ``compact_positions``. ``on_early_layer`` is called once, after layers 1 to ``early_layer`` have run over
        the whole prompt and before later layers start; with ``early_attention`` its states also have the attention of
        that layer. ``on_progress`` is called at least once a layer; its exceptions end the prefill and propagate.
        """
        ...

    def extend(self, tokens: Sequence[int], *, on_progress: Callable[[], None] | None = None) -> torch.Tensor:
        """Append n >= 1 answer tokens; return float32 ``(n, vocab_size)``: row i predicts the token after
        ``tokens[i]``.

        The result may be a buffer that this session's next call overwrites. ``on_progress`` is called between layers
        where the backend can do so (never where a pass is one native call); its exceptions end the pass, propagate, and
        leave `length` unchanged. Raises PromptError if the cache is full.
        """
        ...

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` answer tokens: a whole rollback. Raises ValueError beyond ``self.length``."""
        ...

    def close(self) -> None:
        """Free the cache. May be called twice."""
        ...


class Backend(Protocol):
    """A loaded model."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the model that the runtime needs."""
        ...

    def open(self, prompt: Prompt, capacity: int) -> Session:
        """Build the prompt, run the vision tower, and reserve room for ``capacity`` answer tokens.

        The video tokens of the session are those of all videos and images, in the order of the prompt's turns. Raises
        PromptError where prompt and capacity exceed the model's positions, with the numbers.
        """
        ...

    def close(self) -> None:
        """Free the model. May be called twice."""
        ...

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        """Load the half of a checkpoint for text and frames. Raises CheckpointError."""
        ...

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> Backend:
        """Load a checkpoint; ``on_progress`` gets the loaded fraction, 0 to 1. Raises CheckpointError."""
        ...


@runtime_checkable
class Conditional(Protocol):
    """Optional for a backend: it says beforehand whether it can run a model on this host."""

    @classmethod
    def unavailable(cls, options: LoadOptions) -> str:
        """Why `Backend.load` would fail on this host, for other causes than the checkpoint's; empty if it would not.

        May take as long as the preparation of the host, for instance compiling. Raises CheckpointError.
        """
        ...


@runtime_checkable
class InterruptibleOpening(Protocol):
    """Optional for a backend: an opening that can be ended while the vision tower runs."""

    def open_in_steps(self, prompt: Prompt, capacity: int, on_progress: Callable[[], None]) -> Session:
        """As `Backend.open`. ``on_progress`` is called before each group of frames in the vision tower; its exceptions
        end the opening and propagate.
        """
        ...


@runtime_checkable
class PassCost(Protocol):
    """Optional for a backend: the cost of a pass, which `pvlm bench passes` compares with the machine's limits."""

    def pass_cost(self, tokens: int, rows: int) -> tuple[int, int]:
        """Minimal cost of ``tokens`` tokens with ``rows`` rows in the cache afterwards: bytes of weights and cache to
        read, and operations (a multiplication and an addition count two).
        """
        ...


@runtime_checkable
class SteppedPrefill(Protocol):
    """Optional for a session: a prefill in pieces, between which other sessions of the backend may have passes."""

    def prefill_steps(
        self,
        keep: torch.Tensor | None = None,
        *,
        compact_positions: bool = False,
        early_layer: int | None = None,
        on_early_layer: Callable[[EarlyStates], None] | None = None,
        early_attention: bool = False,
        on_progress: Callable[[], None] | None = None,
    ) -> Iterator[torch.Tensor | None]:
        """As `Session.prefill`: yield None after each piece, and at last the logits.

        The early layers run over the whole prompt before later ones start. Which pieces there are depends on the
        prompt alone, and so do the logits. A caller that leaves the iterator may start the prefill again.
        """
        ...


@runtime_checkable
class SharedPasses(Protocol):
    """Optional for a backend: one pass over tokens of several sessions. It reads the weights once for all of them."""

    def extend_together(
        self,
        parts: Sequence[tuple[Session, Sequence[int]]],
        *,
        on_progress: Callable[[], None] | None = None,
    ) -> list[torch.Tensor]:
        """Append tokens to several sessions of this backend, each as `Session.extend` does; return each one's logits.

        Each session appears once. Errors and exceptions of ``on_progress`` are those of `Session.extend`; they end the
        pass for all sessions, and leave every `Session.length` unchanged.
        """
        ...


@runtime_checkable
class GreedyDrafting(Protocol):
    """Optional for a session: greedy drafting, in which the backend feeds each token to the next pass by itself."""

    def draft(
        self,
        tokens: Sequence[int],
        count: int,
        *,
        vocab_limit: int,
        on_progress: Callable[[], None] | None = None,
    ) -> Iterator[int]:
        """Append n >= 1 answer tokens, and yield up to ``count`` >= 1 tokens: each is the id below ``vocab_limit`` with
        the largest logit after the tokens before it.

        A token is yielded as soon as it is known, and appended when the caller asks for the next one. Until then
        `length` covers the tokens before it. A backend may already compute the next token. The caller may leave the
        iterator, and any other call to the session ends it. ``on_progress`` as in `Session.extend`. The first token
        raises PromptError if the cache has no room for n + ``count`` - 1 tokens.
        """
        ...
