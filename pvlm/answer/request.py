"""From the settings of an engine and the options of an answer to the messages that start its session."""

from __future__ import annotations

import secrets

import msgspec

from pvlm.config import AnswerOptions, EngineConfig, Method
from pvlm.errors import OptionError
from pvlm.plugins import plugin_names
from pvlm.runtime.pair import Runtime
from pvlm.speculation.settings import resolve_coupling
from pvlm.speculation.windows import WindowPolicy
from pvlm_protocols.messages import Open, Pruning, Sampling, Schedule, VideoFrames, Window


def resolve_method(runtime: Runtime, options: AnswerOptions) -> Method:
    """The method of one answer. Raises OptionError where the engine has no draft for it."""
    if options.method is None or options.method == "auto":
        return runtime.method
    if options.method != "ar" and runtime.method == "ar":
        raise OptionError(
            f"method '{options.method}' needs a draft, but this engine was opened without one (method 'ar')"
        )
    return options.method


def answer_schedule(runtime: Runtime, method: Method, options: AnswerOptions) -> Schedule:
    """How draft and target share the work of one answer."""
    return runtime.schedule(
        method,
        parallel_prefill=options.parallel_prefill,
        parallel_decode=options.parallel_decode,
    )


def answer_pruning(config: EngineConfig, method: Method, options: AnswerOptions) -> Pruning:
    """What the draft sees in one answer. Raises OptionError where there is no such pruner."""
    prune = options.prune or config.prune
    if prune == "auto":
        prune = "uv" if method == "parallel" else "none"
    if prune not in (known := plugin_names("pvlm.pruners")):
        raise OptionError(f"there is no pruner '{prune}': use one of {', '.join(known)}")
    ratio = config.prune_ratio if options.prune_ratio is None else options.prune_ratio
    return Pruning(
        method=prune,
        ratio=0.0 if prune == "none" else ratio,
        early_layer=config.early_layer,
        compact_positions=config.compact_positions,
        seed=options.seed or 0,
    )


def opening(
    runtime: Runtime,
    question: str,
    video: VideoFrames | None,
    options: AnswerOptions,
    schedule: Schedule,
    pruning: Pruning,
    policy: WindowPolicy,
) -> Open:
    """The message that starts a session at the target."""
    processor = runtime.target_processor
    choice = policy.choice()
    return Open(
        session=runtime.next_session(),
        question=question,
        video=video,
        sampling=Sampling(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            seed=secrets.randbits(63) if options.seed is None else options.seed,
            coupling=resolve_coupling(
                options.coupling, temperature=options.temperature, seeded=options.seed is not None
            ),
            vocab_limit=runtime.vocab_size("target"),
            end_token_ids=(() if options.ignore_eos else processor.end_token_ids) + options.stop_token_ids,
        ),
        pruning=pruning,
        schedule=schedule,
        window=Window(gamma=choice.gamma, wait=choice.wait, patience_ms=choice.patience_ms),
    )


def draft_opening(runtime: Runtime, video: VideoFrames | None, target: Open) -> Open:
    """The message that starts a session at the draft, from the ``target``'s."""
    # A token of the draft that the target does not have must not be drafted.
    limit = min(target.sampling.vocab_limit, runtime.vocab_size("draft"))
    return msgspec.structs.replace(
        target, video=video, sampling=msgspec.structs.replace(target.sampling, vocab_limit=limit)
    )
