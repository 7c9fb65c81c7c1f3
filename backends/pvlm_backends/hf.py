"""The ``hf`` plug-in: models by Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

from pvlm_protocols.backend import BackendError, CheckpointError, LoadOptions, ModelInfo, Processor, Prompt

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .hf_session import HuggingFaceSession
    from .processing import LlavaOnevisionProcessor

_EXTRA_OPTIONS = ("attn_implementation",)
_LOADING = Lock()
"""transformers patches torch while it loads: of two models at once (transport inproc) one may lose its tied weights."""


class HuggingFaceBackend:
    """A model of transformers' ``AutoModelForImageTextToText``; made by `load`.

    ``LoadOptions.extra`` may hold ``attn_implementation`` ("sdpa" or "eager", for instance).
    """

    def __init__(self, info: ModelInfo, processor: LlavaOnevisionProcessor, model: Any) -> None:
        self._info = info
        self._processor = processor
        self._model: Any = model

    @property
    def info(self) -> ModelInfo:
        """What the runtime must know about the model."""
        return self._info

    def open(self, prompt: Prompt, capacity: int) -> HuggingFaceSession:
        """Build the prompt and run the vision tower.

        Raises:
            PromptError: the prompt cannot be built, or it and ``capacity`` exceed the model's positions.
            BackendError: the backend is closed.
        """
        from .hf_session import HuggingFaceSession
        from .loading import check_positions

        if self._model is None:
            raise BackendError("this backend is closed")
        prepared = self._processor.prepare(prompt)
        check_positions(len(prepared), capacity, self._info.max_positions)
        return HuggingFaceSession(self._model, prepared, capacity)

    def close(self) -> None:
        """Free the model, once its sessions are closed too."""
        self._model = None

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        """The text and frame half of a checkpoint; no code of the checkpoint is ever run. Raises CheckpointError."""
        from .processing import load_processor

        return load_processor(model)

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> HuggingFaceBackend:
        """Load a checkpoint. Raises CheckpointError, and BackendError for options that are not known."""
        from .loading import check_extra_options, choose_device, choose_dtype
        from .processing import LlavaOnevisionProcessor
        from .processing.files import locate_checkpoint, read_settings

        check_extra_options(options, _EXTRA_OPTIONS)
        device = choose_device(options)
        folder = locate_checkpoint(options.model, pickled=options.allow_pickle)
        settings = read_settings(folder, "config.json")
        processor = LlavaOnevisionProcessor(folder, settings)
        own_dtype = settings.get("dtype") or settings.get("torch_dtype") or "float32"
        model = _load_model(folder, options, choose_dtype(options, device, own_dtype)).to(device)
        if on_progress is not None:
            on_progress(1.0)
        text = model.config.get_text_config()
        info = ModelInfo(
            name=options.model,
            family=model.config.model_type,
            vocab_size=model.get_output_embeddings().weight.shape[0],
            end_token_ids=processor.end_token_ids,
            tokenizer_fingerprint=processor.tokenizer_fingerprint,
            layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            max_positions=text.max_position_embeddings,
            parameters=sum(weight.numel() for weight in model.parameters()),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(device),
        )
        return cls(info, processor, model)


def _load_model(folder: Path, options: LoadOptions, dtype: torch.dtype) -> Any:
    """The model, with all of its weights from the checkpoint. Raises CheckpointError."""
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    if not options.allow_pickle and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder} holds weights as pickle only, which can run any code when loaded; convert them to "
            "safetensors, or set allow_pickle if you trust their source"
        )
    with _LOADING:
        with_bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=None if options.allow_pickle else True,
                trust_remote_code=options.trust_remote_code,
                output_loading_info=True,
                **options.extra,
            )
        except Exception as error:  # whatever the loader meets: OSError, SafetensorError, RuntimeError, ValueError, ...
            raise CheckpointError(f"transformers cannot load {folder}: {error}") from error
        finally:
            if with_bar:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    # transformers would go on with random weights in their place.
    model, report = loaded
    if report["missing_keys"]:
        raise CheckpointError(f"{folder} holds no weight {sorted(report['missing_keys'])[0]!r}")
    return model.eval()
