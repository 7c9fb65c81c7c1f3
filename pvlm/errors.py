"""The errors of pvlm.

    PvlmError
    |-- ConfigError (ValueError)        invalid engine configuration
    |-- OptionError (ValueError)        invalid option of one answer
    |-- VideoError                      an unreadable video
    |-- ModelError                      a checkpoint or plug-in failed to load or to run
    |   `-- ModelMismatch               draft and target do not fit together
    |-- PromptError                     a question that is invalid for the model
    |-- EngineStateError (RuntimeError) the engine is not in a state for this call
    |-- EngineBusy                      too many answers wait
    |-- StreamIdle                      nobody read the stream of an answer
    |-- ActorLost
    |   `-- TargetLost                  the target is gone and is not restarted
    `-- InvalidTransition (RuntimeError)  a bug in pvlm: a state machine was misused

Errors that happened in a worker carry the worker's own traceback as their cause (`RemoteTraceback`). Texts of errors
are short, and without payloads and credentials (`pvlm.redaction`).
"""

from __future__ import annotations

from pvlm.redaction import redacted


class PvlmError(Exception):
    """Base of all errors of pvlm."""

    def __init__(self, *texts: object) -> None:
        super().__init__(*(redacted(text) if isinstance(text, str) else text for text in texts))


class ConfigError(PvlmError, ValueError):
    """Invalid engine configuration."""


class OptionError(PvlmError, ValueError):
    """Invalid option of one answer."""


class VideoError(PvlmError):
    """An unreadable video: its ``path``, and the ``reason``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = self.args

    def __str__(self) -> str:
        return f"cannot read video '{self.path}': {self.reason}"


class ModelError(PvlmError):
    """A checkpoint or a plug-in failed to load or to run."""


class ModelMismatch(ModelError):
    """Draft and target do not fit together."""


class PromptError(PvlmError):
    """A question that is invalid for the model: too long, or with the model's own control tokens in it."""


class EngineStateError(PvlmError, RuntimeError):
    """The engine is not in a state for this call."""


class EngineBusy(PvlmError):
    """Too many answers wait; try again later."""


class StreamIdle(PvlmError):
    """Nobody read the stream of an answer for `EngineConfig.stream_idle_timeout_s`, so the answer was ended."""


class ActorLost(PvlmError):
    """An actor is gone."""


class TargetLost(ActorLost):
    """The target is gone, and the answer with it."""


class InvalidTransition(PvlmError, RuntimeError):
    """A bug in pvlm: a state machine was misused."""


def reason_of(error: BaseException) -> str:
    """The reason of an error in words: of a library's error with its type, for its text alone may say little."""
    from pvlm_protocols.backend import BackendError  # here, for it imports numpy

    ours = isinstance(error, PvlmError | BackendError) and str(error)
    return redacted(str(error) if ours else f"{type(error).__name__}: {error}")


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class RemoteTraceback(Exception):
    """The traceback of an error in a worker, as text; the cause of the error that is raised here."""

    def __init__(self, traceback: str) -> None:
        self.traceback = redacted(traceback, None)
        super().__init__(self.traceback)

    def __str__(self) -> str:
        return f"\n\n{self.traceback.rstrip()}"
