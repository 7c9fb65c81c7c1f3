"""Any message that decodes: strategies made from the types of the fields, with their bounds."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from msgspec import inspect

from pvlm_protocols.codec import INLINE_BYTES
from pvlm_protocols.limits import MAX_WINDOW
from pvlm_protocols.messages import DraftWindow, Message, Prepared
from pvlm_protocols.turns import VideoFrames

WIDE = 2**63 - 1


def of_type(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a field's type, the bounds among them."""
    match kind:
        case inspect.IntType():
            low, high = -WIDE if kind.ge is None else kind.ge, WIDE if kind.le is None else kind.le
            return st.sampled_from([low, high]) | st.integers(low, high) | st.integers(low, min(high, low + 9))
        case inspect.FloatType():
            low, high = kind.ge if kind.gt is None else kind.gt, kind.le if kind.lt is None else kind.lt
            return st.floats(low, high, exclude_min=kind.gt is not None, exclude_max=kind.lt is not None)
        case inspect.StrType():
            return st.text(st.characters(exclude_categories=["Cs"]), max_size=min(8, kind.max_length or 8))
        case inspect.BytesType():
            return st.binary(max_size=8)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.UnionType(types=types):
            return st.one_of([of_type(option) for option in types])
        case inspect.VarTupleType(item_type=item):
            return st.lists(of_type(item), min_size=kind.min_length or 0, max_size=5).map(tuple)
        case inspect.StructType(cls=cls):
            return a_struct(cls)
        case _:
            raise NotImplementedError(f"a field of {kind}")


def fields_of(kind: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """Types of a struct's fields by name."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return {field.name: field.type for field in described.fields}


def a_struct(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    if kind is VideoFrames:
        return some_frames()
    if kind is DraftWindow:
        return a_window()
    if kind is Prepared:
        return some_outcomes()
    return st.builds(kind, **{name: of_type(field) for name, field in fields_of(kind).items()})


def messages_of(kinds: tuple[type[Message], ...]) -> st.SearchStrategy[Message]:
    return st.one_of([cast(Any, a_struct(kind)) for kind in kinds])


@st.composite
def some_frames(draw: st.DrawFn) -> VideoFrames:
    count = draw(st.integers(1, 4))
    if draw(st.booleans()):
        pixels = LARGE_FRAMES[:count]
    else:
        shape = count, draw(st.integers(1, 4)), draw(st.integers(1, 4)), 3
        pixels = draw(arrays.arrays(np.uint8, shape))
    if draw(st.booleans()):
        pixels = pixels[:, :, ::-1]  # not contiguous
    return VideoFrames(pixels=pixels, timestamps_s=_times(draw, count) if draw(st.booleans()) else ())


def _times(draw: st.DrawFn, count: int) -> tuple[float, ...]:
    kind = fields_of(VideoFrames)["timestamps_s"]
    assert isinstance(kind, inspect.VarTupleType)
    return tuple(draw(of_type(kind.item_type)) for _ in range(count))


@st.composite
def a_window(draw: st.DrawFn) -> DraftWindow:
    fields = {name: kind for name, kind in fields_of(DraftWindow).items() if not name.startswith("proposal_")}
    values = {name: draw(of_type(kind)) for name, kind in fields.items()}
    match draw(st.sampled_from(["none", "small", "large"])):
        case "small":
            shape = len(values["tokens"]), draw(st.integers(0, 4))
            values["proposal_ids"] = draw(arrays.arrays(np.int32, shape))
            values["proposal_probs"] = draw(arrays.arrays(np.float32, shape))
        case "large":
            values |= {"tokens": (1,) * len(LARGE_IDS), "proposal_ids": LARGE_IDS, "proposal_probs": LARGE_PROBS}
    return DraftWindow(**values)


@st.composite
def some_outcomes(draw: st.DrawFn) -> Prepared:
    fields = {name: kind for name, kind in fields_of(Prepared).items() if not name.startswith("proposal_")}
    values = {name: draw(of_type(kind)) for name, kind in fields.items()}
    if draw(st.booleans()):
        shape = sum(len(outcome.tokens) for outcome in values["outcomes"]), draw(st.integers(0, 4))
        values["proposal_ids"] = draw(arrays.arrays(np.int32, shape))
        values["proposal_probs"] = draw(arrays.arrays(np.float32, shape))
    return Prepared(**values)


# Beyond INLINE_BYTES, so that they travel as frames of their own; made once, for drawing them by element takes seconds.
_RANDOM = np.random.default_rng(0)
LARGE_FRAMES = _RANDOM.integers(0, 255, (4, 160, 160, 3), dtype=np.uint8)
LARGE_IDS = _RANDOM.integers(0, 100, (MAX_WINDOW, 1000), dtype=np.int32)
LARGE_PROBS = _RANDOM.random((MAX_WINDOW, 1000), np.float32)
assert min(LARGE_FRAMES[:1].nbytes, LARGE_IDS.nbytes) > INLINE_BYTES
