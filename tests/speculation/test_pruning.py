"""Masks and pruners; UV-Prune against the paper's double sum."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pvlm.errors import ConfigError
from pvlm.speculation.masks import kept_count, pack_mask, unpack_mask
from pvlm.speculation.pruning import (
    AttentionPruner,
    NonePruner,
    NoveltyPruner,
    RandomPruner,
    SpecVLMPruner,
    UniformPruner,
    UVPruner,
    default_early_layer,
    load_pruner,
    temporal_novelty,
    visual_text_gain,
)
from pvlm_protocols.backend import EarlyStates


def layered_states(m: int, n: int, layers: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * 1000 + n)
    return (
        torch.randn(layers + 1, m, width, generator=generator),
        torch.randn(layers + 1, n, width, generator=generator),
    )


def ends(video: torch.Tensor, question: torch.Tensor, attention: torch.Tensor | None = None) -> EarlyStates:
    return EarlyStates(len(video) - 1, video[0], video[-1], question[0], question[-1], attention)


def attending(*attention: float) -> EarlyStates:
    """Early states of which only the attention counts."""
    return ends(*layered_states(len(attention), 2, 1), torch.tensor(attention))


@pytest.mark.parametrize(("m", "n", "layers"), [(30, 5, 4), (7, 1, 1), (50, 12, 9)])
def test_two_products_are_the_papers_double_sum(m: int, n: int, layers: int) -> None:
    """``sum over j, l of cos(V_i(l), X_j(l)) - cos(V_i(l-1), X_j(l-1))``, term by term."""
    video, question = layered_states(m, n, layers)
    naive = torch.zeros(m, dtype=torch.float64)
    for i in range(m):
        for j in range(n):
            for layer in range(1, layers + 1):
                for at, sign in ((layer, 1), (layer - 1, -1)):
                    v, x = video[at, i].double(), question[at, j].double()
                    naive[i] += sign * (v @ x) / (v.norm() * x.norm())
    gain = visual_text_gain(ends(video, question))
    assert gain.dtype == torch.float32
    assert torch.allclose(gain.double(), naive, atol=1e-5)
    keep = m // 3 + 1
    mask = UVPruner().select(m, keep, ends(video, question), seed=0)
    assert set(mask.nonzero()[:, 0].tolist()) == set(naive.topk(keep).indices.tolist())


def test_uv_keeps_what_came_closer_to_the_question() -> None:
    """Not what is close: token 0 is close from the start, token 1 comes closer."""
    question = torch.tensor([[1.0, 0.0]])
    first, last = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.1], [1.0, 1.0]])
    states = EarlyStates(3, first, last, question, question)
    assert UVPruner().select(2, 1, states, 0).tolist() == [False, True]


def test_uv_scale_of_a_state_does_not_count() -> None:
    video, question = layered_states(20, 4, 3)
    states = ends(video, question)
    scaled = EarlyStates(
        3, states.video_first * 7, states.video_last * 1e3, states.question_first, states.question_last
    )
    assert torch.equal(UVPruner().select(20, 6, states, 0), UVPruner().select(20, 6, scaled, 0))


def test_uv_ties_go_to_the_lowest_index_and_half_precision_is_widened() -> None:
    same = torch.ones(1000, 8, dtype=torch.bfloat16)
    question = torch.randn(3, 8, dtype=torch.float32).to(torch.bfloat16)
    mask = UVPruner().select(1000, 10, EarlyStates(1, same, same, question, question), 0)
    assert mask.nonzero()[:, 0].tolist() == list(range(10))


def test_uv_survives_states_that_overflowed() -> None:
    video, question = layered_states(6, 2, 1)
    video[1, 2] = torch.inf
    mask = UVPruner().select(6, 5, ends(video, question), 0)
    assert mask.tolist() == [True, True, False, True, True, True]


def test_uv_without_a_question_is_even() -> None:
    video, question = layered_states(10, 2, 1)
    states = ends(video, question[:, :0])
    assert torch.equal(UVPruner().select(10, 4, states, 0), UniformPruner().select(10, 4, None, 0))


def test_uv_refuses_states_of_another_prompt() -> None:
    video, question = layered_states(10, 2, 1)
    with pytest.raises(ValueError, match="10 and 10 video tokens, not 11"):
        UVPruner().select(11, 4, ends(video, question), 0)
    with pytest.raises(ValueError, match="early states"):
        UVPruner().select(10, 4, None, 0)


def test_attention_keeps_what_the_question_looks_at() -> None:
    mask = AttentionPruner().select(6, 3, attending(0.1, 0.02, 0.2, 0.02, 0.0, 0.02), 0)
    assert mask.tolist() == [True, True, True, False, False, False]  # of equal ones the first


def test_specvlm_spreads_what_attention_does_not_claim() -> None:
    # Tokens 6 and 7 hold 0.45 of the mass: two places by attention, two evenly over the six tokens before them.
    states = attending(0.1, 0.1, 0.09, 0.09, 0.09, 0.08, 0.25, 0.2)
    assert SpecVLMPruner().select(8, 4, states, 0).nonzero()[:, 0].tolist() == [1, 4, 6, 7]
    assert SpecVLMPruner().select(8, 1, states, 0).nonzero()[:, 0].tolist() == [6]


@given(attention=arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1, width=32)), data=st.data())
def test_specvlm_s_mass_rule(attention: np.ndarray, data: st.DataObject) -> None:
    """Attention fills the fewest places that hold 40% of its mass, or all; the others are even over what is left."""
    m = len(attention)
    keep = data.draw(st.integers(1, m))
    states = attending(*attention.tolist())
    mask = SpecVLMPruner().select(m, keep, states, 0)
    ranked = sorted(range(m), key=lambda i: (-attention[i], i))
    total = sum(map(float, attention))
    held = [sum(float(attention[i]) for i in ranked[:n]) for n in range(m + 1)]
    assume(all(abs(mass - 0.4 * total) > 1e-6 * total for mass in held))  # no rounding decides; not all are 0
    needed = next(n for n in range(m + 1) if held[n] >= 0.4 * total)
    assert mask[ranked[: min(needed, keep)]].all()
    rest = sorted(ranked[needed:])
    gaps = torch.tensor([rest.index(i) for i in rest if mask[i]]).diff()
    if keep > needed:
        assert int(mask[rest].sum()) == keep - needed
        assert len(gaps) == 0 or int(gaps.max() - gaps.min()) <= 1


@given(scores=st.permutations(range(1, 25)), keep=st.integers(1, 23))
def test_attention_with_more_places_keeps_what_it_kept(scores: list[int], keep: int) -> None:
    states = attending(*(score / 400 for score in scores))
    fewer, more = (AttentionPruner().select(24, count, states, 0) for count in (keep, keep + 1))
    assert (more >= fewer).all()
    assert float(torch.tensor(scores)[fewer].min()) > 24 - keep


@pytest.mark.parametrize("pruner", [AttentionPruner(), SpecVLMPruner()])
def test_attention_that_is_none(pruner: Any) -> None:
    """Without a question, or where it looks at nothing, the video is thinned evenly; without attention at all, not."""
    evenly = UniformPruner().select(10, 4, None, 0)
    assert torch.equal(pruner.select(10, 4, attending(*[0.0] * 10), 0), evenly)
    assert torch.equal(pruner.select(10, 4, attending(*[float("nan")] * 10), 0), evenly)
    with pytest.raises(ValueError, match=f"'{pruner.name}' pruner needs the attention"):
        pruner.select(10, 4, ends(*layered_states(10, 2, 1)), 0)
    with pytest.raises(ValueError, match="10 video tokens, not 11"):
        pruner.select(11, 4, attending(*[0.1] * 10), 0)


def still_video(frames: int, places: int, changes: dict[tuple[int, int], int]) -> EarlyStates:
    """Early states of a video in which nothing happens but that a place of a frame, and from then on, looks like
    picture number so-and-so; before that all places look like picture 0.
    """
    looks = torch.zeros(frames, places, dtype=torch.int64)
    for (frame, place), picture in changes.items():
        looks[frame:, place] = picture
    video = torch.eye(8)[looks.flatten()]
    return dataclasses.replace(ends(torch.stack([video, video]), torch.ones(2, 1, 8)), frames=frames)


def test_novelty_is_what_was_not_there_a_frame_before() -> None:
    states = still_video(3, 4, {(1, 2): 1, (2, 0): 3})
    assert temporal_novelty(states).tolist() == [1, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0]
    scaled = dataclasses.replace(states, video_first=states.video_first.to(torch.bfloat16) * 7)
    assert torch.allclose(temporal_novelty(scaled), temporal_novelty(states))


def test_novelty_begins_anew_with_each_video() -> None:
    """Videos have moments of different sizes; an image is one moment."""
    row = torch.eye(4)
    video = torch.cat([row[:2], row[:2], row[:3], row[:3]])
    states = ends(torch.stack([video, video]), torch.ones(2, 1, 4))
    states = dataclasses.replace(states, runs=((2, 2), (1, 3), (1, 3)))
    assert temporal_novelty(states).tolist() == [1, 1, 0, 0, *[1] * 6]
    mask = NoveltyPruner().select(10, 4, states, 0)
    assert int(mask.sum()) == 4


def test_novelty_keeps_changes_and_spreads_the_rest() -> None:
    # 12 of the 60 tokens are new, 10 of them in the first frame: 60% of the mass are the first 8 of these.
    states = still_video(6, 10, {(2, 4): 1, (5, 9): 2})
    assert NoveltyPruner().select(60, 5, states, 0).nonzero()[:, 0].tolist() == list(range(5))
    assert NoveltyPruner().select(60, 12, states, 0).nonzero()[:, 0].tolist() == [*range(8), 14, 27, 40, 53]


def test_novelty_without_frames_is_even() -> None:
    video, question = layered_states(10, 2, 1)
    evenly = UniformPruner().select(10, 4, None, 0)
    assert torch.equal(NoveltyPruner().select(10, 4, ends(video, question), 0), evenly)
    spoilt = dataclasses.replace(ends(video * torch.nan, question), frames=5)
    assert int(NoveltyPruner().select(10, 4, spoilt, 0).sum()) == 4
    with pytest.raises(ValueError, match="10 video tokens, not 11"):
        NoveltyPruner().select(11, 4, ends(video, question), 0)
    with pytest.raises(ValueError, match="early states"):
        NoveltyPruner().select(10, 4, None, 0)


@given(m=st.integers(1, 300), data=st.data())
def test_every_pruner_keeps_what_it_is_told(m: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, m))
    video, question = layered_states(m, 3, 1, width=4)
    frames = data.draw(st.sampled_from([count for count in range(1, m + 1) if m % count == 0]))
    states = dataclasses.replace(ends(video, question, video[0, :, 0].softmax(dim=0)), frames=frames)
    for pruner in (UVPruner(), AttentionPruner(), SpecVLMPruner(), NoveltyPruner(), UniformPruner(), RandomPruner()):
        mask = pruner.select(m, keep, states if pruner.needs_states else None, seed=3)
        assert mask.dtype == torch.bool
        assert mask.shape == (m,)
        assert int(mask.sum()) == keep
    gaps = UniformPruner().select(m, keep, None, 0).nonzero()[:, 0].diff()
    assert len(gaps) == 0 or int(gaps.max() - gaps.min()) <= 1
    assert NonePruner().select(m, keep, None, 0).all()


def test_random_is_seeded_and_fair() -> None:
    masks = torch.stack([RandomPruner().select(40, 10, None, seed) for seed in range(400)])
    assert torch.equal(masks[7], RandomPruner().select(40, 10, None, 7))
    assert len({tuple(mask.tolist()) for mask in masks}) == 400
    frequency = masks.double().mean(dim=0)
    assert pytest.approx(float(frequency.mean())) == 0.25
    assert float((frequency - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 400) ** 0.5
    assert RandomPruner().select(12, 4, None, 1).nonzero()[:, 0].tolist() == FROZEN_RANDOM


FROZEN_RANDOM = [0, 1, 6, 9]


@pytest.mark.parametrize("pruner", [UniformPruner(), RandomPruner()])
def test_counts_that_cannot_be(pruner: Any) -> None:
    for m, keep in [(5, 6), (5, 0), (5, -1)]:
        with pytest.raises(ValueError, match="cannot keep"):
            pruner.select(m, keep, None, 0)
    assert pruner.select(0, 0, None, 0).shape == (0,)


# ---- names --------------------------------------------------------------------------------------------------------


def test_built_in_pruners_by_name() -> None:
    for kind in (UVPruner, AttentionPruner, SpecVLMPruner, NoveltyPruner, UniformPruner, RandomPruner, NonePruner):
        name = kind.name
        pruner = load_pruner(name)
        assert type(pruner) is kind
        assert pruner.name == name


def test_an_unknown_pruner_names_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"no plug-in 'uvv' in group pvlm.pruners: use one of attention, none, novelty, random"
    ):
        load_pruner("uvv")


# ---- masks --------------------------------------------------------------------------------------------------------


@given(mask=arrays.arrays(np.bool_, st.integers(0, 100)))
def test_masks_round_trip(mask: np.ndarray) -> None:
    bits = pack_mask(mask)
    assert len(bits) == (len(mask) + 7) // 8
    unpacked = unpack_mask(bits, len(mask))
    assert unpacked.dtype == np.bool_
    assert (unpacked == mask).all()
    assert torch.equal(torch.from_numpy(unpacked), torch.tensor(mask.tolist(), dtype=torch.bool))


def test_bits_of_a_mask_are_frozen() -> None:
    assert pack_mask(np.array([1, 0, 0, 0, 0, 0, 0, 1, 1], np.bool_)) == b"\x81\x80"


@pytest.mark.parametrize(("bits", "m"), [(b"\xff", 9), (b"\xff\xff", 8), (b"", 1), (b"\x01", 7), (b"", -1)])
def test_bits_that_are_no_mask(bits: bytes, m: int) -> None:
    with pytest.raises(ValueError, match="video tokens"):
        unpack_mask(bits, m)


@pytest.mark.parametrize(
    ("m", "ratio", "kept"),
    [(25088, 0.9, 2509), (25088, 0.0, 25088), (10, 0.9, 1), (5, 0.5, 3), (15, 0.9, 2), (3, 0.99, 1), (0, 0.5, 0)],
)
def test_kept_count(m: int, ratio: float, kept: int) -> None:
    assert kept_count(m, ratio) == kept


def test_ratios_that_cannot_be() -> None:
    for ratio in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            kept_count(10, ratio)


def test_early_layers() -> None:
    assert [default_early_layer(layers) for layers in (1, 2, 6, 24, 28, 64, 80)] == [1, 1, 2, 6, 7, 16, 20]
    with pytest.raises(ValueError, match="at least 1 layer"):
        default_early_layer(0)
