"""The ``torch`` plug-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pvlm_protocols.backend import BackendError, LoadOptions, ModelInfo, Processor, Prompt

if TYPE_CHECKING:
    from ..processing import VideoProcessor
    from .decoder import Decoder
    from .session import TorchSession
    from .vision import VideoEncoder


class TorchBackend:
    """LLaVA-OneVision or Qwen2.5-VL in plain torch; made by `load`.

    ``LoadOptions.extra`` may hold ``random_weights``: true draws them on the device, in the shapes of config.json.
    """

    def __init__(self, info: ModelInfo, processor: VideoProcessor, decoder: Decoder, encoder: VideoEncoder) -> None:
        self._info = info
        self._processor = processor
        self._decoder: Decoder | None = decoder
        self._encoder: VideoEncoder | None = encoder

    @property
    def info(self) -> ModelInfo:
        """What the runtime must know about the model."""
        return self._info

    def open(self, prompt: Prompt, capacity: int) -> TorchSession:
        """Build the prompt and run the vision tower.

        Raises:
            PromptError: the prompt cannot be built, or it and ``capacity`` exceed the model's positions.
            BackendError: the backend is closed.
        """
        import torch

        from ..loading import check_positions
        from .session import TorchSession

        if self._decoder is None or self._encoder is None:
            raise BackendError("this backend is closed")
        prepared = self._processor.prepare(prompt)
        check_positions(prepared, capacity, self._info.max_positions)
        video = None
        if prepared.pixels is not None:
            decoder = self._decoder
            with torch.inference_mode():
                video = self._encoder.encode(torch.from_numpy(prepared.pixels).to(decoder.device, decoder.dtype))
        return TorchSession(self._decoder, prepared, video, capacity)

    def pass_cost(self, tokens: int, rows: int) -> tuple[int, int]:
        """See `pvlm_protocols.backend.PassCost`. Raises BackendError if the backend is closed."""
        if self._decoder is None:
            raise BackendError("this backend is closed")
        return self._decoder.pass_cost(tokens, rows)

    def close(self) -> None:
        """Free the model, once its sessions are closed too."""
        self._decoder = self._encoder = None

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        """The text and frame half of a checkpoint; no code of the checkpoint is ever run. Raises CheckpointError."""
        from ..processing import load_processor

        return load_processor(model)

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> TorchBackend:
        """Load a checkpoint. Raises CheckpointError, and BackendError for options that are not known."""
        import torch

        from ..loading import RANDOM_WEIGHTS, check_extra_options, choose_devices, choose_dtype
        from ..processing import processor_of
        from ..processing.files import locate_checkpoint, read_settings
        from .checkpoint import Checkpoint
        from .config import ModelConfig
        from .random_weights import RandomWeights
        from .vision import load_encoder

        check_extra_options(options, (RANDOM_WEIGHTS,))
        devices = choose_devices(options)
        random = bool(options.extra.get(RANDOM_WEIGHTS))
        folder = Path(options.model) if random else locate_checkpoint(options.model)
        settings = read_settings(folder, "config.json")
        config = ModelConfig.from_settings(folder, settings)
        dtype = choose_dtype(options, devices[0], config.dtype)
        processor = processor_of(folder, settings)
        with torch.inference_mode():
            weights = (
                RandomWeights(folder, config, dtype, devices[0])
                if random
                else Checkpoint(folder, dtype, devices[0], on_progress)
            )
            decoder = cls._decoder_class()(config.text, weights, dtype, devices)
            encoder = load_encoder(config, weights)
        if on_progress is not None:
            on_progress(1.0)
        info = ModelInfo(
            name=options.model,
            family=config.family,
            vocab_size=config.text.vocab_size,
            end_token_ids=processor.end_token_ids,
            tokenizer_fingerprint=processor.tokenizer_fingerprint,
            layers=config.text.layers,
            hidden_size=config.text.hidden_size,
            max_positions=config.text.max_positions,
            parameters=weights.parameters,
            dtype=str(dtype).removeprefix("torch."),
            device=",".join(map(str, devices)),
        )
        return cls(info, processor, decoder, encoder)

    @staticmethod
    def _decoder_class() -> type[Decoder]:
        from .decoder import Decoder

        return Decoder
