"""The ``hf`` plug-in: models by Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvlm_protocols.backend import BackendError, LoadOptions, ModelInfo, Processor, Prompt, Session
from pvlm_protocols.limits import MAX_ID
from pvlm_protocols.prefixes import KeptPrefix

if TYPE_CHECKING:
    import torch

    from ..processing.text import TextProcessor
    from .generation import GeneratedAnswer
    from .generic.prompts import GenericPrompts
    from .prompts import FamilyPrompts
    from .session import TransformersSession

_ATTENTION = "attn_implementation"


class HuggingFaceBackend:
    """A model of transformers' ``AutoModelForImageTextToText``; made by `load`.

    ``LoadOptions.extra`` may hold ``attn_implementation`` ("sdpa" or "eager", for instance) and ``random_weights``. If
    the latter is true, random weights are drawn on the first device, and none are read.

    ``prompts``: those of a family, or of the checkpoint's own processor.
    """

    def __init__(self, info: ModelInfo, prompts: FamilyPrompts | GenericPrompts, model: Any) -> None:
        self._info = info
        self._prompts = prompts
        self._model: Any = model

    @property
    def info(self) -> ModelInfo:
        """The model's facts that the runtime needs."""
        return self._info

    def open(self, prompt: Prompt, capacity: int) -> TransformersSession:
        """Build the prompt and, with `FamilyPrompts`, run the vision tower.

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
    ) -> TransformersSession:
        """See `pvlm_protocols.prefixes.KeptPrefixes`. The vision tower is one step. Raises as `open`."""
        if self._model is None:
            raise BackendError("this backend is closed")
        session = self._prompts.open(self._model, self._info, prompt, capacity, find)
        on_progress()
        session.keeps = find is not None
        return session

    def extend_branches(
        self,
        parts: Sequence[tuple[Session, Sequence[int]]],
        *,
        on_progress: Callable[[], None] | None = None,
    ) -> list[torch.Tensor]:
        """See `pvlm_protocols.branches.BranchPasses`. Sessions of generic models have no branches."""
        from ..session import append_together, progress
        from .branches import BranchingFamilySession, tree_pass

        return append_together(parts, BranchingFamilySession, lambda ours: tree_pass(ours, progress(on_progress)))

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
            BackendError: a backend is closed, or its family has no folder; or the prompt has several videos or an
                image; or the video reaches to a later position than the prompt's last token, after which `generate`
                would number the answer.
        """
        from .generation import generate
        from .prompts import FamilyPrompts

        if self._model is None or (assistant is not None and assistant._model is None):
            raise BackendError("this backend is closed")
        if not isinstance(self._prompts, FamilyPrompts):
            raise BackendError(f"transformers' own loops are not compared on models of {self._info.family!r}")
        prepared, video = self._prompts.with_one_video(self._model, self._info, prompt)
        return generate(
            self._model,
            prepared,
            video,
            max_tokens=max_tokens,
            end_token_ids=self._info.end_token_ids,
            video_token_id=self._prompts.processor.video_token_id,
            assistant=None if assistant is None else assistant._model,
            lookup_tokens=lookup_tokens,
        )

    def close(self) -> None:
        """Free the model, once its sessions are closed too."""
        self._model = None

    @classmethod
    def processor(cls, model: str, *, trust_remote_code: bool = False) -> Processor:
        """Load the text and frame half of a checkpoint, without running its code. Raises CheckpointError."""
        from ..families import FAMILIES
        from ..processing.files import locate_checkpoint, read_settings
        from .generic.processor import GenericProcessor

        folder = locate_checkpoint(model, weights=False)
        settings = read_settings(folder, "config.json")
        family = FAMILIES.get(str(settings.get("model_type")))
        return family.processor(folder, settings) if family else GenericProcessor(folder, settings)

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> HuggingFaceBackend:
        """Load a checkpoint. Raises CheckpointError, and BackendError for a missing package or an unknown option."""
        from ..families import FAMILIES
        from ..families.config import stored_dtype
        from ..options import RANDOM_WEIGHTS, check_extra_options, choose_devices, choose_dtype
        from ..processing.files import locate_checkpoint, read_settings

        if find_spec("transformers") is None:
            raise BackendError("the backend 'hf' needs the package transformers: pip install 'pvlm[hf]'")
        from .generic.processor import GenericProcessor
        from .generic.prompts import GenericPrompts
        from .model import load_model, random_model
        from .prompts import FamilyPrompts

        check_extra_options(options, (_ATTENTION, RANDOM_WEIGHTS))
        devices = choose_devices(options)
        random = bool(options.extra.get(RANDOM_WEIGHTS))
        folder = (
            Path(options.model)
            if random
            else locate_checkpoint(options.model, pickled=options.allow_pickle, code=options.trust_remote_code)
        )
        settings = read_settings(folder, "config.json")
        dtype = choose_dtype(options, devices[0], stored_dtype(settings))

        kind = str(settings.get("model_type"))
        prompts: FamilyPrompts | GenericPrompts
        if (family := FAMILIES.get(kind)) is not None:
            prompts = FamilyPrompts(family, family.processor(folder, settings))
        else:
            processor = GenericProcessor(folder, settings)
            prompts = GenericPrompts(folder, processor, trust_remote_code=options.trust_remote_code)
        if random:
            model = random_model(folder, devices[0], dtype)
        else:
            model = load_model(folder, settings, options, devices, dtype, on_progress)
        info = _info(model, options, kind, prompts.processor, devices)
        if isinstance(prompts, GenericPrompts):
            prompts.check(model, info)
        if on_progress is not None:
            on_progress(1.0)
        return cls(info, prompts, model)


def _info(
    model: Any, options: LoadOptions, family: str, processor: TextProcessor, devices: Sequence[torch.device]
) -> ModelInfo:
    text, head = model.config.get_text_config(), model.get_output_embeddings()
    return ModelInfo(
        name=options.model,
        family=family,
        vocab_size=text.vocab_size if head is None else head.weight.shape[0],
        end_token_ids=processor.end_token_ids,
        tokenizer_fingerprint=processor.tokenizer_fingerprint,
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        max_positions=getattr(text, "max_position_embeddings", MAX_ID),
        parameters=sum(weight.numel() for weight in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=",".join(map(str, devices)),
    )
