"""One prompt in a transformers model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from ..prefix import Prefix
from ..processing import PreparedPrompt
from ..session import AfterLayer, CachedSession


class TransformersSession(CachedSession):
    """A cache of its own in a shared model of transformers. A subclass runs its passes: `_prefill` and `_feed`.

    Args:
        model: transformers' model.
        prompt: the prepared prompt.
        capacity: answer tokens to make room for.
        vocab_size: width of a logits row.
        prefix: a kept beginning of the prompt.
    """

    def __init__(
        self, model: Any, prompt: PreparedPrompt, capacity: int, vocab_size: int, prefix: Prefix | None = None
    ) -> None:
        super().__init__(prompt, capacity, vocab_size, model.config.get_text_config().num_hidden_layers, prefix)
        self._model = model
        self._device = model.device
        self._cache: DynamicCache | None = None

    @property
    @abstractmethod
    def _decoder_layers(self) -> Sequence[torch.nn.Module]:
        """The decoder's layers, in their order."""

    @abstractmethod
    def _feed(self, ids: torch.Tensor, row: int, position: int) -> torch.Tensor:
        """Run int64 ``(1, n)`` answer tokens into the cache; return their logits, float32 ``(n, vocab_size)``."""

    @torch.no_grad()
    def _extend(self, tokens: Sequence[int], row: int, position: int, after_layer: AfterLayer | None) -> torch.Tensor:
        ids = torch.tensor([*tokens], device=self._device)[None]
        if after_layer is None:
            return self._feed(ids, row, position)
        try:
            with after_each_layer(self._decoder_layers, after_layer):
                return self._feed(ids, row, position)
        except BaseException:
            assert self._cache is not None  # the prefill made it
            layers: list[Any] = self._cache.layers
            for layer in layers:  # those that have run have too many rows
                layer.crop(row - layer.get_seq_length())
            raise

    def _truncate(self, count: int) -> None:
        assert self._cache is not None  # a session with answer tokens has one
        self._cache.crop(-count)  # negative: the number of rows to drop

    def _close(self) -> None:
        self._cache = None


class FamilySession(TransformersSession):
    """A cache of its own in a shared model; the constructor runs the vision tower.

    Each pass gets positions and a cache. Without positions, transformers uses those of the last prompt
    (``rope_deltas``). Without a cache, it takes gaps in the positions, which pruning leaves, for borders between packed
    sequences.

    Args:
        model: transformers' model.
        prompt: the prepared prompt.
        visuals: the model's keyword arguments for each video and image, ``pixel_values_videos`` or ``pixel_values``
            among them.
        capacity: answer tokens to make room for.
        prefix: a kept beginning of the prompt, on which ``visuals`` are those after it. transformers' cache has no
            segments, so a session copies its rows.
    """

    def __init__(
        self,
        model: Any,
        prompt: PreparedPrompt,
        visuals: Sequence[Mapping[str, torch.Tensor]],
        capacity: int,
        prefix: Prefix | None = None,
    ) -> None:
        super().__init__(model, prompt, capacity, model.get_output_embeddings().weight.shape[0], prefix)
        self._embeddings: torch.Tensor | None = self._embed(prompt, visuals)
        self._ends: list[int] = []  # of the blocks of the prefill, in rows of the cache

    @torch.no_grad()
    def _embed(self, prompt: PreparedPrompt, visuals: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """``(1, n, hidden_size)``: the decoder's input after the prefix. Keeps the features for its first layers."""
        tokens = np.arange(self.cached_tokens, len(prompt))
        embeddings = self._model.get_input_embeddings()(torch.from_numpy(prompt.ids[tokens]).to(self._device))
        if visuals:
            rows = torch.from_numpy(self.placeholders_in(tokens)[0]).to(self._device)
            video, image = self._model.get_video_features, self._model.get_image_features
            features = [(image if "pixel_values" in visual else video)(**visual) for visual in visuals]
            embeddings[rows] = torch.cat([found.pooler_output[0] for found in features])
            if hasattr(features[0], "deepstack_features"):
                deep = [torch.stack([layer[0] for layer in found.deepstack_features]) for found in features]
                self._layer_features = torch.cat(deep, dim=1)
        return embeddings[None]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _prefill(
        self,
        rows: NDArray[np.int64],
        positions: NDArray[np.int64],
        blocks: Sequence[int],
        after_layer: AfterLayer,
    ) -> Iterator[torch.Tensor | None]:
        assert self._embeddings is not None  # dropped only when the prefill is done
        embeddings = self._embeddings
        if len(rows) < embeddings.shape[1]:
            embeddings = embeddings[:, torch.from_numpy(rows - self.cached_tokens).to(self._device)]
        self._cache = DynamicCache(config=self._model.config.get_text_config())
        for prefix in [] if self._prefix is None else self._prefix.chain:
            for layer, (keys, values) in enumerate(prefix.content):
                self._cache.update(keys, values, layer)
        done = 0 if self._prefix is None else self._prefix.rows
        self._ends = [done, *(done + np.cumsum(blocks)).tolist()]
        with after_each_layer(self._decoder_layers, after_layer):
            logits = self._run(torch.from_numpy(positions).to(self._device), inputs_embeds=embeddings, logits_to_keep=1)
        self._embeddings = None
        yield logits[0]

    def _block(self, index: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], int]:
        assert self._cache is not None  # the prefill made it
        rows = slice(self._ends[index], self._ends[index + 1])
        layers: list[Any] = self._cache.layers
        kept = [(layer.keys[:, :, rows].clone(), layer.values[:, :, rows].clone()) for layer in layers]
        return kept, sum(keys.nbytes + values.nbytes for keys, values in kept)

    def _queries_and_keys(
        self, layer: int, hidden: torch.Tensor, positions: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._cache is not None  # the running prefill made it
        decoder = self._model.get_decoder()
        block = decoder.layers[layer - 1]
        query = block.self_attn.q_proj(block.input_layernorm(hidden[None]))
        query = query.unflatten(-1, (-1, block.self_attn.head_dim))
        if hasattr(block.self_attn, "q_norm"):
            query = block.self_attn.q_norm(query)
        query = query.transpose(1, 2)
        cosine, sine = decoder.rotary_emb(query, _position_ids(torch.from_numpy(positions).to(query.device)))
        query, _ = apply_rotary_pos_emb(query, query, cosine, sine)
        filled: Any = self._cache.layers[layer - 1]
        return query[0], filled.keys[0]

    def _feed(self, ids: torch.Tensor, row: int, position: int) -> torch.Tensor:
        positions = torch.arange(position, position + ids.shape[1], device=self._device)
        return self._run(positions.expand(len(self._prompt.positions), -1), input_ids=ids)

    @property
    def _decoder_layers(self) -> Sequence[torch.nn.Module]:
        return self._model.get_decoder().layers  # type: ignore[no-any-return]

    def _run(self, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
        ids = _position_ids(positions)
        inputs = {"past_key_values": self._cache, **inputs}
        output = self._model(position_ids=ids, use_cache=True, **inputs)
        return output.logits[0].float()  # type: ignore[no-any-return]

    def _close(self) -> None:
        super()._close()
        self._embeddings = None


def _position_ids(positions: torch.Tensor) -> torch.Tensor:
    """Turn ``(axes, n)`` into transformers' form for a batch of one: ``(1, n)``, or ``(3, 1, n)`` with three axes."""
    return positions if len(positions) == 1 else positions[:, None]


@contextmanager
def after_each_layer(layers: Sequence[torch.nn.Module], after_layer: AfterLayer) -> Iterator[None]:
    """Call ``after_layer`` between decoder layers for the passes inside the block."""

    def before_first(_module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        after_layer(0, (inputs[0] if inputs else named["hidden_states"])[0])

    def after(layer: int) -> Callable[[torch.nn.Module, Any, Any], None]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            after_layer(layer, (output[0] if isinstance(output, tuple) else output)[0])

        return hook

    handles = [layers[0].register_forward_pre_hook(before_first, with_kwargs=True)]
    handles += [layer.register_forward_hook(after(number)) for number, layer in enumerate(layers, 1)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
