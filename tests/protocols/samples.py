"""One message of every type, with every field away from its default, and how to compare messages that hold arrays."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import numpy as np

from pvlm_protocols.backend import ModelInfo
from pvlm_protocols.messages import (
    Advance,
    Began,
    Close,
    Closed,
    DraftWindow,
    Dying,
    Failed,
    FromActor,
    Hello,
    Loading,
    Message,
    NeedVideo,
    Open,
    Opened,
    Outcome,
    Parent,
    Pin,
    Ping,
    Pong,
    PrefillDone,
    PrefillProgress,
    PrefixesKept,
    Prepared,
    PruneMask,
    Pruning,
    Recall,
    Recalled,
    Resume,
    Rollback,
    Sampling,
    Schedule,
    SetMode,
    SetWindow,
    Stop,
    Stopped,
    ToActor,
    Verdict,
    VideoContent,
    Window,
)
from pvlm_protocols.turns import OpenTurn, VideoFrames

TO_ACTOR: tuple[type[Message], ...] = get_args(ToActor)
FROM_ACTOR: tuple[type[Message], ...] = get_args(FromActor)
ALL_TYPES = tuple(dict.fromkeys(TO_ACTOR + FROM_ACTOR))

_WINDOW = Window(gamma=5, wait=2, patience_ms=1.5, ahead=False, outcomes=(2, 1))

SAMPLES: tuple[Message, ...] = (
    Open(
        session=7,
        turns=(
            OpenTurn(
                role="user",
                parts=(
                    VideoFrames(
                        pixels=np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3),
                        timestamps_s=(0.0, 0.25),
                        checksum=9,
                        kind="image",
                        size=(3, 4),
                        digest=b"\x05",
                    ),
                    "Wo ist der Würfel?",
                ),
            ),
        ),
        sampling=Sampling(
            max_tokens=9,
            temperature=0.5,
            top_k=3,
            top_p=0.75,
            min_p=0.25,
            seed=2**62,
            coupling="gumbel",
            vocab_limit=768,
            end_token_ids=(2, 0),
        ),
        pruning=Pruning(method="uniform", ratio=0.5, early_layer=3, compact_positions=True, seed=4),
        schedule=Schedule(mode="turns", overlap_prefill=False),
        window=_WINDOW,
        committed=(11, 12),
        epoch=3,
        shares=False,
    ),
    VideoContent(
        session=7,
        visuals=(VideoFrames(pixels=np.zeros((0, 1, 2, 3), np.uint8), digest=b"\x05", left_out=2),),
    ),
    Resume(session=7, committed=(5, 300), epoch=2, window=_WINDOW),
    Close(session=7),
    PruneMask(session=7, bits=b"\xa0\x01", video_tokens=16, kept=3, method="uv", ratio=0.5),
    DraftWindow(
        session=7,
        id=4,
        parent=3,
        epoch=1,
        start=2,
        tokens=(5, 300),
        proposal_ids=np.array([[5, -1], [300, 5]], np.int32),
        proposal_probs=np.array([[1.0, 0.0], [0.75, 0.25]], np.float32),
        draft_ms=0.5,
        began_s=0.125,
        ended_s=0.25,
        stopped=(Stopped(epoch=1, start=2, tokens=3, draft_ms=0.5, ended_s=0.25),),
        beside=1.5,
        adopted=1,
    ),
    Prepared(
        session=7,
        epoch=1,
        outcomes=(Outcome(id=5, parent=Parent(window=4, offset=1, token=9, start=3), rank=1, tokens=(6, 300)),),
        proposal_ids=np.array([[6, -1], [300, 6]], np.int32),
        proposal_probs=np.array([[1.0, 0.0], [0.75, 0.25]], np.float32),
        draft_ms=0.5,
        ended_s=0.25,
    ),
    SetMode(session=7, mode="alone"),
    Rollback(session=7, epoch=2, keep=3, tokens=(5, 6), window=_WINDOW),
    Advance(session=7, epoch=2, length=5, window=_WINDOW, branch=6),
    SetWindow(session=7, window=_WINDOW),
    Pin(videos=(b"\x05",)),
    Ping(nonce=3),
    Recall(engine=4),
    Stop(),
    Hello(
        version=1,
        role="draft",
        info=ModelInfo(
            name="m",
            family="f",
            vocab_size=768,
            end_token_ids=(2,),
            tokenizer_fingerprint="t",
            layers=2,
            hidden_size=128,
            max_positions=16384,
            parameters=1000,
            dtype="float32",
            device="cpu",
            backend="torch",
            backend_reason="r",
            shares_passes=True,
        ),
        pid=99,
    ),
    Loading(role="target", fraction=0.5),
    Opened(session=7, role="target", prompt_tokens=21, video_tokens=16, cached_tokens=17, open_ms=0.5, ended_s=0.25),
    NeedVideo(session=7, role="draft"),
    PrefillProgress(session=7, role="draft", fraction=0.25),
    PrefillDone(session=7, role="target", prompt_tokens=21, prefill_ms=1.5, ended_s=0.25),
    Verdict(
        session=7,
        epoch=1,
        start=2,
        tokens=(5, 6),
        accepted=1,
        rejected=True,
        window=4,
        pass_tokens=5,
        own_tokens=5,
        pass_ms=1.5,
        ended_s=0.25,
        finish="stop",
        judged=4,
        offset=1,
        branch=5,
    ),
    PrefixesKept(role="target", count=3, nbytes=2**33, evicted=4),
    Began(role="draft", sessions=(7, 300)),
    Closed(session=7, role="draft"),
    Failed(session=7, role="target", error="PromptError", message="too long", traceback="Traceback"),
    Dying(role="draft", error="CheckpointError", message="no such file", traceback="Traceback"),
    Recalled(role="draft", known=True, sessions=(7, 300)),
    Pong(nonce=3, role="draft", progress=17, sessions=2, dropped=1, at_s=0.25),
)


def plain(value: Any) -> Any:
    """A message as tuples and dicts that can be compared, arrays as dtype, shape and bytes."""
    match value:
        case msgspec.Struct():
            return type(value).__name__, {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        case np.ndarray():
            return value.dtype.name, value.shape, value.tobytes()
        case tuple():
            return tuple(plain(item) for item in value)
        case float() if value != value:
            return "nan"
        case _:
            return value
