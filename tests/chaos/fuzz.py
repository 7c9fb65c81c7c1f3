"""Coverage-guided fuzzing of what reads bytes from elsewhere: ``python -m tests.chaos.fuzz TARGET --seconds N``.

Needs atheris (the extra ``chaos``). Any error but the one that a target may raise ends it, and leaves the input behind.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pvlm", "pvlm_protocols"]):
    from pvlm.errors import VideoError
    from pvlm.transports.framing import FrameReader, framed
    from pvlm.transports.link import ConnectionDamaged, Link
    from pvlm.video.containers import container_of
    from pvlm_protocols.codec import ProtocolError, decode_for_actor, decode_from_actor, encode

from tests.protocols.samples import SAMPLES, plain
from tests.video.damaged import make_sources


def codec(data: bytes) -> None:
    """One to four frames; what decodes must come back from its own encoding as it is."""
    frames = data.split(b"\xff\x00\xff\x00")
    for decode in (decode_for_actor, decode_from_actor):
        try:
            message = decode(frames)
        except ProtocolError:
            continue
        assert plain(decode(encode(message))) == plain(message)


def framing(data: bytes) -> None:
    """A stream that is cut where its first byte says, and the link that takes its messages."""
    step = 1 + (data[0] if data else 0)
    reader, link = FrameReader(), Link()
    try:
        for start in range(1, len(data), step):
            for frames in reader.feed(data[start : start + step]):
                link.receive(frames)
    except ConnectionDamaged:
        pass


def containers(data: bytes) -> None:
    try:
        container_of(io.BytesIO(data), len(data), "fuzzed")
    except VideoError:
        pass


def encoded() -> list[bytes]:
    return [b"".join(map(bytes, encode(message))) for message in SAMPLES]


def streamed() -> list[bytes]:
    link = Link()
    messages = [b"".join(map(bytes, framed(link.send(encode(message))))) for message in SAMPLES]
    return [b"\x10" + message for message in messages] + [b"\x40" + b"".join(messages)]


def videos() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return list(make_sources(Path(folder)).values())


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "codec": (codec, encoded),
    "framing": (framing, streamed),
    "containers": (containers, videos),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/fuzzing"), help="for inputs, and what they find")
    given = parser.parse_args()
    test, corpus = TARGETS[given.target]
    inputs = given.folder / f"{given.target}-corpus"
    inputs.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus()):
        (inputs / str(number)).write_bytes(data)
    limits = [f"-max_total_time={given.seconds}", f"-seed={given.seed}", "-timeout=20", "-rss_limit_mb=4096"]
    limits += ["-max_len=60000", f"-artifact_prefix={given.folder}/{given.target}-"]
    atheris.Setup([sys.argv[0], *limits, str(inputs)], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
