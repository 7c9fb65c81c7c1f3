"""The log of pvlm.

A program that has configured structlog gets the lines there. In any other program they go to the standard library's
logger ``pvlm``: silent below warnings, and never on standard output, unless the program says otherwise. A line that
fails to be written is counted, and raises no error.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO

import structlog

from pvlm.errors import ConfigError
from pvlm.redaction import redacted

Level = Literal["debug", "info", "warning", "error"]
LEVELS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logging(level: Level = "info", *, json: bool = False, stream: TextIO | None = None) -> None:
    """Show pvlm's log from ``level`` on: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.

    ``json``: one JSON object a line, with UTC times, instead of text. ``stream``: where to, by default standard error.
    It configures structlog for the whole program; a program with a configuration of structlog needs no call.

    Raises ConfigError for an unknown level.
    """
    if level not in LEVELS:
        raise ConfigError(f"the log has no level {level!r}: use one of {', '.join(LEVELS)}")
    colors = _colors(sys.stderr if stream is None else stream)
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=colors)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if json else "%Y-%m-%d %H:%M:%S", utc=json),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr if stream is None else stream),
    )


class Log:
    """Writes events with their details. Raises nothing."""

    def __init__(self) -> None:
        self._standard = logging.getLogger("pvlm")
        self._lost = 0
        self._reported = False

    def debug(self, event: str, **details: Any) -> None:
        self._write("debug", event, details)

    def info(self, event: str, **details: Any) -> None:
        self._write("info", event, details)

    def warning(self, event: str, **details: Any) -> None:
        self._write("warning", event, details)

    def error(self, event: str, **details: Any) -> None:
        self._write("error", event, details)

    def take_lost(self) -> int:
        """How many lines could not be written since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def _write(self, level: Level, event: str, details: dict[str, Any]) -> None:
        try:
            configured = structlog.is_configured()
            if not configured and not self._standard.isEnabledFor(LEVELS[level]):
                return
            details = {name: redacted(value) if isinstance(value, str) else value for name, value in details.items()}
            if configured:
                getattr(structlog.get_logger(), level)(event, **details)
            else:
                words = [event, *(f"{name}={_word(value)}" for name, value in details.items())]
                self._standard.log(LEVELS[level], "%s", " ".join(words))
        except Exception as error:  # a full disk, a closed pipe, a processor of the program's own
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._lost += 1
        if self._reported:
            return
        self._reported = True
        try:
            sys.stderr.write(f"pvlm: the log cannot be written ({type(error).__name__}: {error}); lines are lost\n")
            sys.stderr.flush()
        except Exception:  # nowhere is left to say it
            pass


def _word(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(letter.isspace() for letter in text) else text


def _colors(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


log = Log()
