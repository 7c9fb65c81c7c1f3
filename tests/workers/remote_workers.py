"""Workers as a person starts them, and keys for them and their engine."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pvlm.transports.curve import AUTHORIZED, new_keys


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def authorize(public: Path, directory: Path) -> None:
    """Let a directory's side trust a public key."""
    shutil.copy(public, directory / AUTHORIZED)


def key_pairs(folder: Path) -> tuple[Path, Path]:
    """The directories of an engine and of a worker that know each other."""
    engine, worker = folder / "engine-keys", folder / "worker-keys"
    engine_key, worker_key = new_keys(engine, "engine"), new_keys(worker, "elsewhere")
    authorize(engine_key, worker)
    authorize(worker_key, engine)
    return engine, worker


class RemoteWorker:
    """``pvlm worker`` in a process of its own; what it has logged is in ``log``."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as written:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=written, stdout=written, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run where it is ignored
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def remote_worker(
    role: str, model: str, endpoint: str, log: Path, *options: str, backend: str = "toy", inside: Sequence[str] = ()
) -> Iterator[RemoteWorker]:
    """``inside``: what the command is run by."""
    command = [*inside, sys.executable, "-m", "pvlm", "worker", "--role", role, "--model", model, "--backend", backend]
    worker = RemoteWorker([*command, "--connect", endpoint, "--threads", "1", *options], log)
    try:
        yield worker
    finally:
        worker.kill()


def wait_until_loaded(worker: RemoteWorker, patience_s: float = 60.0) -> None:
    """Wait until the model is loaded."""
    until_s = time.monotonic() + patience_s
    while "loaded" not in worker.log:
        assert worker.process.poll() is None, worker.log
        assert time.monotonic() < until_s, worker.log
        time.sleep(0.02)
