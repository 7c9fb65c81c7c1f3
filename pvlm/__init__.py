"""pvlm: lossless parallel speculative decoding for long-video question answering.

    from pvlm import Engine

    answer = await Engine.create().answer("clip.mp4", "What happens in the video?")

Names are imported when they are used, for the processes that decode a video import this package too. Torch is imported
by the workers, not here (but for the transport ``inproc``).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvlm.answer.batch import AnswerRequest, Outcome
    from pvlm.config import AnswerOptions, EngineConfig
    from pvlm.engine import Engine, EngineState
    from pvlm.errors import (
        ActorLost,
        ConfigError,
        EngineBusy,
        EngineStateError,
        ModelError,
        ModelMismatch,
        OptionError,
        PromptError,
        PvlmError,
        RemoteTraceback,
        StreamIdle,
        TargetLost,
        VideoError,
    )
    from pvlm.log import configure_logging
    from pvlm.results import Answer, AnswerStats, Chunk
    from pvlm.runtime.supervisor import ActorHealth

__version__ = "0.2.0"

__all__ = [
    "ActorHealth",
    "ActorLost",
    "Answer",
    "AnswerOptions",
    "AnswerRequest",
    "AnswerStats",
    "Chunk",
    "ConfigError",
    "Engine",
    "EngineBusy",
    "EngineConfig",
    "EngineState",
    "EngineStateError",
    "ModelError",
    "ModelMismatch",
    "OptionError",
    "Outcome",
    "PromptError",
    "PvlmError",
    "RemoteTraceback",
    "StreamIdle",
    "TargetLost",
    "VideoError",
    "configure_logging",
]

_HOMES = {
    "AnswerOptions": "config",
    "EngineConfig": "config",
    "Engine": "engine",
    "EngineState": "engine",
    "Answer": "results",
    "AnswerStats": "results",
    "Chunk": "results",
    "AnswerRequest": "answer.batch",
    "Outcome": "answer.batch",
    "ActorHealth": "runtime.supervisor",
    "configure_logging": "log",
}


def __getattr__(name: str) -> Any:
    """PEP 562: the public names, from their modules (errors is the home of those not listed)."""
    if name not in __all__:
        raise AttributeError(f"module 'pvlm' has no attribute '{name}'")
    return getattr(import_module(f"pvlm.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
