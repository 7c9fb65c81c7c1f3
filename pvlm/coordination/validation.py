"""Checks of an actor's messages: pure functions that return what is invalid, or ``""``.

The codec has refused what is beyond the bounds of a message's types. These functions know the session.
"""

from __future__ import annotations

from collections.abc import Sequence

from pvlm.speculation.text import finish_reason
from pvlm_protocols.backend import Role
from pvlm_protocols.messages import DraftWindow, FromActor, FromDraft, FromTarget, Prepared, Sampling, Verdict


def misplaced(role: Role, message: FromActor) -> str:
    """Is it a message that the actor of a role does not send?"""
    kind = type(message).__name__
    if not isinstance(message, FromTarget if role == "target" else FromDraft):
        return f"a {role} sends no {kind}"
    if (said := getattr(message, "role", role)) != role:
        return f"the {role} sent the {said}'s {kind}"
    return ""


def window_problem(window: DraftWindow, line: int, sampling: Sampling) -> str:
    """Can no draft have written this window after ``line`` tokens? ``sampling``: the draft's."""
    if window.start > line:
        return f"it goes on at token {window.start}, but only {line} were heard of"
    if not window.tokens:
        return "a window without tokens"
    if wrong := _outside(window.tokens, sampling):
        return wrong
    if (end := window.start + len(window.tokens)) > sampling.max_tokens:
        return f"{end} tokens of an answer that may have {sampling.max_tokens}"
    return ""


def outcomes_problem(prepared: Prepared, sampling: Sampling) -> str:
    """Can no draft have prepared these windows?"""
    for outcome in prepared.outcomes:
        if not outcome.tokens:
            return "a prepared window without tokens"
        if wrong := _outside((outcome.parent.token, *outcome.tokens), sampling):
            return wrong
        if (end := outcome.start + len(outcome.tokens)) > sampling.max_tokens:
            return f"{end} tokens of an answer that may have {sampling.max_tokens}"
    return ""


def verdict_problem(verdict: Verdict, committed: int, epoch: int, sampling: Sampling) -> str:
    """Can no target have given this verdict in ``epoch``, with ``committed`` tokens settled before it?"""
    tokens = verdict.tokens
    if verdict.epoch > epoch:  # only the coordinator raises it
        return f"epoch {verdict.epoch} in epoch {epoch}"
    if wrong := _outside(tokens, sampling):
        return wrong
    if verdict.accepted > len(tokens):
        return f"{verdict.accepted} accepted tokens among {len(tokens)}"
    if not min(verdict.pass_tokens, 1) <= verdict.own_tokens <= verdict.pass_tokens:
        return f"a pass over {verdict.pass_tokens} tokens, of which {verdict.own_tokens} are its own"
    if verdict.rejected and verdict.accepted == len(tokens):
        return "a rejection without a token in its place"
    if committed + len(tokens) > sampling.max_tokens:
        return f"{committed + len(tokens)} tokens of an answer that may have {sampling.max_tokens}"
    if any(token in sampling.end_token_ids for token in tokens[:-1]):
        return "tokens after an end token"
    finish = finish_reason(tokens, sampling, before=committed)
    if verdict.finish != finish:
        return f"the answer ends with {verdict.finish} where it should with {finish}"
    return ""


def _outside(tokens: Sequence[int], sampling: Sampling) -> str:
    wrong = next((token for token in tokens if not 0 <= token < sampling.vocab_limit), None)
    return "" if wrong is None else f"token {wrong} of a vocabulary of {sampling.vocab_limit}"
