"""Many requests: so many at a time are answered, and each has an outcome of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import anyio
import msgspec

from pvlm.config import answer_options
from pvlm.errors import EngineStateError, OptionError, PvlmError
from pvlm.redaction import shown
from pvlm.results import Answer
from pvlm.settings.keywords import AnswerKeywords
from pvlm.settings.validation import build

LEAVING_S = 10.0
"""The longest wait for answers that are left in the middle."""


class AnswerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `pvlm.Engine.map` answers: a ``question`` about a ``video``, as in `pvlm.Engine.answer`.

    ``options``: of this answer, as in `AnswerOptions`. ``messages``: passed to `Engine.answer` beside them. ``id``:
    anything by which the caller knows the request.
    """

    video: Any = None
    question: Any = None
    messages: Any = None
    options: Mapping[str, Any] = {}
    id: Any = None

    @classmethod
    def of(cls, given: Given) -> AnswerRequest:
        """A request from a mapping, or from the JSON text of one. Raises OptionError."""
        if isinstance(given, AnswerRequest):
            return given
        if isinstance(given, str | bytes):
            try:
                given = msgspec.json.decode(given)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise OptionError(f"a request is not valid JSON: {error}") from None
        if not isinstance(given, Mapping):
            raise OptionError(f"a request is {shown(given)}: give an object with 'video' and 'question'")
        request = build(cls, given, "key of a request", OptionError)
        if not isinstance(request.options, Mapping):
            raise OptionError(f"options is {shown(request.options)}: it must be an object, such as {{'seed': 1}}")
        return request

    def keywords(self, common: Mapping[str, Any]) -> AnswerKeywords:
        """Options for `Engine.answer`: those of all requests, and this one's own. Raises OptionError."""
        own = self.options
        answer_options(own)  # a name such as `trace` is a keyword of the method, but no option
        if "max_new_tokens" in own:
            common = {name: value for name, value in common.items() if name != "max_tokens"}
        found: Any = {**common, **own, **({} if self.messages is None else {"messages": self.messages})}
        return cast("AnswerKeywords", found)


Given: TypeAlias = AnswerRequest | Mapping[str, Any] | str | bytes
"""A request, or a mapping with its fields, or the JSON text of one, such as a line of a file."""


@dataclass(frozen=True)
class Outcome:
    """How a request has ended: with an ``answer``, or with an ``error``. The other one is None.

    ``index``: the number of the request, from 0. ``request``: as it was given.
    """

    index: int
    request: Given
    answer: Answer | None = None
    error: PvlmError | None = None

    def result(self) -> Answer:
        """Return the answer, or raise the error."""
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer


async def outcomes(
    answer: Callable[[AnswerRequest], Awaitable[Answer]],
    requests: Iterable[Given],
    *,
    concurrency: int,
    ordered: bool,
) -> AsyncGenerator[Outcome, None]:
    """Answer requests, at most ``concurrency`` at a time, and yield their outcomes: in the order of the requests, or as
    they end.

    A request is taken from ``requests`` when it is begun. Raises EngineStateError where the engine cannot answer at
    all. Answers that are being written when the iteration is left are cancelled.
    """
    waiting = enumerate(requests)
    running: set[asyncio.Task[Outcome]] = set()
    ended: dict[int, Outcome] = {}
    due, exhausted = 0, False
    try:
        while True:
            while not exhausted and len(running) < concurrency:
                if (given := next(waiting, None)) is None:
                    exhausted = True
                else:
                    running.add(asyncio.create_task(_outcome(answer, *given)))
            if due in ended:
                outcome = ended.pop(due)
                if isinstance(outcome.error, EngineStateError):  # it concerns every request
                    raise outcome.error
                yield outcome
                due += 1
            elif running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                ends = [task.result() for task in done]
                ended.update((outcome.index if ordered else due + place, outcome) for place, outcome in enumerate(ends))
            else:
                return
    finally:
        for task in running:
            task.cancel()
        if running:
            with anyio.move_on_after(LEAVING_S, shield=True):
                await asyncio.wait(running)


async def _outcome(answer: Callable[[AnswerRequest], Awaitable[Answer]], index: int, given: Given) -> Outcome:
    try:
        return Outcome(index, given, answer=await answer(AnswerRequest.of(given)))
    except PvlmError as error:
        return Outcome(index, given, error=error)
