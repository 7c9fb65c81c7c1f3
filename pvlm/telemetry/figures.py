"""The figures of an answer, in words: what the command line and the pictures of a trace show."""

from __future__ import annotations

from pvlm.results import AnswerStats


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A figure, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def figures(stats: AnswerStats) -> list[tuple[str, str]]:
    """Name and value of the figures of one answer."""
    sees = ""
    window = sum(stats.windows) / len(stats.windows) if stats.windows else None
    rows = [
        ("method", stats.method),
        ("backend", " / ".join(dict.fromkeys(filter(None, (stats.target_backend, stats.draft_backend))))),
        ("new tokens", f"{stats.new_tokens} ({number(stats.tokens_per_second, 1)} a second)"),
        ("prefill / decode", f"{stats.prefill_s:.3f} s / {stats.decode_s:.3f} s"),
        ("first token after", f"{stats.time_to_first_token_s:.3f} s (reading the video: {stats.video_s:.3f} s)"),
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
    rows.append(("video tokens", f"{stats.video_tokens}{sees}"))
    if stats.draft_lost:
        rows.append(("without the draft", stats.draft_lost))
    return rows
