"""A request: the messages that open a session at both actors."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from pvlm.answer.frames import Turns
from pvlm.config import AnswerOptions, EngineConfig, Method
from pvlm.errors import OptionError
from pvlm.plugins import plugin_names
from pvlm.runtime.pair import Pair
from pvlm.speculation.policy import WindowPolicy
from pvlm_protocols.backend import Role
from pvlm_protocols.messages import Coupling, Open, Pruning, Sampling, Schedule, Window


@dataclass(frozen=True, eq=False)
class Request:
    """How one session is opened. ``draft`` is None where the target answers alone (``method`` "ar").

    ``backends``: the plug-ins that run the models, by role.
    """

    method: Method
    target: Open
    draft: Open | None
    policy: WindowPolicy
    backends: Mapping[Role, str]
    ignored_options: tuple[str, ...]
    """See `AnswerStats.ignored_options`."""


def resolve_method(config: EngineConfig, options: AnswerOptions) -> Method:
    """The method of one answer. Raises OptionError where the engine has no draft for it."""
    engine_method = config.resolved_method()
    if options.method is None or options.method == "auto":
        return engine_method
    if options.method != "ar" and engine_method == "ar":
        raise OptionError(
            f"method '{options.method}' needs a draft, but this engine was opened without one (method 'ar')"
        )
    return options.method


def build_request(config: EngineConfig, options: AnswerOptions, pair: Pair, turns: Turns) -> Request:
    """Both opening messages and the window policy of one answer, from the engine's settings and the answer's options.

    Raises OptionError where an option is invalid for this engine.
    """
    method = resolve_method(config, options)
    schedule = _schedule(config, method, options)
    pruning = _pruning(config, method, options)
    target_info = pair.info("target")
    assert target_info is not None  # no engine is open without a target that was started
    sampling = _sampling(pair, options, target_info.vocab_size)
    outcomes = config.outcomes if options.outcomes is None else options.outcomes
    window = options.window or config.window
    policy = pair.policies.policy(schedule, pruning, window, outcomes, sampling.coupling)
    choice = policy.choice()
    backends: dict[Role, str] = {"target": target_info.backend}
    target = Open(
        session=pair.next_session(),
        turns=turns["target"],
        sampling=sampling,
        pruning=pruning,
        schedule=schedule,
        window=Window(
            gamma=choice.gamma,
            wait=choice.wait,
            patience_ms=choice.patience_ms,
            ahead=choice.pays and not choice.turns,
            outcomes=choice.outcomes,
        ),
    )
    draft = None
    if method != "ar" and (draft_info := pair.info("draft")) is not None:
        # The draft must not write a token that the target does not have.
        limit = min(target.sampling.vocab_limit, draft_info.vocab_size)
        draft = msgspec.structs.replace(
            target, turns=turns["draft"], sampling=msgspec.structs.replace(target.sampling, vocab_limit=limit)
        )
        backends["draft"] = draft_info.backend
    return Request(method, target, draft, policy, backends, pair.target_processor.ignored_generation_options)


def resolve_coupling(
    requested: Coupling, *, temperature: float, seeded: bool
) -> Literal["greedy", "speculative", "gumbel"]:
    """The coupling that an answer uses. ``seeded``: the caller gave a seed.

    Temperature 0 leaves nothing to draw and is always greedy. ``auto`` is Gumbel with a seed: the text is then a
    function of prompt and seed alone. Without a seed it is speculative sampling, which accepts more.
    """
    if temperature == 0:
        return "greedy"
    match requested:
        case "auto":
            return "gumbel" if seeded else "speculative"
        case "speculative" | "gumbel":
            return requested
        case "greedy":
            raise OptionError(f"coupling 'greedy' needs temperature 0, but temperature is {temperature}")


def _schedule(config: EngineConfig, method: Method, options: AnswerOptions) -> Schedule:
    """How draft and target share the work."""
    prefill, decode = options.parallel_prefill, options.parallel_decode
    match method:
        case "ar":
            return Schedule(mode="alone")
        case "sd":
            return Schedule(mode="turns", overlap_prefill=False)
        case "parallel":
            together = config.parallel_decode if decode is None else decode
            return Schedule(
                mode="together" if together else "turns",
                overlap_prefill=config.parallel_prefill if prefill is None else prefill,
            )


def _pruning(config: EngineConfig, method: Method, options: AnswerOptions) -> Pruning:
    """What the draft sees of the video."""
    prune = options.prune or config.prune
    if prune == "auto":
        prune = "uv" if method == "parallel" else "none"
    if ":" not in prune and prune not in (known := plugin_names("pvlm.pruners")):
        raise OptionError(f"there is no pruner '{prune}': use one of {', '.join(known)}")
    ratio = config.prune_ratio if options.prune_ratio is None else options.prune_ratio
    return Pruning(
        method=prune,
        ratio=0.0 if prune == "none" else ratio,
        early_layer=config.early_layer,
        compact_positions=config.compact_positions,
        seed=options.seed or 0,
    )


def _sampling(pair: Pair, options: AnswerOptions, vocab_size: int) -> Sampling:
    """How the target's tokens are chosen, and where the answer ends."""
    seeded = options.seed is not None
    end_token_ids = () if options.ignore_eos else pair.target_processor.end_token_ids
    return Sampling(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=secrets.randbits(63) if options.seed is None else options.seed,
        coupling=resolve_coupling(options.coupling, temperature=options.temperature, seeded=seeded),
        vocab_limit=vocab_size,
        end_token_ids=end_token_ids + options.stop_token_ids,
    )
