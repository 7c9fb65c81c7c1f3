"""``pvlm worker``: the process of one model. An engine starts it on its own host, a person on other hosts."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pvlm.cli.commands import HOSTS, command, option
from pvlm.cli.interruption import closing_on_interrupt
from pvlm.cli.names import completing

MODEL, CONNECTION = "Model", "Connection"
"""Panels of the help."""


def register(group: typer.Typer) -> None:
    command(group, "worker", HOSTS, short_help="Run one model for an engine on another host.")(worker)


def worker(
    *,
    role: Annotated[Literal["target", "draft"], option("--role", help="what the model is for", panel=MODEL)],
    connect: Annotated[
        str, option("--connect", metavar="ENDPOINT", help="of the engine: tcp://HOST:PORT", panel=CONNECTION)
    ],
    keys: Annotated[
        str | None,
        option(
            "--keys",
            metavar="DIR",
            help="keys of this worker (`pvlm keys new DIR`), with the engine's key in DIR/authorized",
            panel=CONNECTION,
        ),
    ] = None,
    model: Annotated[
        str,
        option("--model", metavar="MODEL", help="directory or hub name (default: the bundled model)", panel=MODEL),
    ] = "bundled",
    backend: Annotated[
        str,
        option(
            "--backend",
            metavar="NAME",
            help="what runs the model: {backends} (default: auto, native where it can, else torch)",
            panel=MODEL,
            autocompletion=completing("backends"),
        ),
    ] = "auto",
    device: Annotated[
        str,
        option("--device", metavar="DEVICE", help="cpu (default), cuda:0; cuda:0,cuda:1 split its layers", panel=MODEL),
    ] = "cpu",
    dtype: Annotated[
        str, option("--dtype", metavar="TYPE", help="float32, bfloat16, float16 or auto (default)", panel=MODEL)
    ] = "auto",
    threads: Annotated[
        int | None, option("--threads", metavar="N", help="CPU threads (default: torch's choice)", panel=MODEL)
    ] = None,
    affinity: Annotated[
        str | None,
        option("--affinity", metavar="CORES", help="cores to run on, comma-separated (default: all)", panel=MODEL),
    ] = None,
    trust_remote_code: Annotated[
        bool, option("--trust-remote-code", help="run code that comes with the checkpoint", panel=MODEL)
    ] = False,
    allow_pickle: Annotated[
        bool, option("--allow-pickle", help="load weights that are not safetensors", panel=MODEL)
    ] = False,
    prefix_cache_bytes: Annotated[
        int | None,
        option(
            "--prefix-cache-bytes",
            metavar="BYTES",
            help="memory for what is kept of prompts between answers (default: by memory; 0: nothing)",
            panel=MODEL,
        ),
    ] = None,
    life_line: Annotated[
        bool, option("--life-line", help="exit when standard input ends (engines use this)", panel=CONNECTION)
    ] = False,
    mark: Annotated[int | None, option("--mark", help="descriptor of a mark (engines use this)", hidden=True)] = None,
) -> int:
    """Run one model for an engine on another host. (An engine starts the workers on its own host by itself.)

    Open the engine with draft_listen or target_listen, and run on the other host, for instance:

    pvlm worker --role draft --model CHECKPOINT --connect tcp://HOST:5555 --keys DIR

    The worker loads the model, connects, and serves until it is interrupted. It reconnects after a lost connection. Off
    the loopback interface both sides need keys: `pvlm keys new DIR` makes them. See docs/how-to/remote.md.
    """
    import msgspec

    from pvlm.config import BUNDLED, bundled
    from pvlm.log import configure_logging
    from pvlm.workers.process import WorkerSpec, run_worker

    spec = WorkerSpec(
        model=model,
        backend=backend,
        device=device,
        dtype=dtype,
        threads=threads,
        affinity=_cores(affinity),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        prefix_cache_bytes=prefix_cache_bytes,
        connect=connect,
        keys=keys,
        life_line=life_line,
        mark=mark,
    )
    configure_logging("info")  # on standard error: an engine keeps the last lines of its workers
    with closing_on_interrupt():
        if life_line:
            return run_worker(role, spec)
        from pvlm.workers.remote_worker import serve

        serve(role, msgspec.structs.replace(spec, model=bundled(role)) if model == BUNDLED else spec)
    return 0


def _cores(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(core) for core in text.split(",")) if text else ()
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a comma-separated list of cores", param_hint="--affinity") from None
