"""Captured passes: on a GPU a step of few tokens is dispatch more than arithmetic, and a CUDA graph is one launch.

A graph replays the same kernels on the same memory, so nothing in it may depend on a length:

- Tokens and the number of answer rows before them are *copied into* one static buffer. Positions, cache rows and what
  is hidden are computed from it by the captured kernels.
- The prompt's rows are seen by every query. Attention over them needs no mask, and its shape is the session's own; only
  the answer's rows, a few hundred, need one. The two parts are merged by their log-sum-exp. So no pass reads or builds
  a mask over tens of thousands of rows, and no length needs to be rounded up.
- A pass is padded to the next size that is captured. What padding writes lies behind the length and is overwritten
  before it is read.

Without CUDA the same pass runs uncaptured, which is how it is tested: it has not been measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .cache import KeyValueCache
from .decoder import Decoder

SIZES = (1, 2, 4, 8, 16)
"""Tokens of the passes that are captured, each when it is first wanted; longer passes run as they are."""


class SplitAttention:
    """Attention of n queries over a prompt of fixed length and the answer rows up to themselves.

    Args:
        cache: holds the prompt's rows and ``capacity`` answer rows.
        prompt_rows: rows of the prompt.
        capacity: answer rows, those for padding included.
        rows: int64 ``(n,)``, the answer row of each token, read when the attention runs.
    """

    def __init__(self, cache: KeyValueCache, prompt_rows: int, capacity: int, rows: Tensor) -> None:
        filled = cache.filled(prompt_rows + capacity)
        self._keys, self._values = filled[::2], filled[1::2]
        self._prompt_rows = prompt_rows
        self._rows = rows
        self._cache_rows = rows + prompt_rows
        self._hidden = torch.arange(capacity, device=rows.device) > rows[:, None]

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        kv_heads, group, count, head_dim = query.shape
        keys, values = self._keys[layer], self._values[layer]
        keys.index_copy_(2, self._cache_rows, key_value[0])
        values.index_copy_(2, self._cache_rows, key_value[1])
        # Heads that share keys go as rows of one head: without a mask all rows are alike.
        packed = query.reshape(1, kv_heads, group * count, head_dim)
        split = self._prompt_rows
        prompt, prompt_size = attend_to_all(packed, keys[:, :, :split], values[:, :, :split])
        scores = torch.matmul(packed, keys[:, :, split:].transpose(2, 3)).float() * head_dim**-0.5
        scores = scores.masked_fill_(self._hidden.repeat(group, 1), -torch.inf)
        answer_size = torch.logsumexp(scores, -1, keepdim=True)
        answer = torch.matmul(torch.exp(scores - answer_size).to(values.dtype), values[:, :, split:])
        # Two softmaxes over parts of the rows, weighted by their shares of the whole sum.
        share = torch.sigmoid(prompt_size[..., None] - answer_size)
        attended = torch.lerp(answer.float(), prompt.float(), share).to(query.dtype)
        return attended.view(kv_heads, group, count, head_dim).permute(2, 0, 1, 3).reshape(count, -1)


def attend_to_all(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Unmasked attention: ``(1, heads, n, head_dim)``, and float32 ``(1, heads, n)``, the log-sum-exp of the scores."""
    if query.is_cuda:
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values)
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values)
    return found[0], found[1]


class CapturedPasses:
    """Passes behind one session's prompt, captured by size.

    Args:
        decoder: the model.
        cache: with the prompt in it, and room for ``capacity`` answer rows.
        rotations: complex64 ``(>= capacity, 1, head_dim / 2)``, of the answer's positions from its first on.
        prompt_rows: rows of the prompt in the cache.
        capacity: answer rows.
        capture: turns a pass into a function that repeats it and returns its static output; default: a CUDA graph.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KeyValueCache,
        rotations: Tensor,
        prompt_rows: int,
        capacity: int,
        capture: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._rotations = rotations
        self._prompt_rows = prompt_rows
        self._capacity = capacity
        self._capture = capture or capture_graph
        self._passes: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}

    def extend(self, tokens: Sequence[int], length: int) -> Tensor | None:
        """float32 ``(n, vocab_size)``, overwritten by the next pass; None where n is too large or rows are lacking.

        ``length``: answer rows before these tokens.
        """
        count = len(tokens)
        size = next((size for size in SIZES if size >= count), None)
        if size is None or length + size > self._capacity:
            return None
        if size not in self._passes:
            self._passes[size] = self._prepare(size)
        inputs, run = self._passes[size]
        inputs.copy_(torch.tensor([length, *tokens, *[tokens[-1]] * (size - count)]))
        return run()[:count]

    def _prepare(self, size: int) -> tuple[Tensor, Callable[[], Tensor]]:
        decoder = self._decoder
        # Until tokens are copied in, padding at the end of the cache: warming up must write where nothing lies.
        inputs = torch.zeros(1 + size, dtype=torch.int64, device=decoder.device)
        inputs[0] = self._capacity - size
        order = torch.arange(size, device=decoder.device)

        def run() -> Tensor:
            rows = inputs[0] + order
            attention = SplitAttention(self._cache, self._prompt_rows, self._capacity, rows)
            return decoder.logits(decoder.forward(decoder.embed(inputs[1:]), self._rotations[rows], attention))

        return inputs, self._capture(run)


def capture_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture ``run`` as a CUDA graph. It is warmed up on another stream first, as capturing demands."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
