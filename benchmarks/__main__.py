"""``python -m benchmarks``: see README.md in this folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import msgspec

from benchmarks.evaluation import evaluate
from benchmarks.hit_rate import measure_hit_rates
from benchmarks.kept import measure_kept
from benchmarks.load import first_tokens, measure_load, running_server
from benchmarks.never_slower import drawn_clips, measure_speeds
from benchmarks.padding import PADDING, pad_layers, padded_arguments
from pvlm.cli import main as pvlm_main
from pvlm.cli.console import configure_logs, write_json
from pvlm.cli.progress import ProgressDisplay
from pvlm.config import EngineConfig, OutcomesSetting, bundled, engine_config
from pvlm.errors import PvlmError

Measured = TypeVar("Measured")
FIRST_TOKENS = 20
"""Requests by which the time to the first token of one caller is measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit status: 0; 1 after an error or if tokens differ; 2 for invalid arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    bench = commands.add_parser(
        "bench",
        help="pvlm bench, or pvlm bench scaling, with a padded target",
        description="All other arguments are those of `pvlm bench` and `pvlm bench scaling`.",
        allow_abbrev=False,
    )
    bench.add_argument(
        "--pad-layers", type=int, required=True, metavar="K", help=f"decoder layers to append to the target: {PADDING}"
    )
    bench.add_argument("--target", default=bundled("target"), help="checkpoint directory (default: the bundled target)")
    bench.add_argument("--draft", default=bundled("draft"), help="checkpoint of the draft (default: the bundled draft)")
    bench.add_argument("--early-layer", type=int, metavar="L", help="default: by the unpadded depth")
    bench.set_defaults(run=run_bench)
    slower = commands.add_parser(
        "never-slower",
        help="parallel decoding with automatic windows, beside plain decoding and taking turns, on many clips",
        allow_abbrev=False,
    )
    slower.add_argument("--clips", type=int, default=40, metavar="N", help="clips to draw (default: 40)")
    slower.add_argument("--max-tokens", type=int, default=256, metavar="N", help="tokens of an answer (default: 256)")
    slower.add_argument("--rounds", type=int, default=5, metavar="N", help="alternating rounds (default: 5)")
    slower.add_argument("--json", metavar="FILE", help="write the rows to a file")
    _add_pair(slower, "target", "draft", "backend", "prune")
    slower.set_defaults(run=run_never_slower)
    hits = commands.add_parser(
        "hit-rate",
        help="which of the draft's other tokens the target writes where it rejects one, by coupling, on many clips",
        allow_abbrev=False,
    )
    hits.add_argument("--clips", type=int, default=40, metavar="N", help="clips to draw (default: 40)")
    hits.add_argument("--max-tokens", type=int, default=256, metavar="N", help="tokens of an answer (default: 256)")
    hits.add_argument(
        "--outcomes", type=_outcomes, default="auto", metavar="N", help="as in pvlm bench (default: auto)"
    )
    hits.add_argument("--json", metavar="FILE", help="write the rows to a file")
    _add_pair(hits, "target", "draft", "backend", "prune")
    hits.set_defaults(run=run_hit_rate)
    pad = commands.add_parser("pad", help=f"write a padded checkpoint: {PADDING}")
    pad.add_argument("folder", metavar="FOLDER", help="folder to write; it must not exist yet")
    pad.add_argument("--layers", type=int, required=True, metavar="K", help="decoder layers to append")
    pad.add_argument("--target", default=bundled("target"), help="checkpoint directory (default: the bundled target)")
    pad.set_defaults(run=run_pad)
    kept = commands.add_parser("kept", help="many questions on five videos, with room for a part of them")
    kept.add_argument("--questions", type=int, default=1000, metavar="N", help="default: 1000")
    kept.add_argument(
        "--prefix-cache-bytes", type=int, default=20_000_000, metavar="N", help="of each model (default: 20000000)"
    )
    kept.add_argument("--json", metavar="FILE", help="write the figures to a file")
    _add_pair(kept, "target", "draft", "backend")
    kept.set_defaults(run=run_kept)
    evaluation = commands.add_parser("lmms-eval", help="a task of lmms-eval by `ar`, `parallel`, and the server")
    evaluation.set_defaults(run=run_evaluation)
    load = commands.add_parser("load", help="a server under load: answers, memory, the time to the first token")
    load.add_argument("--server", choices=("serve", "ray"), default="serve", help="default: serve")
    load.add_argument("--callers", type=int, default=200, metavar="N", help="callers at once (default: 200)")
    load.add_argument("--leaving", type=float, default=1 / 3, metavar="SHARE", help="callers that hang up (1/3)")
    load.add_argument("--rounds", type=int, default=6, metavar="N", help="rounds that count (default: 6)")
    load.add_argument("--json", metavar="FILE", help="write the rows to a file")
    load.set_defaults(run=run_load)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run is not run_bench:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        status: int = options.run(options, rest)
        return status
    except PvlmError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 1


def _add_pair(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options that choose the models, and how they run."""
    for name in names:
        parser.add_argument(f"--{name}", help="as in pvlm bench")


def _outcomes(text: str) -> OutcomesSetting:
    if text == "auto" or text.isdecimal():
        return "auto" if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is neither auto nor a number of windows to prepare")


def _shown(measure: Callable[[Callable[[float], None]], Awaitable[Measured]]) -> Measured:
    """Run a measurement, which gets a function that shows the finished fraction."""

    async def run() -> Measured:
        with ProgressDisplay() as shown:
            return await measure(lambda fraction: shown.update("measure", fraction))

    return anyio.run(run)


def _config(options: argparse.Namespace, *names: str) -> EngineConfig:
    given = {name: getattr(options, name) for name in names}
    return engine_config({name: value for name, value in given.items() if value is not None})


def run_bench(options: argparse.Namespace, rest: Sequence[str]) -> int:
    with padded_arguments(options.target, options.draft, options.pad_layers, options.early_layer) as padded:
        return pvlm_main(["bench", *rest, *padded])


def run_never_slower(options: argparse.Namespace, rest: Sequence[str]) -> int:
    configure_logs(False)
    config = _config(options, "target", "draft", "backend", "prune")
    clips = drawn_clips(options.clips)

    rows = _shown(
        lambda on_turn: measure_speeds(
            config, clips, rounds=options.rounds, max_tokens=options.max_tokens, on_turn=on_turn
        )
    )
    for row in rows:
        print(
            f"{row.method} over {row.against}: {row.ratio:.3f} ± {row.half:.3f} in decoding (mean of {row.clips} clips "
            f"in {row.rounds} rounds; lowest {row.lowest:.3f}; {row.rests:.1f} rests, {row.windows:.1f} windows)"
        )
    if options.json:
        write_json(options.json, rows)
    if not rows[0].same_tokens:
        print("the tokens are NOT the same")
        return 1
    return 0


def run_kept(options: argparse.Namespace, rest: Sequence[str]) -> int:
    configure_logs(False)
    config = _config(options, "target", "draft", "backend")

    report = _shown(lambda on_turn: measure_kept(config, options.questions, options.prefix_cache_bytes, on_turn))
    for name, value in msgspec.to_builtins(report).items():
        if name != "memory_mb":
            print(f"{name}: {value}")
    for name, found in report.memory_mb.items():
        print(f"resident memory of the {name}: {', '.join(f'{mb:.0f}' for mb in found)} MB")
    if options.json:
        write_json(options.json, report)
    return 0 if report.passed else 1


def run_hit_rate(options: argparse.Namespace, rest: Sequence[str]) -> int:
    configure_logs(False)
    config = _config(options, "target", "draft", "backend", "prune")
    clips = drawn_clips(options.clips)

    rows = _shown(
        lambda on_turn: measure_hit_rates(
            config, clips, max_tokens=options.max_tokens, outcomes=options.outcomes, on_turn=on_turn
        )
    )
    for row in rows:
        shares = ", ".join("–" if share is None else f"{share:.2f}" for share in row.by_rank)
        rate = "–" if row.hit_rate is None else f"{row.hit_rate:.2f}"
        print(
            f"{row.coupling}: {row.rejections} rejections in {row.positions} tokens of {row.clips} clips; the target's "
            f"token was the draft's other token of rank 1, 2, ...: {shares}; in the engine {row.hits} hits, "
            f"{row.late_hits} late hits, {row.misses} misses: {rate}"
        )
    if options.json:
        write_json(options.json, rows)
    return 0


def run_pad(options: argparse.Namespace, rest: Sequence[str]) -> int:
    folder = pad_layers(options.target, options.folder, options.layers)
    print(f"{folder}: {options.layers} layers appended: {PADDING}")
    return 0


def run_load(options: argparse.Namespace, rest: Sequence[str]) -> int:
    rows = []
    with running_server(options.server) as (url, root):
        for row in measure_load(
            options.server, url, root, rounds=options.rounds, callers=options.callers, leaving=options.leaving
        ):
            rows.append(row)
            print(
                f"round {row.round}: {row.exact} exact, {row.wrong} wrong, {row.left} left, {row.refused} refusals; "
                f"first token {row.first_token_p50_s:.2f} s (p50), {row.first_token_p99_s:.2f} s (p99); "
                f"{row.memory_mb:.0f} MB, {row.replaced_processes} processes replaced; {row.seconds:.0f} s",
                flush=True,
            )
        over_http_s, by_engine_s = first_tokens(url, FIRST_TOKENS)
    print(
        f"first token of one caller: {1000 * over_http_s:.1f} ms over HTTP, {1000 * by_engine_s:.1f} ms by "
        f"Engine.stream, {over_http_s / by_engine_s:.2f}x"
    )
    if options.json:
        write_json(options.json, rows)
    return 0 if all(row.wrong == row.replaced_processes == 0 for row in rows) else 1


def run_evaluation(options: argparse.Namespace, rest: Sequence[str]) -> int:
    rows = evaluate()
    for row in rows:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in row.scores.items())
        print(f"{row.way}: {scores} of {row.samples} samples, {row.tokens_per_second:.0f} tokens/s")
    if not all(row.same_answers for row in rows):
        print("the answers are NOT the same")
        return 1
    print("all answers are the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
