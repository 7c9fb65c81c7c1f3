"""URLs of videos and images in a request: which kind one is, and what it names. No I/O."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pvlm.redaction import shown
from pvlm.serving.refusals import invalid

_DATA = re.compile(
    r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?P<parameters>(?:;[\w.+-]+=[\w.+-]+)*)(?P<base64>;base64)?,", re.A | re.I
)
_KINDS = ("video/", "image/", "application/octet-stream")
PORTS = {"http": 80, "https": 443}
PARAM = "messages"
MAX_URL = 8192
"""The limit of a URL other than ``data:``, in characters."""
MAX_HEADER = 1024
"""The limit of what comes before the data of a ``data:`` URL, in characters."""


@dataclass(frozen=True)
class Encoded:
    """A file's bytes in the URL itself."""

    content: bytes


@dataclass(frozen=True)
class LocalFile:
    """A file of this host, by its absolute path as the caller wrote it."""

    path: str


@dataclass(frozen=True)
class RemoteFile:
    """A file of another host. ``target``: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def url(self) -> str:
        """The URL, without a fragment."""
        return f"{self.scheme}://{self._bracketed_host}:{self.port}{self.target}"

    @property
    def authority(self) -> str:
        """What the ``Host`` header says: the host, and its port unless the scheme says it."""
        host = self._bracketed_host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def _bracketed_host(self) -> str:
        """The host; an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host


def reference(url: str) -> Encoded | LocalFile | RemoteFile:
    """What a URL names. Raises Refusal for a URL of another kind, or an invalid one."""
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _encoded(url)
    if len(url) > MAX_URL:  # taking a longer one apart may take minutes
        raise invalid(f"the URL {shown(url)} has {len(url)} characters: it may have {MAX_URL}", PARAM)
    try:
        parts = urlsplit(url)
        if scheme == "file":
            return _local(parts.netloc, unquote(parts.path, errors="strict"))
        if scheme in PORTS:
            if parts.username is not None or parts.password is not None:
                raise invalid("a URL with a user or a password is not fetched", PARAM)
            if not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
                raise invalid(f"the URL {shown(url)} is invalid", PARAM)
            host = parts.hostname.encode("idna").decode().rstrip(".")
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            path.encode("ascii")
            return RemoteFile(scheme, host, PORTS[scheme] if parts.port is None else parts.port, path)
    except ValueError as error:  # also UnicodeError
        raise invalid(f"the URL {shown(url)} is invalid: {error}", PARAM) from None
    raise invalid(f"the URL {shown(url)} is none that is read here: use data:, file:, http: or https:", PARAM)


def _encoded(url: str) -> Encoded:
    header = _DATA.match(url, 0, MAX_HEADER)
    if header is None or header["base64"] is None:
        raise invalid("a data: URL must be 'data:video/mp4;base64,...'", PARAM)
    kind = (header["kind"] or "").lower()
    if not kind.startswith(_KINDS):
        raise invalid(f"a data: URL of the type {shown(kind)} is no video and no image", PARAM)
    if kind == "video/jpeg":
        raise invalid("frames as 'video/jpeg' are not supported: send a video file", PARAM)
    try:
        content = base64.b64decode(memoryview(url.encode())[header.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"the data: URL is no valid base64: {error}", PARAM) from None
    if not content:
        raise invalid("the data: URL is empty", PARAM)
    return Encoded(content)


def _local(host: str, path: str) -> LocalFile:
    if host not in ("", "localhost"):
        raise invalid("a file: URL names a file of this host: write file:///folder/clip.mp4", PARAM)
    if not path.startswith("/") or "\0" in path:
        raise invalid("a file: URL needs an absolute path: file:///folder/clip.mp4", PARAM)
    return LocalFile(path)
