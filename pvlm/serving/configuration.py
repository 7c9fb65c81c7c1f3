"""Settings of a server (`ServerConfig`)."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pvlm.errors import ConfigError
from pvlm.settings.documentation import documented
from pvlm.settings.validation import check_fields

MIB = 1 << 20


@documented
class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a server. Each has a default, with which no other host and no local file can be read."""

    served_model_names: tuple[str, ...] = ()
    """Names by which callers may ask for the model; the first is the one in replies. (): the target's own name."""
    api_keys: tuple[str, ...] = ()
    """Keys of which a caller must send one (``Authorization: Bearer KEY``). (): no key is needed."""

    allowed_local_media_path: str | None = None
    """Folder whose files callers may name (``file:`` URLs). None: no local file."""
    allowed_media_domains: tuple[str, ...] = ()
    """Hosts from which videos may be fetched: ``HOST`` (ports 80 and 443) or ``HOST:PORT``. (): no host."""
    allowed_media_networks: tuple[str, ...] = ()
    """Networks with private addresses from which videos may be fetched too, for instance ``10.1.0.0/16``."""
    media_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    """The limit for fetching one video from another host."""

    max_body_bytes: Annotated[int, Meta(ge=1)] = 64 * MIB
    """The limit of a request's body, and of a fetched video."""
    max_held_bytes: Annotated[int, Meta(ge=1)] = 1024 * MIB
    """The limit of the bodies and fetched videos of all callers together; one more gets 429."""
    max_kept_bytes: Annotated[int, Meta(ge=0)] = 256 * MIB
    """The limit of the videos that are kept under the ``uuid`` that callers gave them."""
    body_timeout_s: Annotated[float, Meta(gt=0)] = 120.0
    """The limit for reading a request's body."""

    spec_decode_metrics: Literal["none", "summary", "detailed"] = "none"
    """Speculation figures in each reply (``metrics.speculative_decoding``)."""
    request_metrics: bool = False
    """Times in each reply (``metrics``)."""

    def __post_init__(self) -> None:
        check_fields(self, ConfigError)
        for network in self.allowed_media_networks:
            try:
                ip_network(network)
            except ValueError as error:
                raise ConfigError(f"allowed_media_networks: {error}: write it as 10.1.0.0/16") from None
        folder = self.allowed_local_media_path
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"allowed_local_media_path is '{folder}', which is no folder")
        if any(not key for key in self.api_keys):
            raise ConfigError("api_keys has an empty key")
