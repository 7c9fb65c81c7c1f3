"""Captured passes. On a GPU a pass over few tokens is mostly dispatch, and a CUDA graph needs one launch.

A graph replays the same kernels on the same memory, so nothing in it may depend on a length:

- Tokens and the number of earlier answer rows are *copied into* one static buffer. The captured kernels compute
  positions, cache rows and the mask from it.
- Every query sees the prompt's rows, in several segments, of which other sessions may share all but the last. Attention
  over these needs no mask, and its shape is fixed for a session. Only the last segment needs one: it has the question
  and the answer, a few hundred rows. The parts are merged by their log-sum-exp. So no pass reads or builds a mask over
  tens of thousands of rows, and no length is rounded up.
- A pass is padded to the next captured size. The padding's rows come after the length, and are overwritten before they
  are read.

A step of a draft window is a graph too: see `draft`.

Without CUDA the same passes run uncaptured, and the tests use them so. Nothing here has been run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from .cache import Rows
from .decoder import Decoder

SIZES = (1, 2, 4, 8, 16)
"""Sizes of captured passes, in tokens. A size is captured on its first use; longer passes run uncaptured."""

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Turns a function without arguments into one that repeats it and returns its static output."""


class SplitAttention:
    """Attention of n queries over a prompt of fixed length and the answer rows up to themselves.

    Args:
        segments: the prompt's rows; the last one has room for ``capacity`` answer rows.
        capacity: answer rows, those for padding included.
        rows: int64 ``(n,)``, the answer row of each token; read by the captured kernels.
    """

    def __init__(self, segments: Sequence[Rows], capacity: int, rows: Tensor) -> None:
        *shared, own = segments
        filled = own.cache.filled(own.count + capacity)
        self._keys, self._values = filled[::2], filled[1::2]
        self._shared = [segment.cache.filled(segment.count) for segment in shared]
        self._cache_rows = rows + own.count
        self._hidden = torch.arange(own.count + capacity, device=rows.device) > self._cache_rows[:, None]

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        kv_heads, group, count, head_dim = query.shape
        keys, values = self._keys[layer], self._values[layer]
        keys.index_copy_(2, self._cache_rows, key_value[0])
        values.index_copy_(2, self._cache_rows, key_value[1])
        # Heads that share keys go as rows of one head: without a mask all rows are alike.
        packed = query.reshape(1, kv_heads, group * count, head_dim)
        scores = torch.matmul(packed, keys.transpose(2, 3)).float() * head_dim**-0.5
        scores.view(kv_heads, group, count, -1).masked_fill_(self._hidden, -torch.inf)
        size = torch.logsumexp(scores, -1, keepdim=True)
        attended = torch.matmul(torch.exp(scores - size).to(values.dtype), values).float()
        for filled in self._shared:
            found, found_size = attend_to_all(packed, *filled[2 * layer : 2 * layer + 2])
            # Two softmaxes over parts of the rows, weighted by their shares of the whole sum.
            attended = torch.lerp(attended, found.float(), torch.sigmoid(found_size[..., None] - size))
            size = torch.logaddexp(size, found_size[..., None])
        attended = attended.to(query.dtype)
        return attended.view(kv_heads, group, count, head_dim).permute(2, 0, 1, 3).reshape(count, -1)


def attend_to_all(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Unmasked attention: ``(1, heads, n, head_dim)``, and float32 ``(1, heads, n)``, the log-sum-exp of the scores."""
    if query.is_cuda:
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values)
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values)
    return found[0], found[1]


class CapturedPasses:
    """Passes of one session after its prompt, captured by size.

    Args:
        decoder: the model.
        segments: the prompt's rows; the last one has room for ``capacity`` answer rows.
        rotations: complex64 ``(>= capacity, 1, head_dim / 2)``, of the answer's positions from its first on.
        capacity: answer rows.
        capture: how to capture; by default as a CUDA graph.
    """

    def __init__(
        self,
        decoder: Decoder,
        segments: Sequence[Rows],
        rotations: Tensor,
        capacity: int,
        capture: Capture | None = None,
    ) -> None:
        self.device = decoder.device
        self.capacity = capacity
        self.capture: Capture = capture or capture_graph(self.device)
        self._decoder = decoder
        self._segments = segments
        self._rotations = rotations
        self._passes: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}

    def extend(self, tokens: Sequence[int], length: int) -> Tensor | None:
        """Run a pass, and return float32 ``(n, vocab_size)``, which the next pass overwrites.

        Returns None if n is too large, or the cache has too few rows for the padded pass. ``length``: answer rows
        before these tokens.
        """
        count = len(tokens)
        size = next((size for size in SIZES if size >= count), None)
        if size is None or length + size > self.capacity:
            return None
        if size not in self._passes:
            self._passes[size] = self._prepare(size)
        inputs, run = self._passes[size]
        inputs.copy_(torch.tensor([length, *tokens, *[tokens[-1]] * (size - count)]))
        return run()[:count]

    def logits(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Run the pass itself: int64 ``(n,)`` ids into these answer rows, to float32 ``(n, vocab_size)``."""
        decoder = self._decoder
        attention = SplitAttention(self._segments, self.capacity, rows)
        return decoder.logits(decoder.forward(decoder.embed(ids), self._rotations[rows], attention))

    def _prepare(self, size: int) -> tuple[Tensor, Callable[[], Tensor]]:
        # Warming up writes to the end of the cache, which is unused.
        inputs = torch.zeros(1 + size, dtype=torch.int64, device=self.device)
        inputs[0] = self.capacity - size
        order = torch.arange(size, device=self.device)
        return inputs, self.capture(lambda: self.logits(inputs[1:], inputs[0] + order))


def capture_graph(device: torch.device) -> Capture:
    """Return a `Capture` that makes CUDA graphs on ``device``, and warms up each function first."""

    def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        # The device must be set: neither a stream nor a graph takes it from a function's tensors.
        with _CAPTURING, torch.cuda.device(device):
            stream, main = _capture_stream(device), torch.cuda.current_stream()
            stream.wait_stream(main)
            try:
                with torch.cuda.stream(stream):
                    for _ in range(2):
                        run()
            finally:  # a failed warm-up may still write to rows that the next pass uses
                main.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # "thread_local" allows other threads (the other model's, with transport inproc) to go on meanwhile. The
            # outer block restores the current stream, which torch does not after a failed capture.
            with torch.cuda.stream(main), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                output = run()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    return capture


_CAPTURING = Lock()
"""No other thread may use a stream that is being captured."""


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for a device: cuBLAS keeps a workspace for each stream, of 32 MB on an H100."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
