"""A model for lmms-eval (``--model pvlm``): an engine in the process of the evaluation.

It is found by the entry point ``pvlm`` of the group ``lmms_eval.models``. lmms-eval is not a requirement of pvlm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from pvlm.answer.batch import AnswerRequest
from pvlm.config import AnswerOptions, EngineConfig, engine_config
from pvlm.engine import Engine
from pvlm.errors import OptionError
from pvlm.log import configure_logging, log

if TYPE_CHECKING:
    from pvlm.results import AnswerStats

MANIFEST = ModelManifest(model_id="pvlm", chat_class_path=f"{__name__}.PvlmModel")
FAILED = "[LMMS_EVAL_REQUEST_FAILED]"
"""What lmms-eval's own models answer where a request has failed; it scores as a wrong answer."""
SAMPLING = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
}
"""A task's ``generation_kwargs`` and their names here."""
GREEDY = ("temperature", "top_p", "top_k", "seed")
"""Those that mean nothing with ``do_sample: false``."""
NEUTRAL = {"num_beams": (1,), "n": (1,), "num_return_sequences": (1,), "use_cache": (True, False)}
"""Those that have no name here, and the values with which they change nothing."""
UNUSED = ("do_sample", "until")
"""``until`` ends prompts of plain language models; lmms-eval's own chat models and its client do not use it."""


class PvlmModel(lmms):  # type: ignore[misc]
    """Answers tasks of the kind ``generate_until``. ``--model_args``: settings of `EngineConfig` and options of
    `AnswerOptions`, for instance ``target=MODEL,draft=MODEL,method=parallel,num_frames=32``.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        """Raises ConfigError and OptionError for invalid arguments. Loads nothing yet."""
        super().__init__()
        for name, value in arguments.items():
            if isinstance(value, str):  # lmms-eval keeps the quotes around a list of devices
                arguments[name] = value.strip("'\"")
        for name in ("batch_size", "max_batch_size"):  # `max_sessions` answers are written at a time
            arguments.pop(name, None)
        of_answers = set(AnswerOptions.__struct_fields__) - set(EngineConfig.__struct_fields__)
        self._options = {name: arguments.pop(name) for name in of_answers & set(arguments)}
        self._config = engine_config(arguments)
        configure_logging("warning")

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers, in the order of the requests."""
        return anyio.run(self._answers, requests)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Raises NotImplementedError: pvlm has no such score."""
        raise NotImplementedError("pvlm answers tasks of the kind generate_until alone")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raises NotImplementedError."""
        raise NotImplementedError("pvlm answers tasks of the kind generate_until alone")

    async def _answers(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        found: list[GenerationResult] = []
        figures: list[AnswerStats] = []
        async with Engine(self._config) as engine:
            async for outcome in engine.map(tqdm(map(self._asked, requests), "Answers", len(requests))):
                if (answer := outcome.answer) is None:
                    log.error("lmms_eval_request_failed", index=outcome.index, reason=str(outcome.error))
                    found.append(GenerationResult(text=f"{FAILED} {outcome.error}"))
                    continue
                figures.append(answer.stats)
                counts = TokenCounts(input_tokens=answer.stats.prompt_tokens, output_tokens=answer.stats.new_tokens)
                found.append(GenerationResult(text=answer.text, token_counts=counts))
        _log_speed(figures)
        return found

    def _asked(self, request: Instance) -> AnswerRequest:
        _, doc_to_messages, generation, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return AnswerRequest(
            messages=conversation(messages), options={**answer_options_of(generation), **self._options}
        )


def answer_options_of(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an answer for a task's ``generation_kwargs``. Raises OptionError for one that would change it."""
    options = {}
    greedy = generation.get("do_sample") is False
    for name, value in generation.items():
        if value is None or name in UNUSED or (greedy and name in GREEDY):
            continue
        if name in SAMPLING:
            options[SAMPLING[name]] = value
        elif value not in NEUTRAL.get(name, ()):
            raise OptionError(f"generation_kwargs: {name}={value!r} is not supported")
    return options


def conversation(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's messages as `Engine.answer` takes them. Raises OptionError for parts of another type."""
    return [{"role": one["role"], "content": [_part(part) for part in one["content"]]} for one in messages]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"type": kind, "text": part["text"]}
    source = part["url"]
    if isinstance(source, Image.Image):
        source = np.asarray(source.convert("RGB"))
    if part.get("start_time") is not None or part.get("end_time") is not None:
        raise OptionError("a task names a part of a video (start_time, end_time): cut the video instead")
    return {"type": kind, kind: source}


def _log_speed(figures: Sequence[AnswerStats]) -> None:
    """The figures in lmms-eval's results: tokens per second in decoding, and the acceptance rate."""
    tokens, decoding_s = (sum(getattr(one, name) for one in figures) for name in ("new_tokens", "decode_s"))
    rates = [one.acceptance_rate for one in figures if one.acceptance_rate is not None]
    further = {"acceptance_rate": sum(rates) / len(rates)} if rates else {}
    log_metrics(
        total_elapsed_time=decoding_s,
        total_gen_tokens=tokens,
        avg_speed=tokens / decoding_s if decoding_s else 0.0,
        additional_metrics=further,
    )
