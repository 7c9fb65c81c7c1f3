"""Keys for connections between hosts, and the set-up of sockets with them.

A side has a directory, made by `new_keys`: its own pair of keys as ``NAME.key`` and ``NAME.key_secret``, and in
``authorized`` the public keys of those it talks to. An engine lets in workers whose key is there; a worker has one key
there, its engine's, and talks to nobody else. Files and keys are those of ZeroMQ (CURVE: Curve25519, http://curvezmq.org).
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from pvlm.errors import ConfigError

AUTHORIZED = "authorized"
PUBLIC = ".key"
SECRET = ".key_secret"

_quiet = logging.getLogger("pvlm.transports.curve")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


def new_keys(directory: Path, name: str) -> Path:
    """Make a directory with a new pair of keys; return the file of the public one.

    Raises ConfigError if the directory has keys already or cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if found := sorted(directory.glob(f"*{SECRET}")):
            raise ConfigError(f"'{directory}' has keys already ({found[0].name}): remove them first, or use another")
        (directory / AUTHORIZED).mkdir(exist_ok=True)
        secret = directory / f"{name}{SECRET}"
        os.close(os.open(secret, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # nobody else may read it at any time
        zmq.auth.create_certificates(directory, name)
    except OSError as error:
        raise ConfigError(f"cannot write keys to '{directory}': {error.strerror or error}") from None
    return directory / f"{name}{PUBLIC}"


@dataclass(frozen=True)
class Keys:
    """A side's own pair, and where the keys are that it trusts."""

    public: bytes
    secret: bytes
    authorized: Path

    @classmethod
    def load(cls, directory: str | Path) -> Keys:
        """Raises ConfigError where there are none, or others may read the secret one."""
        folder = Path(directory).expanduser()
        found = sorted(folder.glob(f"*{SECRET}"))
        if len(found) != 1:
            what = "no secret key" if not found else f"{len(found)} secret keys"
            raise ConfigError(f"'{folder}' has {what}: make a directory with one by `pvlm keys new DIR`")
        if found[0].stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"others than you may read the secret key '{found[0]}': run `chmod 600 {found[0]}`")
        public, secret = _read(found[0])
        if secret is None:
            raise ConfigError(f"'{found[0]}' holds no secret key: make new ones by `pvlm keys new DIR`")
        return cls(public, secret, folder / AUTHORIZED)

    def trusted(self) -> dict[bytes, str]:
        """The names of the keys that are authorized now, by key. Raises ConfigError where a file is no key."""
        return {_read(file)[0]: file.stem for file in sorted(self.authorized.glob(f"*{PUBLIC}"))}

    def protect_engine(self, socket: Any) -> None:
        """Encrypt, and prove to be this engine. `Authenticator` says who may connect."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        self._protect(socket)

    def engine(self) -> bytes:
        """The key of a worker's engine, the only one that is authorized. Raises ConfigError where it is not."""
        trusted = list(self.trusted())
        if len(trusted) != 1:
            raise ConfigError(
                f"'{self.authorized}' has {len(trusted) or 'no'} public keys: a worker needs one there, its engine's "
                f"(copy the engine's NAME{PUBLIC} file into it)"
            )
        return trusted[0]

    def protect_worker(self, socket: Any) -> None:
        """Encrypt, prove to be this worker, and talk to nobody but its engine. Raises ConfigError as `engine` does."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.engine())
        self._protect(socket)

    def _protect(self, socket: Any) -> None:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret)


class Authenticator:
    """Lets in authorized keys only. The directory is read for each connection, so keys may come and go meanwhile."""

    def __init__(self, context: zmq.Context[Any], keys: Keys) -> None:
        self._keys = keys
        self._reasons: deque[str] = deque(maxlen=16)
        self._thread = ThreadAuthenticator(context, log=_quiet)
        self._thread.start()
        self._thread.configure_curve_callback("*", self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Called by ZeroMQ's authentication, in its thread."""
        try:
            known, why = key in self._keys.trusted(), f"its key {key.decode()} is not in {self._keys.authorized}"
        except ConfigError as error:
            known, why = False, str(error)
        if not known:
            self._reasons.append(why)
        return known

    def reason(self) -> str:
        """Why the next connection was refused, for the log."""
        return self._reasons.popleft() if self._reasons else "its key is not authorized"

    def name(self, key: str) -> str:
        """The name of the file that has a key; the key itself where that cannot be read meanwhile."""
        try:
            return self._keys.trusted().get(key.encode(), key)
        except ConfigError:
            return key

    def stop(self) -> None:
        self._thread.stop()


def _read(file: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{file}' holds no key ({error}): make keys by `pvlm keys new DIR`, and copy the file whole"
        ) from None
    try:
        whole = all(len(z85.decode(key)) == 32 for key in (public, secret or public))
    except (KeyError, struct.error):
        whole = False
    if not whole:
        raise ConfigError(f"'{file}' is damaged: what it holds is no key")
    return public, secret
