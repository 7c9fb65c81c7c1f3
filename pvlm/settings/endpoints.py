"""Network addresses at which engine and workers meet: ``tcp://HOST:PORT``."""

from __future__ import annotations

import ipaddress
import re

_ENDPOINT = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:\[\]/]+):(?P<port>\d{1,5})")


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port. Raises ValueError that names the problem."""
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise ValueError(f"'{endpoint}' is no endpoint: write tcp://HOST:PORT, for instance tcp://0.0.0.0:5555")
    return found["host"].strip("[]"), int(found["port"])


def on_loopback(endpoint: str) -> bool:
    """Whether an endpoint is on this machine. A name other than localhost counts as another. Raises ValueError."""
    host, _ = split_endpoint(endpoint)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
