"""pvlm: lossless parallel speculative decoding for long-video question answering.

    from pvlm import Engine

    answer = await Engine.create().answer("clip.mp4", "What happens in the video?")

Importing it is cheap: torch is imported by the workers, not here (but for the transport ``inproc``).
"""

from pvlm.config import AnswerOptions, EngineConfig
from pvlm.engine import Engine, EngineState
from pvlm.errors import (
    ActorLost,
    ConfigError,
    EngineStateError,
    ModelError,
    ModelMismatch,
    OptionError,
    PromptError,
    PvlmError,
    RemoteTraceback,
    TargetLost,
    VideoError,
)
from pvlm.results import Answer, AnswerStats, Chunk

__version__ = "0.1.0"

__all__ = [
    "ActorLost",
    "Answer",
    "AnswerOptions",
    "AnswerStats",
    "Chunk",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "EngineState",
    "EngineStateError",
    "ModelError",
    "ModelMismatch",
    "OptionError",
    "PromptError",
    "PvlmError",
    "RemoteTraceback",
    "TargetLost",
    "VideoError",
]
