"""Draft and target crash at any point, are noticed at any time, and come back at any time: the text is the same."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pvlm.coordination.events import DraftBack, Fail, TargetBack, TargetGivenUp, TargetGone
from pvlm.coordination.modes import State
from pvlm.speculation import coupling
from pvlm.speculation.policy import FixedWindow
from pvlm.speculation.sampling import normalised, processed
from pvlm.speculation.windows import AutoWindow
from pvlm_protocols.messages import Failed, Open, Verdict
from tests.coordination.harness import SCHEDULES, Harness, sampling
from tests.coordination.test_coordinator import Moody, noises, seeds
from tests.support.toy import ForkingToyBackend, ToyBackend

TWO_MODELS = [name for name in SCHEDULES if name != "ar"]


class Impatient(FixedWindow):
    """The first window is a probe."""

    patient = False


def any_crash(rng: random.Random):
    """Any order; crashes come soon, now and then, or seldom, so that they are met in all parts of an answer."""
    often = rng.choice([0.5, 0.1, 0.03, 0.01])

    def choose(moves):
        quiet = [move for move in moves if not move.startswith("crash")]
        return rng.choice(moves if rng.random() < often or not quiet else quiet)

    return choose


def policy(kind: str, gamma: int, wait: int, rng: random.Random):
    match kind:
        case "fixed":
            return FixedWindow(gamma, min(wait, gamma), rng.choice([0.0, 1e9]), rng.choice([(), (2, 2, 1)]))
        case "impatient":
            return Impatient(gamma, min(wait, gamma), rng.choice([0.0, 1e9]), rng.choice([(), (2, 2, 1)]))
        case _:
            return Moody(gamma, min(wait, gamma), rng)


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=80, deadline=None)
@given(
    order=seeds,
    noise=noises,
    seed=seeds,
    gamma=st.integers(1, 6),
    wait=st.integers(0, 3),
    crashes=st.integers(1, 5),
    kind=st.sampled_from(["fixed", "impatient", "moody"]),
    away=st.booleans(),
)
def test_crashes_change_nothing(schedule, order, noise, seed, gamma, wait, crashes, kind, away):
    rng = random.Random(order)
    target = ToyBackend(seed=seed)
    harness = Harness(
        schedule=schedule,
        target=target,
        draft=rng.choice([ToyBackend, ForkingToyBackend])(noise=noise, seed=seed),
        policy=policy(kind, gamma, wait, rng),
        crashes=crashes,
        draft_away="not yet started" if away and schedule != "ar" else "",
    )
    assert harness.play(any_crash(rng)) == target.greedy(24)
    assert harness.coordinator.state is State.FINISHED
    assert harness.coordinator.committed == harness.emitted


@settings(max_examples=30, deadline=None)
@given(seed=seeds, order=seeds, gamma=st.integers(1, 6), schedule=st.sampled_from(TWO_MODELS))
def test_gumbel_text_does_not_depend_on_crashes(seed, order, gamma, schedule):
    seeded = sampling(temperature=1.0, coupling="gumbel", seed=seed)
    alone = Harness(schedule="ar", sampling=seeded).play()
    harness = Harness(schedule=schedule, sampling=seeded, policy=FixedWindow(gamma), session=7, crashes=4)
    assert harness.play(any_crash(random.Random(order))) == alone


@settings(max_examples=30, deadline=None)
@given(seed=seeds, order=seeds, gamma=st.integers(1, 6), schedule=st.sampled_from(list(SCHEDULES)))
def test_no_random_draw_is_made_twice(seed, order, gamma, schedule):
    """Whichever actor crashed: a draw that was lost must not come back in another place of the same text."""
    drawn: Counter[tuple] = Counter()
    original = coupling.uniform

    def recorded(*key):
        drawn[key] += 1
        return original(*key)

    coupling.uniform = recorded
    try:
        speculative = sampling(temperature=1.0, coupling="speculative", seed=seed)
        harness = Harness(schedule=schedule, sampling=speculative, policy=FixedWindow(gamma), crashes=5)
        tokens = harness.play(any_crash(random.Random(order)))
    finally:
        coupling.uniform = original
    assert len(drawn) >= len(tokens)
    assert max(drawn.values()) == 1


def test_the_distribution_does_not_depend_on_crashes():
    """Speculative coupling, two tokens, every answer with up to three crashes: chi-square against the exact one."""
    distribution = sampling(temperature=1.0, coupling="speculative", max_tokens=2, end_token_ids=())
    target, draft = ToyBackend(seed=4), ToyBackend(seed=4, noise=1.0)
    rng = random.Random(1)
    answers = 1500
    found: Counter[tuple[int, ...]] = Counter()
    crashed = 0
    for seed in range(answers):
        harness = Harness(
            target=target,
            draft=draft,
            policy=FixedWindow(2, rng.choice([0, 2])),
            sampling=sampling(temperature=1.0, coupling="speculative", max_tokens=2, end_token_ids=(), seed=seed),
            crashes=3,
        )
        found[tuple(harness.play(any_crash(rng)))] += 1
        crashed += 3 - harness.crashes

    def probabilities(prefix):
        row = target.row(prefix).unsqueeze(0)
        return normalised(processed(row, distribution, distribution.vocab_limit)[0]).tolist()

    first = probabilities([])
    exact = {(a, b): first[a] * second for a in range(len(first)) for b, second in enumerate(probabilities([a]))}
    expected, observed, rest = [], [], [0.0, 0]
    for pair, probability in exact.items():
        if probability * answers >= 5:
            expected.append(probability * answers)
            observed.append(found[pair])
        else:
            rest = [rest[0] + probability * answers, rest[1] + found[pair]]
    assert crashed > answers / 3
    result = stats.chisquare([*observed, rest[1]], [*expected, rest[0]])
    assert result.pvalue > 1e-4


def played_until(harness: Harness, length: int) -> Harness:
    in_turn = itertools.cycle(["hear target", "hear draft", "run target", "run draft"])
    while len(harness.emitted) < length:
        moves = harness.moves()
        harness.make(next(move for move in in_turn if move in moves))
    return harness


def test_a_target_that_is_back_starts_from_what_is_committed():
    harness = played_until(Harness(target=ToyBackend(seed=3, end_logit=-100)), 5)
    written = list(harness.emitted)
    harness.deliver(TargetGone())
    assert harness.coordinator.state is State.RECOVERING
    late = Verdict(session=1, epoch=0, start=len(written), tokens=(1,), accepted=0)
    assert harness.coordinator.handle(late) == []
    assert harness.coordinator.committed == harness.emitted == written
    harness.boxes["target"].incoming.clear()
    epoch = harness.coordinator.epoch
    harness.deliver(TargetBack())
    opening = harness.boxes["target"].incoming[0]
    assert isinstance(opening, Open)
    assert list(opening.committed) == written
    assert opening.epoch > epoch
    assert harness.coordinator.counts.target_recoveries == 1


def test_a_draft_that_is_back_joins_the_same_answer():
    harness = Harness(
        target=ToyBackend(seed=3, end_logit=-100),
        draft=ToyBackend(seed=3, end_logit=-100),
        sampling=sampling(max_tokens=60),
        policy=Impatient(4),
        crashes=1,
    )
    played_until(harness, 10)
    harness.make("crash draft")
    harness.make("notice draft")
    played_until(harness, 20)
    accepted = harness.coordinator.counts.accepted_tokens
    harness.make("revive draft")
    (opening, mask) = harness.boxes["draft"].incoming
    assert list(opening.committed) == harness.coordinator.committed
    assert mask.video_tokens == 16
    in_turn = itertools.cycle(["hear target", "hear draft", *4 * ["run draft"], "run target"])
    assert harness.play(lambda moves: next(move for move in in_turn if move in moves)) == ToyBackend(
        seed=3, end_logit=-100
    ).greedy(60)
    counts = harness.coordinator.counts
    assert counts.draft_lost == "killed"
    assert counts.draft_rejoins == 1
    assert counts.accepted_tokens > accepted + 20


def test_a_draft_that_failed_at_the_session_does_not_try_again():
    harness = Harness()
    harness.deliver(Failed(session=1, role="draft", error="PromptError", message="too long", traceback=""))
    assert harness.coordinator.handle(DraftBack()) == []


def test_a_target_that_comes_back_where_the_draft_has_failed_goes_on_alone():
    harness = played_until(Harness(target=ToyBackend(seed=3, end_logit=-100), crashes=1), 3)
    harness.deliver(Failed(session=1, role="draft", error="PromptError", message="too long", traceback=""))
    for move in ("crash target", "notice target", "revive target"):
        harness.make(move)
    assert harness.play() == ToyBackend(seed=3, end_logit=-100).greedy(24)


def test_a_target_that_is_given_up_fails_the_session_with_its_traceback():
    harness = Harness()
    harness.deliver(TargetGone())
    harness.deliver(TargetGivenUp("out of memory", "Traceback"))
    assert harness.failed == [Fail("TargetLost", "out of memory", "Traceback")]
    assert harness.coordinator.state is State.FAILED
    assert harness.coordinator.handle(TargetBack()) == []


def test_the_automatic_window_does_not_learn_from_an_outage():
    auto = AutoWindow()
    harness = played_until(Harness(policy=auto, target=ToyBackend(seed=3, end_logit=-100)), 3)
    harness.deliver(TargetGone())
    before = len(harness.coordinator.counts.idle_ms)
    harness._replace("target")
    harness.deliver(TargetBack())
    deliver = harness.coordinator.handle
    start = len(harness.coordinator.committed)
    deliver(
        Verdict(
            session=1,
            epoch=9,
            start=start,
            tokens=(1,),
            accepted=0,
            pass_tokens=1,
            own_tokens=1,
            pass_ms=1.0,
            ended_s=1e9,
        )
    )
    assert len(harness.coordinator.counts.idle_ms) == before
