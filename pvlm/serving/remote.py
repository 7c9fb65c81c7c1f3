"""Files of other hosts: from listed hosts alone, at addresses that were checked, within limits of size and time."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urljoin

import anyio
import httpcore

from pvlm.redaction import shown
from pvlm.serving.references import PARAM, PORTS, RemoteFile, reference
from pvlm.serving.refusals import Refusal, invalid

REDIRECTS = 3
REDIRECTING = (301, 302, 303, 307, 308)
PIECE = 1 << 16
_TRANSLATED = ip_network("64:ff9b::/96")  # an IPv4 address within IPv6 (RFC 6052)
Address = IPv4Address | IPv6Address


class RemoteFiles:
    """Fetches files from listed hosts. Environment variables name no proxy, and no credentials are sent."""

    def __init__(self, domains: Sequence[str], networks: Sequence[str], timeout_s: float) -> None:
        """As `ServerConfig`'s settings of these names."""
        self._domains = {domain.lower().rstrip(".") for domain in domains}
        self._addresses = Addresses(networks)
        self._timeout_s = timeout_s

    async def fetch(self, file: RemoteFile, take: Callable[[int], None], limit: int) -> bytes:
        """The content of a file. ``take``: is called with the size of each piece, and may refuse it.

        Raises Refusal if the host is not listed, an address is not public, or size or time are beyond their limits.
        """
        try:
            with anyio.fail_after(self._timeout_s):
                async with httpcore.AsyncConnectionPool(network_backend=_Checked(self._addresses)) as pool:
                    for _ in range(REDIRECTS + 1):
                        self._check_listed(file)
                        found = await self._get(pool, file, take, limit)
                        if not isinstance(found, RemoteFile):
                            return found
                        file = found
            raise invalid(f"the URL was redirected more than {REDIRECTS} times", PARAM)
        except TimeoutError:
            raise invalid(f"fetching the URL took longer than {self._timeout_s:g} s", PARAM) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            reason = str(error) or type(error).__name__
            raise invalid(f"cannot fetch the URL: {shown(reason)}", PARAM) from None

    def _check_listed(self, file: RemoteFile) -> None:
        listed = f"{file.host}:{file.port}" in self._domains
        if not listed and not (file.host in self._domains and file.port in PORTS.values()):
            raise invalid(
                f"this server fetches nothing from '{file.host}', port {file.port} (--allowed-media-domains)", PARAM
            )

    async def _get(
        self, pool: httpcore.AsyncConnectionPool, file: RemoteFile, take: Callable[[int], None], limit: int
    ) -> bytes | RemoteFile:
        headers = {"Host": file.authority, "User-Agent": "pvlm", "Accept": "*/*", "Accept-Encoding": "identity"}
        async with pool.stream("GET", file.url, headers=list(headers.items())) as response:
            found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in REDIRECTING and "location" in found:
                return _redirected(file, found["location"])
            if response.status != 200:
                raise invalid(f"cannot fetch the URL: the host answered with status {response.status}", PARAM)
            content = bytearray()
            async for piece in response.aiter_stream():
                if len(content) + len(piece) > limit:
                    raise Refusal(413, f"the file at the URL has more than {limit} bytes", param=PARAM)
                take(len(piece))
                content += piece
            return bytes(content)


def _redirected(file: RemoteFile, location: str) -> RemoteFile:
    next_file = reference(urljoin(file.url, location))
    if not isinstance(next_file, RemoteFile) or (file.scheme, next_file.scheme) == ("https", "http"):
        raise invalid("the URL was redirected to another kind of URL", PARAM)
    return next_file


class Addresses:
    """Which addresses may be connected to: public ones, and those of listed networks."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(network) for network in networks]

    def allows(self, address: str) -> bool:
        """Whether a connection to this address is allowed."""
        found = _plain(ip_address(address.partition("%")[0]))
        return (found.is_global and not found.is_multicast) or any(found in network for network in self._networks)

    async def resolved(self, host: str, port: int) -> str:
        """An allowed address of a host. Raises Refusal if it has none, and OSError if it has no address at all."""
        for *_, address in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if self.allows(str(address[0])):
                return str(address[0])
        raise invalid(f"'{host}' has no address that this server may connect to", PARAM)


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


class _Checked(httpcore.AnyIOBackend):
    """Connects to addresses that were checked, and looks no name up a second time."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    async def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        address = await self._addresses.resolved(host, port)
        return await super().connect_tcp(address, port, *arguments, **options)

    async def connect_unix_socket(self, path: str, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        raise invalid("a socket's path is no URL", PARAM)
