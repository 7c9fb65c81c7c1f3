"""Where workers and engine meet over a network: ``tcp://HOST:PORT``."""

from __future__ import annotations

import ipaddress
import re

_ENDPOINT = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:\[\]/]+):(?P<port>\d{1,5})")


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port. Raises ValueError, with what is wrong."""
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise ValueError(f"'{endpoint}' is no endpoint: write tcp://HOST:PORT, for instance tcp://0.0.0.0:5555")
    return found["host"].strip("[]"), int(found["port"])


def on_loopback(endpoint: str) -> bool:
    """Does it stay on this machine? Names other than localhost are taken to be elsewhere. Raises ValueError."""
    host, _ = split_endpoint(endpoint)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
