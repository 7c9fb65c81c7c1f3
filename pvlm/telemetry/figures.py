"""The figures of an answer, in words: what the command line and the pictures of a trace show."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pvlm.results import AnswerStats


BEFORE_DECODING = {"start-up": "startup_s", "waiting": "waiting_s", "video": "video_s", "prefill": "prefill_s"}
"""The parts of an answer's time before its first token, in order: names, and fields of `AnswerStats`."""
SHOWN_S = 0.0005
"""Shorter parts are left out."""


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A figure, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def figures(stats: AnswerStats) -> list[tuple[str, str]]:
    """Name and value of the figures of one answer."""
    sees = ""
    window = sum(stats.windows) / len(stats.windows) if stats.windows else None
    before = {name: getattr(stats, field) for name, field in BEFORE_DECODING.items()}
    rows = [
        ("method", stats.method),
        ("backend", " / ".join(dict.fromkeys(filter(None, (stats.target_backend, stats.draft_backend))))),
        ("new tokens", f"{stats.new_tokens} ({number(stats.tokens_per_second, 1)} a second)"),
        ("time", _sum({**before, "decoding": stats.decode_s})),
        ("first token after", _sum({**before, "first pass": stats.time_to_first_token_s - sum(before.values())})),
        ("target passes", f"{stats.target_passes} of {number(stats.target_pass_ms, 2, ' ms')}"),
    ]
    if stats.method != "ar":
        rows += [
            ("drafted tokens", f"{stats.drafted_tokens} of {number(stats.draft_token_ms, 2, ' ms')}"),
            ("acceptance rate", f"{number(stats.acceptance_rate)} of the tokens that were tested"),
            ("mean accepted length", f"{number(stats.mean_accepted_length, 1)} tokens a rejection"),
            ("window (γ), mean", number(window, 1)),
            ("rollbacks", str(stats.rollbacks)),
        ]
        sees = f", the draft sees {stats.kept_video_tokens} ({stats.prune})"
    unprunable = stats.frame_indices and not stats.video_tokens
    rows.append(("video tokens", "none that can be pruned" if unprunable else f"{stats.video_tokens}{sees}"))
    if stats.ignored_options:
        rows.append(("warning", f"not applied: the checkpoint's own {', '.join(stats.ignored_options)}"))
    if stats.draft_lost:
        rows.append(("without the draft", stats.draft_lost))
    return rows


def _sum(parts: dict[str, float]) -> str:
    """A time as the sum of its parts, in seconds. The whole is the sum of the parts as they are shown."""
    shown = {name: round(seconds, 3) for name, seconds in parts.items() if seconds >= SHOWN_S}
    listed = " + ".join(f"{name} {seconds:.3f}" for name, seconds in shown.items())
    return f"{sum(shown.values()):.3f} s" + (f" = {listed}" if len(shown) > 1 else "")
