"""Files of questions and of their answers, for `pvlm batch`: a JSON object a line."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from pvlm.answer.batch import Outcome
from pvlm.errors import OptionError, TargetLost

DIGEST_CHARACTERS = 16


class AskedLine(NamedTuple):
    """A line of the questions: its ``number`` in the file, from 1, and its text."""

    number: int
    text: bytes

    @property
    def digest(self) -> str:
        """Says in the answers which question was answered."""
        return hashlib.sha256(self.text).hexdigest()[:DIGEST_CHARACTERS]


def read_questions(path: str) -> list[AskedLine]:
    """The lines of a file that are not empty. Raises OptionError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"cannot read '{path}': {error.strerror}") from None
    return [
        AskedLine(number, text.strip()) for number, text in enumerate(content.split(b"\n"), start=1) if text.strip()
    ]


class AnswersFile:
    """The answers that a file has, and those that are added to it. A context manager.

    ``written``: the lines that need no more work by their numbers, and whether each has failed. ``lost``: how many
    lines ended with the target. They are not written, so the next run asks them again.
    """

    def __init__(self, path: str, asked: Sequence[AskedLine], questions: str) -> None:
        """Raises OptionError where the file is none of these answers."""
        self.path = path
        self.asked = asked
        self.written: dict[int, bool] = {}
        self.lost = 0
        exists = Path(path).exists()
        if exists and Path(path).samefile(questions):
            raise OptionError(f"--out is the file of questions, '{path}': give another")
        try:
            content = Path(path).read_bytes() if exists else b""
            whole = content[: content.rfind(b"\n") + 1]  # a run that was killed may have left a part of a line
            self._check(whole.splitlines())
            self._file = open(path, "ab")  # noqa: SIM115
            self._file.truncate(len(whole))
        except OSError as error:
            raise self._failed(error) from None

    def _check(self, rows: Sequence[bytes]) -> None:
        digests = {line.number: line.digest for line in self.asked}
        for row, text in enumerate(rows, start=1):
            if not isinstance(found := _decoded(text), dict) or not {"line", "digest"} <= set(found):
                raise OptionError(f"'{self.path}', line {row}, is no answer of `pvlm batch`: give another --out")
            if digests.get(found["line"]) != found["digest"]:
                raise OptionError(
                    f"'{self.path}', line {row}, answers another question than line {found['line']} of the questions: "
                    "give another --out"
                )
            self.written[found["line"]] = "error" in found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def left(self) -> list[AskedLine]:
        """The lines that have neither an answer nor an error yet."""
        return [line for line in self.asked if line.number not in self.written]

    @property
    def failed(self) -> int:
        """How many lines have failed, in this run and before."""
        return sum(self.written.values()) + self.lost

    def add(self, line: AskedLine, outcome: Outcome) -> None:
        """Write how a line was answered. Raises OptionError where the file takes no more."""
        if isinstance(outcome.error, TargetLost):
            self.lost += 1
            return
        given = _decoded(line.text)
        found: dict[str, Any] = {"line": line.number, "digest": line.digest}
        if isinstance(given, dict) and "id" in given:
            found["id"] = given["id"]
        if outcome.answer is not None:
            found |= outcome.answer.to_dict()
        else:
            found |= {"error": type(outcome.error).__name__, "message": str(outcome.error)}
        try:
            self._file.write(msgspec.json.encode(found) + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None
        self.written[line.number] = outcome.error is not None

    def sort(self) -> None:
        """Bring the answers of several runs into the order of the questions. Raises OptionError."""
        if (numbers := list(self.written)) == sorted(numbers):
            return
        try:
            rows = Path(self.path).read_bytes().splitlines(keepends=True)
            part = Path(f"{self.path}.part")
            part.write_bytes(b"".join(row for _, row in sorted(zip(numbers, rows, strict=True))))
            part.replace(self.path)
        except OSError as error:
            raise self._failed(error) from None

    def summary(self, before: int) -> str:
        """A line for the user. ``before``: lines that an earlier run has written."""
        parts = [f"{len(self.written) + self.lost - self.failed} of {len(self.asked)} lines have an answer"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if before:
            parts.append(f"{before} are of an earlier run")
        if left := len(self.left):
            parts.append(f"{left} are left for another run")
        return f"{self.path}: {', '.join(parts)}"

    def _failed(self, error: OSError) -> OptionError:
        return OptionError(f"cannot write '{self.path}': {error.strerror}")


def _decoded(text: bytes) -> Any:
    """The value of JSON; None where it is invalid."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
