"""The loop of draft, target and coordinator under every interleaving: the committed text is always the target's."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.coordination.events import Cancelled, DraftBack, DraftGone, TargetGone
from pvlm.coordination.modes import Mode, State
from pvlm.coordination.statistics import Counts
from pvlm.errors import InvalidTransition
from pvlm.speculation.policy import FixedWindow
from pvlm.speculation.rest import Rest
from pvlm.speculation.windows import AutoWindow
from pvlm_protocols.messages import DraftWindow, Failed, Opened, PrefillDone, Rollback, Verdict, Window
from tests.coordination.harness import SCHEDULES, Harness, sampling
from tests.support.toy import ForkingToyBackend, ToyBackend

noises = st.sampled_from([0.0, 0.5, 2.0])
plans = st.sampled_from([(), (1,), (2, 2, 1, 1), (3,) * 9])
"""How many other tokens the draft prepares at each offset."""
seeds = st.integers(0, 10_000)


def any_order(rng: random.Random):
    return lambda moves: rng.choice(moves)


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), noise=noises, seed=seeds, gamma=st.integers(1, 7), wait=st.integers(0, 3))
def test_any_interleaving_commits_the_targets_own_text(schedule, data, noise, seed, gamma, wait):
    rng = random.Random(data.draw(seeds))
    target = ToyBackend(seed=seed)
    patience = data.draw(st.sampled_from([0.0, 1e9]))
    draft = data.draw(st.sampled_from([ToyBackend, ForkingToyBackend]))
    harness = Harness(
        schedule=schedule,
        target=target,
        draft=draft(noise=noise, seed=seed, drafting=data.draw(st.booleans())),
        policy=FixedWindow(gamma, min(wait, gamma), patience, data.draw(plans)),
    )
    assert harness.play(any_order(rng)) == target.greedy(24)
    assert harness.coordinator.state is State.FINISHED
    assert harness.coordinator.committed == harness.emitted
    assert told_of_speculation(harness) == counted_of_speculation(harness)
    assert nothing_is_left(harness)


def nothing_is_left(harness: Harness) -> bool:
    """Has every actor freed its session, with all branches?"""
    for role, box in harness.boxes.items():
        while box.incoming and role not in harness.crashed:
            harness.make(f"run {role}")
    return all(
        actor.backend.open_sessions == 0 for role, actor in harness.actors.items() if role not in harness.crashed
    )


def told_of_speculation(harness: Harness) -> list[float]:
    """What `Metrics` were told: drafted, accepted, accepted at any position, and rejected tokens."""
    names = "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos", "num_rejected_tokens"
    harness.report.tell()
    told = harness.totals.found.items()
    return [sum(total for key, total in told if key.split()[0] == f"pvlm:spec_decode_{name}") for name in names]


def counted_of_speculation(harness: Harness) -> list[float]:
    counts = harness.coordinator.counts
    return [counts.drafted_tokens, counts.accepted_tokens, counts.accepted_tokens, counts.rejected_tokens]


@settings(max_examples=60, deadline=None)
@given(seed=seeds, order=seeds, at=st.integers(0, 60), schedule=st.sampled_from(["parallel", "sd", "no-decode"]))
def test_a_lost_draft_changes_nothing(seed, order, at, schedule):
    rng = random.Random(order)
    target = ToyBackend(seed=seed)
    harness = Harness(schedule=schedule, target=target)
    for _ in range(at):
        if harness.coordinator.done or not harness.moves():
            break
        harness.make(rng.choice(harness.moves()))
    harness.lose_draft()
    assert harness.play(any_order(rng)) == target.greedy(24)
    if harness.coordinator.counts.draft_lost:
        assert harness.coordinator.counts.draft_lost == "killed"


@settings(max_examples=40, deadline=None)
@given(seed=seeds, order=seeds, gamma=st.integers(1, 6), schedule=st.sampled_from(["parallel", "sd"]))
def test_gumbel_text_is_that_of_the_target_alone(seed, order, gamma, schedule):
    settings_ = sampling(temperature=1.0, coupling="gumbel", seed=seed)
    alone = Harness(schedule="ar", sampling=settings_).play()
    together = Harness(schedule=schedule, sampling=settings_, policy=FixedWindow(gamma), session=7)
    assert together.play(any_order(random.Random(order))) == alone


@settings(max_examples=40, deadline=None)
@given(order=seeds, seed=seeds, data=st.data())
def test_repeated_late_and_forged_messages_are_dropped(order, seed, data):
    """Duplicates of old windows and verdicts arrive at any time; a window of an old epoch may say anything."""
    rng = random.Random(order)
    target = ToyBackend(seed=seed)
    harness = Harness(target=target)
    heard: list = []
    for _ in range(5000):
        if harness.coordinator.done:
            break
        for role in ("target", "draft"):
            heard += [m for m in list(harness.boxes[role].outgoing)[:1] if isinstance(m, DraftWindow | Verdict)]
        if heard and rng.random() < 0.2:
            late = rng.choice(heard)
            coordinator = harness.coordinator
            is_old = isinstance(late, DraftWindow) and (
                late.epoch < coordinator.epoch or late.start != len(coordinator.text.line)
            )
            if is_old or (isinstance(late, Verdict) and late.start < len(coordinator.committed) and late.tokens):
                harness.deliver(late)
        harness.make(rng.choice(harness.moves()))
    assert harness.emitted == target.greedy(24)


@pytest.mark.parametrize("drafting", [False, True])
def test_a_rollback_ends_the_token_that_the_draft_is_computing(drafting):
    target = ToyBackend(seed=3, end_logit=-100)
    draft = ToyBackend(seed=3, noise=2.0, end_logit=-100, drafting=drafting)
    harness = Harness(target=target, draft=draft)
    abandoned = 0
    while not harness.coordinator.done:
        moves = harness.moves()
        rolled_back = any(isinstance(message, Rollback) for message in harness.boxes["draft"].incoming)
        computed = len(draft.calls)
        if rolled_back and "interrupt draft" in moves:
            harness.make("interrupt draft")
            abandoned += 1
            assert "extend" not in " ".join(draft.calls[computed:])
        else:
            harness.make(sorted(moves, key=lambda move: ("interrupt" in move, "draft" in move))[0])
    assert abandoned >= 3
    assert harness.emitted == target.greedy(24)


@pytest.mark.parametrize("drafting", [False, True])
def test_a_rollback_that_comes_between_two_tokens_ends_the_window(drafting):
    draft = ToyBackend(seed=3, noise=2.0, end_logit=-100, drafting=drafting)
    harness = Harness(target=ToyBackend(seed=3, end_logit=-100), draft=draft, policy=FixedWindow(6))
    caught = 0
    while not harness.coordinator.done:
        moves = harness.moves()
        computed = len(draft.calls)
        if any(isinstance(message, Rollback) for message in harness.boxes["draft"].incoming) and "catch draft" in moves:
            harness.make("catch draft")
            caught += 1
            # It looks before it begins, and then in each token and after it: the third look in vain is in the second.
            assert " ".join(draft.calls[computed:]).count("extend") <= 2
        else:
            harness.make(sorted(moves, key=lambda move: ("interrupt" in move, "draft" in move))[0])
    assert caught >= 3
    assert harness.emitted == ToyBackend(seed=3, end_logit=-100).greedy(24)


def test_a_session_that_offers_it_drafts_a_window_in_one_call():
    target, draft = (ToyBackend(seed=5, end_logit=-100, drafting=drafting) for drafting in (False, True))
    harness = Harness(target=target, draft=draft, policy=FixedWindow(5), window=Window(gamma=5))
    # The target comes last, and the draft hears nothing in the middle of a window.
    harness.play(lambda moves: sorted(moves, key=lambda move: ("target" in move, move))[0])
    assert [call for call in draft.calls if "draft" in call][:2] == ["draft 4", "draft 5"]  # one came of the prefill
    assert harness.emitted == target.greedy(24)


def test_a_perfect_draft_is_never_rejected():
    target = ToyBackend(seed=3)
    harness = Harness(target=target, draft=ToyBackend(seed=3))
    tokens = harness.play(any_order(random.Random(0)))
    counts = harness.coordinator.counts
    assert tokens == target.greedy(24)
    assert counts.rejected_tokens == 0
    assert counts.accepted_tokens == len(tokens)


def test_the_first_token_of_a_window_needs_no_pass():
    """With a perfect draft that is always in time, n tokens in windows of gamma take about n / gamma passes."""
    harness = Harness(
        target=ToyBackend(seed=5, end_logit=-100),
        draft=ToyBackend(seed=5, end_logit=-100),
        sampling=sampling(max_tokens=40, end_token_ids=()),
        policy=FixedWindow(5),
        window=Window(gamma=5),
    )
    draft_first = lambda moves: sorted(moves, key=lambda m: ("target" in m, "run" in m))[0]  # noqa: E731
    assert len(harness.play(draft_first)) == 40
    assert harness.coordinator.counts.target_passes <= 8


def test_an_end_token_cuts_the_window_and_the_statistics():
    target = ToyBackend(seed=11, end_logit=1.0)
    harness = Harness(target=target, draft=ToyBackend(seed=11, end_logit=1.0), policy=FixedWindow(7))
    tokens = harness.play()
    assert tokens == target.greedy(24)
    assert harness.coordinator.finish == ("stop" if tokens[-1] == 0 else "length")
    counts = harness.coordinator.counts
    assert counts.accepted_tokens <= len(tokens)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9])
def test_max_tokens_is_exact(schedule, max_tokens):
    settings_ = sampling(max_tokens=max_tokens, end_token_ids=())
    target = ToyBackend(seed=2)
    harness = Harness(schedule=schedule, target=target, sampling=settings_)
    assert harness.play() == target.greedy(max_tokens, end_tokens=())
    assert harness.coordinator.finish == "length"


def test_the_mask_reaches_the_draft_before_the_targets_prefill_is_done_only_if_prefill_is_parallel():
    for schedule, expected in (("parallel", True), ("no-prefill", False)):
        harness = Harness(schedule=schedule)
        while not any(m.startswith("hear target") for m in harness.moves()) or not any(
            type(m).__name__ == "PruneMask" for m in harness.boxes["target"].outgoing
        ):
            harness.make("run target")
        outgoing = [type(m).__name__ for m in harness.boxes["target"].outgoing]
        assert outgoing.index("PruneMask") < outgoing.index("PrefillDone")
        while outgoing[0] != "PruneMask":
            harness.make("hear target")
            outgoing.pop(0)
        harness.make("hear target")
        got = any(type(m).__name__ == "PruneMask" for m in harness.boxes["draft"].incoming)
        assert got is expected


def test_a_failed_target_fails_the_session_and_a_failed_draft_does_not():
    harness = Harness()
    harness.deliver(Failed(session=1, role="draft", error="PromptError", message="too long", traceback=""))
    assert harness.coordinator.counts.draft_lost == "PromptError: too long"
    assert harness.play() == ToyBackend().greedy(24)
    harness = Harness()
    harness.deliver(Failed(session=1, role="target", error="PromptError", message="too long", traceback="tb"))
    assert harness.failed[0].message == "too long"
    assert harness.coordinator.state is State.FAILED


def test_after_its_end_a_session_answers_nothing():
    harness = Harness()
    harness.play()
    for event in (
        Cancelled(),
        DraftGone("x"),
        TargetGone(),
        Verdict(session=1, epoch=9, start=0, tokens=(1,), accepted=0),
    ):
        assert harness.coordinator.handle(event) == []
    with pytest.raises(InvalidTransition, match="started twice"):
        harness.coordinator.start()


def test_auto_window_learns_from_what_is_measured():
    harness = Harness(policy=AutoWindow(8), target=ToyBackend(seed=3), draft=ToyBackend(seed=3))
    harness.play(lambda moves: min(moves, key=lambda move: ("target" in move, "run" in move)))
    assert harness.coordinator.counts.windows
    assert all(1 <= window <= 24 for window in harness.coordinator.counts.windows)


@settings(max_examples=100, deadline=None)
@given(seed=seeds, order=seeds, gamma=st.integers(2, 6))
def test_after_a_rejection_nobody_waits_for_the_rest_of_a_dead_window(seed, order, gamma):
    """With k = 0 the target steps alone at once."""
    rng = random.Random(order)
    harness = Harness(
        target=ToyBackend(seed=seed),
        draft=ToyBackend(noise=0.5, seed=seed),
        policy=FixedWindow(gamma),
        window=Window(gamma=gamma),
    )
    while not harness.coordinator.done:
        harness.make(rng.choice(harness.moves()))
        said = harness.boxes["target"].outgoing
        if said and isinstance(said[-1], Verdict) and said[-1].rejected and said[-1].finish is None:
            assert harness.actors["target"]._next_ready() is not None


def test_accepted_tokens_are_counted_by_their_position_in_the_window():
    target = ToyBackend(seed=5, end_logit=-100)
    harness = Harness(
        target=target,
        draft=ToyBackend(seed=5, end_logit=-100),
        sampling=sampling(max_tokens=40, end_token_ids=()),
        policy=FixedWindow(5),
        window=Window(gamma=5),
    )
    # The target hears of every window at once, and is done before the next one.
    eager = lambda moves: min(moves, key=lambda move: ("draft" in move, "run" in move))  # noqa: E731
    assert harness.play(eager) == target.greedy(40, end_tokens=())
    counts = harness.coordinator.counts
    assert counts.windows == [5] * 8
    assert counts.target_passes == 8
    harness.report.tell()
    told = harness.totals.found
    by_position = [told[f"pvlm:spec_decode_num_accepted_tokens_per_pos {position}"] for position in range(5)]
    assert by_position == [told["pvlm:spec_decode_num_drafts"]] * 5 == [8] * 5


def test_the_lag_is_from_a_rejection_to_the_drafts_new_start():
    class Watching(FixedWindow):
        def __init__(self) -> None:
            super().__init__(4)
            self.lags: list[float] = []

        def observe_lag(self, ms: float) -> None:
            self.lags.append(ms)

    policy = Watching()
    harness = Harness(policy=policy)
    harness.coordinator.handle(PrefillDone(session=1, role="target", prompt_tokens=9, prefill_ms=1.0))
    deliver = harness.coordinator.handle
    deliver(DraftWindow(session=1, epoch=0, start=0, tokens=(5, 6), began_s=9.98, ended_s=10.0))
    deliver(Verdict(session=1, epoch=0, start=0, tokens=(5, 7), accepted=1, rejected=True, window=2, ended_s=11.0))
    deliver(DraftWindow(session=1, epoch=0, start=2, tokens=(8, 9), began_s=10.985, ended_s=11.005))  # too late
    deliver(DraftWindow(session=1, epoch=1, start=2, tokens=(8, 9), began_s=11.010, ended_s=11.030))
    deliver(DraftWindow(session=1, epoch=1, start=4, tokens=(8, 9), began_s=11.030, ended_s=11.050))
    assert policy.lags == [pytest.approx(10.0)]


class Moody(FixedWindow):
    """Finds at any time that drafting pays, or does not; in turns, or at the same time."""

    def __init__(self, gamma: int, wait: int, rng: random.Random) -> None:
        super().__init__(gamma, wait)
        self._rng = rng
        self.patient = rng.random() < 0.5

    def choice(self):
        pays, turns = self._rng.random() < 0.5, self._rng.random() < 0.3
        return super().choice()._replace(pays=pays, turns=turns)

    @property
    def baselined(self):
        return self._rng.random() < 0.9


@settings(max_examples=150, deadline=None)
@given(seed=seeds, order=seeds, noise=noises, gamma=st.integers(1, 6), wait=st.integers(0, 3), rest=st.integers(1, 9))
def test_going_alone_and_together_again_changes_nothing(seed, order, noise, gamma, wait, rest):
    rng = random.Random(order)
    target = ToyBackend(seed=seed, end_logit=-100)
    policy = Moody(gamma, min(wait, gamma), rng)
    policy.rest = Rest(rest)
    harness = Harness(
        target=target,
        draft=ToyBackend(noise=noise, seed=seed, end_logit=-100),
        policy=policy,
        sampling=sampling(max_tokens=60),
    )
    assert harness.play(any_order(rng)) == target.greedy(60)


def test_draft_and_target_begin_to_take_turns_within_an_answer():
    """The target verifies and adds a token, and the draft waits for it; later both work at the same time again."""

    class Turning(FixedWindow):
        verdicts = 0

        def observe_tested(self, accepted: int, rejected: int) -> None:
            self.verdicts += 1

        def choice(self):
            return super().choice()._replace(turns=2 <= self.verdicts < 6)

    target = ToyBackend(seed=3, end_logit=-100)
    harness = Harness(
        target=target,
        draft=ToyBackend(seed=3, end_logit=-100),
        policy=Turning(4),
        sampling=sampling(max_tokens=80),
    )
    modes = []
    in_turn = itertools.cycle(["hear target", "hear draft", "run target", "run draft"])

    def next_move(moves):
        modes.append(harness.coordinator.mode)
        return next(move for move in in_turn if move in moves)

    assert harness.play(next_move) == target.greedy(80)
    assert [mode for mode, _ in itertools.groupby(modes)] == [Mode.TOGETHER, Mode.TURNS, Mode.TOGETHER]
    assert harness.coordinator.counts.rejected_tokens == 0
    assert 5 in harness.coordinator.counts.target_pass_tokens, "a pass over a window and the pending token before it"


class Hopeless(FixedWindow):
    tested = 0

    def observe_tested(self, accepted: int, rejected: int) -> None:
        self.tested += accepted + rejected

    def choice(self):
        return super().choice()._replace(pays=False, hopeless=True)


def test_where_a_draft_does_not_pay_the_target_goes_on_alone_and_the_draft_is_probed_now_and_then():
    policy = Hopeless(4)
    # Of 16, 32, 64 and 128 tokens; the next answer of the engine continues the last, and then with one of 256.
    for rests in (4, 2):
        counts = answered_in_turn(policy, 200, noise=2.0)
        assert counts.rests == rests
        assert counts.rollbacks == 0
        # At each rest's end a probe of at least 4, and one window that was under way after each.
        assert 4 * rests - 4 <= counts.drafted_tokens <= 12 * rests
    assert policy.tested >= 3


def answered_in_turn(policy: FixedWindow, tokens: int, *, noise: float) -> Counts:
    """Play an answer of the toy models, whose text must be the target's, in turns."""
    harness = Harness(
        target=ToyBackend(seed=3, end_logit=-100),
        draft=ToyBackend(noise=noise, seed=3, end_logit=-100),
        policy=policy,
        sampling=sampling(max_tokens=tokens),
    )
    in_turn = itertools.cycle(["hear target", "hear draft", "run target", "run draft"])
    played = harness.play(lambda moves: next(move for move in in_turn if move in moves))
    assert played == ToyBackend(seed=3, end_logit=-100).greedy(tokens)
    return harness.coordinator.counts


def test_an_answer_that_begins_in_a_long_rest_does_without_the_draft():
    """A long one gets it when the rest is over and it has many tokens itself."""
    policy = Hopeless(4)
    policy.rest = Rest(first=150)
    assert answered_in_turn(policy, 60, noise=0.0).rests == 1  # about 90 tokens of it are left
    short = answered_in_turn(policy, 80, noise=0.0)
    assert (short.rests, short.drafted_tokens, short.draft_lost, short.draft_rejoins) == (0, 0, "", 0)
    assert "draft" not in short.prefill_ms
    assert answered_in_turn(policy, 20, noise=0.0).drafted_tokens, "the rest is nearly over: a short one is no reason"
    policy.rest = Rest(first=150)
    policy.rest.begin(hopeless=True)
    long = answered_in_turn(policy, 300, noise=0.0)
    assert (long.rests, long.draft_rejoins) == (1, 0)
    assert long.accepted_tokens == 0 < long.drafted_tokens <= 8, "its one probe came after 256 tokens"


@pytest.mark.parametrize("back", [False, True])
def test_a_draft_that_is_lost_while_an_answer_does_without_it_does_not_join_until_it_is_back(back):
    policy = FixedWindow(4)
    policy.rest = Rest(first=100)
    policy.rest.begin(hopeless=True)
    harness = Harness(
        target=ToyBackend(seed=3, end_logit=-100),
        draft=ToyBackend(seed=3, end_logit=-100),
        policy=policy,
        sampling=sampling(max_tokens=300),
    )
    harness.deliver(DraftBack(shares=True))  # of a session that does not wait for it
    assert harness.coordinator.held_back
    harness.deliver(DraftGone("it was killed"))
    assert not harness.coordinator.held_back
    if back:
        harness.deliver(DraftBack(shares=True))
    assert harness.play(any_order(random.Random(4))) == ToyBackend(seed=3, end_logit=-100).greedy(300)
    counts = harness.coordinator.counts
    assert (counts.draft_lost, counts.draft_rejoins) == ("it was killed", int(back))
    assert bool(counts.drafted_tokens) == back


def test_a_draft_that_has_come_to_pay_is_used_again():
    class Later(FixedWindow):
        tested = 0

        def observe_tested(self, accepted: int, rejected: int) -> None:
            self.tested += accepted + rejected

        def choice(self):
            return super().choice()._replace(pays=self.tested > 4)

    harness = Harness(
        target=ToyBackend(seed=3, end_logit=-100),
        draft=ToyBackend(seed=3, end_logit=-100),
        policy=Later(4),
        sampling=sampling(max_tokens=120),
    )
    in_turn = itertools.cycle(["hear target", "hear draft", "run draft", "run draft", "run draft", "run target"])
    assert harness.play(lambda moves: next(move for move in in_turn if move in moves)) == ToyBackend(
        seed=3, end_logit=-100
    ).greedy(120)
    assert harness.coordinator.counts.rests == 1
    assert harness.coordinator.counts.accepted_tokens > 60


def test_opened_counts_are_the_targets():
    harness = Harness(schedule="ar")
    harness.deliver(Opened(session=1, role="target", prompt_tokens=21, video_tokens=16, open_ms=1.0))
    assert harness.coordinator.counts.video_tokens == 16
