"""Ask about a video from a script: ``python examples/ask.py clip.mp4 "What happens in the video?"``."""

import sys

from pvlm import Engine, PvlmError


def main(video: str, question: str) -> None:
    answer = Engine.create().answer_sync(video, question, max_tokens=256)
    print(answer)
    stats = answer.stats
    rate = "no drafts" if stats.acceptance_rate is None else f"{stats.acceptance_rate:.0%} of the drafts accepted"
    print(f"{stats.new_tokens} tokens in {stats.target_passes} passes of the target, {rate}", file=sys.stderr)
    print(f"{stats.total_s:.2f} s: prefill {stats.prefill_s:.2f}, decoding {stats.decode_s:.2f}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python ask.py VIDEO QUESTION")
    try:
        main(sys.argv[1], sys.argv[2])
    except PvlmError as error:
        sys.exit(f"error: {error}")
