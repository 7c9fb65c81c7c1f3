"""``pvlm serve``: an OpenAI-compatible server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pvlm.cli.commands import HOSTS, Options, command, option
from pvlm.cli.interruption import run_async
from pvlm.cli.options import EngineSettings, settings
from pvlm.errors import ConfigError

if TYPE_CHECKING:
    from pvlm.serving.configuration import ServerConfig

SERVER, MEDIA, QUEUE = "Server", "Videos of callers", "Queue"
"""Panels of the help."""
MIB = 1 << 20


def _in_bytes(given: int | None) -> int | None:
    """The callback of an option in MiB."""
    return None if given is None else given * MIB


def register(group: typer.Typer) -> None:
    command(group, "serve", HOSTS, short_help="Serve an OpenAI-compatible API.")(serve)


@dataclass(frozen=True, kw_only=True)
class Listening(Options):
    """Where the server listens, and how it ends."""

    host: Annotated[
        str, option("--host", metavar="ADDRESS", help="address to listen at (default: 127.0.0.1)", panel=SERVER)
    ] = "127.0.0.1"
    port: Annotated[int, option("--port", metavar="N", help="port (default: 8000; 0: a free one)", panel=SERVER)] = 8000
    drain_timeout: Annotated[
        float,
        option(
            "--drain-timeout",
            metavar="S",
            help="after SIGTERM or Ctrl-C, running answers may end within this time, in seconds (default: 30)",
            panel=SERVER,
        ),
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        option("--log-level", metavar="LEVEL", help="debug, info (default), warning or error", panel=SERVER),
    ] = "info"
    log_json: Annotated[bool, option("--log-json", help="log one JSON object a line", panel=SERVER)] = False


@dataclass(frozen=True, kw_only=True)
class Callers(Options):
    """Who may ask for what. Fields of `ServerConfig`, with sizes in MiB."""

    served_model_names: Annotated[
        list[str] | None,
        option(
            "--served-model-name",
            metavar="NAME",
            help="name of the model for callers (may be repeated; default: the target's)",
            panel=SERVER,
        ),
    ] = None
    api_keys: Annotated[
        list[str] | None,
        option(
            "--api-key",
            metavar="KEY",
            help="key that callers must send (may be repeated); better: the variable PVLM_API_KEY",
            panel=SERVER,
            envvar="PVLM_API_KEY",
            show_envvar=False,
        ),
    ] = None
    spec_decode_metrics: Annotated[
        Literal["none", "summary", "detailed"] | None,
        option(
            "--per-request-spec-decode-metrics",
            metavar="LEVEL",
            help="speculation figures in each reply: none (default), summary or detailed",
            panel=SERVER,
        ),
    ] = None
    request_metrics: Annotated[
        bool | None, option("--enable-per-request-metrics", help="times in each reply", panel=SERVER)
    ] = None
    allowed_local_media_path: Annotated[
        str | None,
        option("--allowed-local-media-path", metavar="DIR", help="folder of which callers may name files", panel=MEDIA),
    ] = None
    allowed_media_domains: Annotated[
        list[str] | None,
        option(
            "--allowed-media-domains",
            metavar="HOST[:PORT]...",
            help="hosts from which videos may be fetched (default: none)",
            panel=MEDIA,
        ),
    ] = None
    allowed_media_networks: Annotated[
        list[str] | None,
        option(
            "--allowed-media-networks",
            metavar="NETWORK...",
            help="private networks from which videos may be fetched too, such as 10.1.0.0/16",
            panel=MEDIA,
        ),
    ] = None
    media_timeout_s: Annotated[
        float | None,
        option(
            "--media-timeout", metavar="S", help="limit for fetching a video, in seconds (default: 30)", panel=MEDIA
        ),
    ] = None
    max_body_bytes: Annotated[
        int | None,
        option(
            "--max-body-mb",
            metavar="N",
            help="limit of a request, and of a fetched video, in MiB (default: 64)",
            panel=MEDIA,
            callback=_in_bytes,
        ),
    ] = None
    max_held_bytes: Annotated[
        int | None,
        option(
            "--max-held-mb",
            metavar="N",
            help="limit of all requests in memory, in MiB (default: 1024)",
            panel=MEDIA,
            callback=_in_bytes,
        ),
    ] = None
    max_kept_bytes: Annotated[
        int | None,
        option(
            "--max-kept-mb",
            metavar="N",
            help="limit of the videos kept by their uuid, in MiB (default: 256; 0: none)",
            panel=MEDIA,
            callback=_in_bytes,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Queue(Options):
    """How many answers are written, and how many wait."""

    max_sessions: Annotated[
        int | None,
        option("--max-sessions", metavar="N", help="answers written at a time (default: 4)", panel=QUEUE),
    ] = None
    max_waiting: Annotated[
        int | None,
        option(
            "--max-waiting", metavar="N", help="answers that may wait; one more gets 429 (default: 64)", panel=QUEUE
        ),
    ] = None


def serve(
    *,
    listening: Listening,
    callers: Callers,
    queue: Queue,
    engine: EngineSettings,
) -> int:
    """Serve an OpenAI-compatible API: /v1/chat/completions, /v1/models, /health, /metrics and /version.

    Clients of vLLM and OpenAI ask about videos by `video_url`. The bundled pair, which knows drawn shapes only, answers
    unless --target names a model. On SIGTERM new requests get 503, and running answers may end.
    """
    from pvlm.log import configure_logging

    try:
        import pvlm.serving.application  # noqa: F401 - names the missing extra
    except ImportError as error:
        raise ConfigError(str(error)) from None
    from pvlm.serving.configuration import ServerConfig
    from pvlm.settings.validation import build

    given = {name: tuple(value) if isinstance(value, list) else value for name, value in settings(callers).items()}
    config = build(ServerConfig, given, "setting", ConfigError)
    configure_logging(listening.log_level, json=listening.log_json)
    run_async(lambda: _serve(listening, config, settings(queue, engine)))
    return 0


async def _serve(listening: Listening, config: ServerConfig, engine_settings: dict[str, Any]) -> None:
    from prometheus_client import CollectorRegistry

    from pvlm.cli.console import note, note_remote_workers
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.engine import Engine
    from pvlm.serving.application import create_app
    from pvlm.serving.server import Server, bind
    from pvlm.telemetry.prometheus import PrometheusMetrics

    registry = CollectorRegistry()
    with (
        bind(listening.host, listening.port) as bound,
        ProgressDisplay(quiet=listening.log_json) as progress,
    ):
        engine = Engine.create(on_progress=progress.update, metrics=PrometheusMetrics(registry), **engine_settings)
        note_remote_workers(engine.config, progress.note)
        app = create_app(engine, config, registry=registry)
        async with engine:
            progress.pause()
            host, port = bound.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            server = Server(app, listening.drain_timeout, lambda: note(f"serving at {address}"))
            await server.serve([bound])
