"""The ``hf`` plug-in: models by Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvlm_protocols.backend import BackendError, LoadOptions, ModelInfo, Processor, Prompt
from pvlm_protocols.prefixes import KeptPrefix

if TYPE_CHECKING:
    from torch import Tensor

    from ..families import Family
    from ..processing import PreparedPrompt, VideoProcessor
    from .generation import GeneratedAnswer
    from .session import HuggingFaceSession

_ATTENTION = "attn_implementation"


class HuggingFaceBackend:
    """A model of transformers' ``AutoModelForImageTextToText``; made by `load`.

    ``LoadOptions.extra`` may hold ``attn_implementation`` ("sdpa" or "eager", for instance) and ``random_weights``. If
    the latter is true, random weights are drawn on the first device, and none are read.
    """

    def __init__(self, info: ModelInfo, family: Family[Any], processor: VideoProcessor, model: Any) -> None:
        self._info = info
        self._family = family
        self._processor = processor
        self._model: Any = model

    @property
    def info(self) -> ModelInfo:
        """The model's facts that the runtime needs."""
        return self._info

    def open(self, prompt: Prompt, capacity: int) -> HuggingFaceSession:
        """Build the prompt and run the vision tower.

        Raises:
            PromptError: the prompt cannot be built, or it and ``capacity`` exceed the model's positions.
            BackendError: the backend is closed.
        """
        return self.open_on(prompt, capacity, None, lambda: None)

    def open_on(
        self,
        prompt: Prompt,
        capacity: int,
        find: Callable[[bytes], KeptPrefix | None] | None,
        on_progress: Callable[[], None],
    ) -> HuggingFaceSession:
        """See `pvlm_protocols.prefixes.KeptPrefixes`. The vision tower is one step. Raises as `open`."""
        from ..prefix import find_prefix
        from .session import HuggingFaceSession

        if self._model is None:
            raise BackendError("this backend is closed")
        prepared = self._processor.prepare_for(self._info, prompt, capacity)
        prefix = find_prefix(prepared, find)
        visuals = self._visuals(prepared, 0 if prefix is None else prefix.tokens)
        on_progress()
        session = HuggingFaceSession(self._model, prepared, visuals, capacity, prefix)
        session.keeps = find is not None
        return session

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int,
        *,
        assistant: HuggingFaceBackend | None = None,
        lookup_tokens: int | None = None,
    ) -> GeneratedAnswer:
        """Answer by transformers' own greedy decoding, with which pvlm is compared.

        Args:
            prompt: question and resized frames.
            max_tokens: the answer's limit.
            assistant: the draft of assisted generation; it takes the same prompt.
            lookup_tokens: tokens that prompt lookup drafts at a time.

        Raises:
            PromptError: the prompt cannot be built.
            BackendError: a backend is closed; or the prompt has several videos or an image; or the video reaches to a
                later position than the prompt's last token, after which `generate` would number the answer.
        """
        from .generation import generate

        if self._model is None or (assistant is not None and assistant._model is None):
            raise BackendError("this backend is closed")
        prepared = self._processor.prepare(prompt)
        if int(prepared.positions[:, -1].max()) + 1 != prepared.next_position:
            raise BackendError(
                f"transformers' generate cannot be compared on this video of {self._info.family!r}: its times reach "
                f"to position {prepared.next_position - 1}, beyond the prompt's last token; take a shorter video"
            )
        if [visual.kind for visual in prepared.visuals] not in ([], ["video"]):
            raise BackendError("transformers' generate is compared on prompts with one video, or without")
        visuals = self._visuals(prepared)
        return generate(
            self._model,
            prepared,
            visuals[0] if visuals else {},
            max_tokens=max_tokens,
            end_token_ids=self._info.end_token_ids,
            video_token_id=self._processor.video_token_id,
            assistant=None if assistant is None else assistant._model,
            lookup_tokens=lookup_tokens,
        )

    def _visuals(self, prompt: PreparedPrompt, after: int = 0) -> list[dict[str, Tensor]]:
        """The model's keyword arguments for each of a prompt's videos and images, on its device. ``after``: so many
        tokens."""
        import torch

        found = []
        for visual in prompt.visuals:
            if visual.row < after:
                continue
            pixels = torch.from_numpy(visual.values).to(self._model.device, self._model.dtype)
            if visual.kind == "image":
                found.append(self._family.transformers_image(pixels, visual.size))
            else:
                found.append(self._family.transformers_video(pixels))
        return found

    def close(self) -> None:
        """Free the model, once its sessions are closed too."""
        self._model = None

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        """Load the text and frame half of a checkpoint, without running its code. Raises CheckpointError."""
        from ..families import load_processor

        return load_processor(model)

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> HuggingFaceBackend:
        """Load a checkpoint. Raises CheckpointError, and BackendError without transformers or for an unknown option."""
        from ..families import find_family
        from ..families.config import stored_dtype
        from ..options import RANDOM_WEIGHTS, check_extra_options, choose_devices, choose_dtype
        from ..processing.files import locate_checkpoint, read_settings

        if find_spec("transformers") is None:
            raise BackendError("the backend 'hf' needs the package transformers: pip install 'pvlm[hf]'")
        from .model import load_model, random_model

        check_extra_options(options, (_ATTENTION, RANDOM_WEIGHTS))
        devices = choose_devices(options)
        random = bool(options.extra.get(RANDOM_WEIGHTS))
        folder = Path(options.model) if random else locate_checkpoint(options.model, pickled=options.allow_pickle)
        settings = read_settings(folder, "config.json")
        family = find_family(folder, settings)
        processor = family.processor(folder, settings)
        dtype = choose_dtype(options, devices[0], stored_dtype(settings))
        if random:
            model = random_model(folder, devices[0], dtype)
        else:
            model = load_model(folder, settings, options, devices, dtype, on_progress)
        if on_progress is not None:
            on_progress(1.0)
        text = model.config.get_text_config()
        info = ModelInfo(
            name=options.model,
            family=family.model_type,
            vocab_size=model.get_output_embeddings().weight.shape[0],
            end_token_ids=processor.end_token_ids,
            tokenizer_fingerprint=processor.tokenizer_fingerprint,
            layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            max_positions=text.max_position_embeddings,
            parameters=sum(weight.numel() for weight in model.parameters()),
            dtype=str(model.dtype).removeprefix("torch."),
            device=",".join(map(str, devices)),
        )
        return cls(info, family, processor, model)
