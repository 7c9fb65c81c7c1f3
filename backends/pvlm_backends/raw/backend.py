"""The ``torch`` plug-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pvlm_protocols.backend import (
    BackendError,
    CheckpointError,
    LoadOptions,
    ModelInfo,
    Processor,
    Prompt,
    Session,
)
from pvlm_protocols.prefixes import KeptPrefix

if TYPE_CHECKING:
    import torch

    from ..families import Family, VideoTower
    from ..families.config import ModelConfig
    from ..processing import VideoProcessor
    from .decoder import Decoder
    from .session import TorchSession


class TorchBackend:
    """A model of any family in plain torch; made by `load`.

    ``LoadOptions.extra`` may hold ``random_weights``: if true, they are drawn on the device instead of read.
    """

    def __init__(self, info: ModelInfo, processor: VideoProcessor, decoder: Decoder, tower: VideoTower) -> None:
        self._info = info
        self._processor = processor
        self._decoder: Decoder | None = decoder
        self._tower: VideoTower | None = tower

    @property
    def info(self) -> ModelInfo:
        """The model's facts that the runtime needs."""
        return self._info

    def open(self, prompt: Prompt, capacity: int) -> TorchSession:
        """Build the prompt and run the vision tower.

        Raises:
            PromptError: the prompt cannot be built, or it and ``capacity`` exceed the model's positions.
            BackendError: the backend is closed.
        """
        return self.open_in_steps(prompt, capacity, lambda: None)

    def open_in_steps(self, prompt: Prompt, capacity: int, on_progress: Callable[[], None]) -> TorchSession:
        """See `pvlm_protocols.backend.InterruptibleOpening`. Raises as `open`."""
        return self.open_on(prompt, capacity, None, on_progress)

    def open_on(
        self,
        prompt: Prompt,
        capacity: int,
        find: Callable[[bytes], KeptPrefix | None] | None,
        on_progress: Callable[[], None],
    ) -> TorchSession:
        """See `pvlm_protocols.prefixes.KeptPrefixes`. Raises as `open`."""
        import torch

        from ..prefix import find_prefix, visuals_after
        from .session import TorchSession

        if self._decoder is None or self._tower is None:
            raise BackendError("this backend is closed")
        prepared = self._processor.prepare_for(self._info, prompt, capacity)
        prefix = find_prefix(prepared, find)
        decoder, video = self._decoder, None
        with torch.inference_mode():
            features = [
                self._tower.encode(
                    torch.from_numpy(visual.values).to(decoder.device, decoder.dtype),
                    on_progress,
                    visual.size if visual.kind == "image" else None,
                )
                for visual in visuals_after(prepared, prefix)
            ]
            if features:
                video = torch.cat(features, dim=1)
        session = TorchSession(decoder, prepared, video, capacity, prefix)
        session.keeps = find is not None
        return session

    def extend_together(
        self,
        parts: Sequence[tuple[Session, Sequence[int]]],
        *,
        on_progress: Callable[[], None] | None = None,
    ) -> list[torch.Tensor]:
        """See `pvlm_protocols.backend.SharedPasses`. Raises BackendError if the backend is closed."""
        from ..session import append_together, progress
        from .session import TorchSession, shared_pass

        if (decoder := self._decoder) is None:
            raise BackendError("this backend is closed")
        return append_together(parts, TorchSession, lambda ours: shared_pass(decoder, ours, progress(on_progress)))

    def pass_cost(self, tokens: int, rows: int) -> tuple[int, int]:
        """See `pvlm_protocols.backend.PassCost`. Raises BackendError if the backend is closed."""
        if self._decoder is None:
            raise BackendError("this backend is closed")
        return self._decoder.pass_cost(tokens, rows)

    def close(self) -> None:
        """Free the model, once its sessions are closed too."""
        self._decoder = self._tower = None

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        """Load the text and frame half of a checkpoint, without running its code. Raises CheckpointError."""
        from ..families import load_processor

        return load_processor(model)

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> TorchBackend:
        """Load a checkpoint. Raises CheckpointError, and BackendError for an unknown option."""
        import torch

        from ..checkpoint import Checkpoint
        from .random_weights import RandomWeights

        folder, settings, family, config, dtype, devices = describe(options)
        processor = family.processor(folder, settings)
        with torch.inference_mode():
            weights = (
                RandomWeights(config.decoder, dtype, devices[0])
                if _random_weights(options)
                else Checkpoint(folder, family.weight_prefixes, dtype, devices[0], on_progress)
            )
            decoder = cls._decoder_class()(config.decoder, weights, dtype, devices)
            tower = family.load_tower(config, weights)
        if on_progress is not None:
            on_progress(1.0)
        info = ModelInfo(
            name=options.model,
            family=family.model_type,
            vocab_size=config.decoder.vocab_size,
            end_token_ids=processor.end_token_ids,
            tokenizer_fingerprint=processor.tokenizer_fingerprint,
            layers=config.decoder.layers,
            hidden_size=config.decoder.hidden_size,
            max_positions=config.decoder.max_positions,
            parameters=weights.parameters,
            dtype=str(dtype).removeprefix("torch."),
            device=",".join(map(str, devices)),
        )
        return cls(info, processor, decoder, tower)

    @staticmethod
    def _decoder_class() -> type[Decoder]:
        from .decoder import Decoder

        return Decoder


class Described(NamedTuple):
    """A checkpoint's description, and where and in which dtype the options want the model."""

    folder: Path
    settings: Mapping[str, Any]
    family: Family[Any]
    config: ModelConfig[Any]
    dtype: torch.dtype
    devices: tuple[torch.device, ...]


def describe(options: LoadOptions) -> Described:
    """Read a checkpoint's config.json, and no weights. Sets torch's number of threads as `choose_devices` does.

    Raises CheckpointError, and BackendError for an unknown option.
    """
    from ..families import find_family
    from ..options import RANDOM_WEIGHTS, check_extra_options, choose_devices, choose_dtype
    from ..processing.files import locate_checkpoint, read_settings

    check_extra_options(options, (RANDOM_WEIGHTS,))
    devices = choose_devices(options)
    folder = Path(options.model) if _random_weights(options) else locate_checkpoint(options.model)
    settings = read_settings(folder, "config.json")
    if settings.get("quantization_config") is not None:
        raise CheckpointError(
            f"{folder}/config.json: quantization_config: this backend reads no quantised weights; take the backend 'hf'"
        )
    family = find_family(folder, settings)
    config = family.read_config(folder, settings)
    return Described(folder, settings, family, config, choose_dtype(options, devices[0], config.dtype), devices)


def _random_weights(options: LoadOptions) -> bool:
    from ..options import RANDOM_WEIGHTS

    return bool(options.extra.get(RANDOM_WEIGHTS))
