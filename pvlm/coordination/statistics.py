"""What happened in one session: its counts, and the measurements from which the window policy learns."""

from __future__ import annotations

from dataclasses import dataclass, field

from pvlm.coordination.events import Found
from pvlm.results import ratio_or_none
from pvlm.speculation.gaps import Gap, Gaps
from pvlm.speculation.policy import WindowPolicy
from pvlm_protocols.limits import MAX_MILLISECONDS
from pvlm_protocols.messages import DraftWindow, Outcome, Prepared, TargetMode, Verdict, Window

PROBE_TOKENS = 4
"""The shortest probe."""


@dataclass
class Counts:
    """What happened in one session. Times in ms; only tokens of the answer are counted.

    ``outcome_*``: rejections while windows were being prepared: the next pass began at once with a prepared window
    (hit), with one that arrived after the verdict (late hit), or not with any (miss). ``hit_coordination_ms``: the gap
    after each hit. ``idle_ms``: the gap before each pass of the target but the first. ``coordination_ms``: what remains
    of the gap without the time in which the draft was computing (see `Gap`).
    """

    target_passes: int = 0
    target_pass_ms: list[float] = field(default_factory=list)
    target_pass_tokens: list[int] = field(default_factory=list)
    idle_ms: list[float] = field(default_factory=list)
    coordination_ms: list[float] = field(default_factory=list)
    drafted_tokens: int = 0
    draft_token_ms: list[float] = field(default_factory=list)
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    rollbacks: int = 0
    rests: int = 0
    windows: list[int] = field(default_factory=list)
    accepted_lengths: list[int] = field(default_factory=list)
    dropped_windows: int = 0
    prepared_windows: int = 0
    prepared_batches: int = 0
    outcome_hits: int = 0
    outcome_late_hits: int = 0
    outcome_misses: int = 0
    hit_coordination_ms: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    video_tokens: int = 0
    cached_tokens: int = 0
    kept_video_tokens: int = 0
    prefill_ms: dict[str, float] = field(default_factory=dict)
    draft_lost: str = ""
    draft_rejoins: int = 0
    target_recoveries: int = 0

    def acceptance(self) -> dict[str, float | None]:
        """The three acceptance figures of `AnswerStats`."""
        accepted, rejected = self.accepted_tokens, self.rejected_tokens
        return {
            "acceptance_rate": ratio_or_none(accepted, accepted + rejected),
            "draft_efficiency": ratio_or_none(accepted, self.drafted_tokens),
            "mean_accepted_length": ratio_or_none(accepted, rejected),
        }

    def hit_rate(self) -> float | None:
        """See `AnswerStats`."""
        hits = self.outcome_hits + self.outcome_late_hits
        return ratio_or_none(hits, hits + self.outcome_misses)


class Measurements:
    """Counts one session, lets its window policy learn, and asks it for windows."""

    def __init__(self, policy: WindowPolicy) -> None:
        self.counts = Counts()
        self._sessions = 1
        self._shared = True
        self._undisturbed = True
        self._policy = policy
        self._choice = policy.choice()
        self._outdated = False
        self._gaps = Gaps()
        self._rejected_s: float | None = None
        """When the last verdict rejected a token; None once the draft's next window has arrived."""
        self._awaited = False
        """The last verdict rejected a token, and the target waits for the next window."""
        self._hit = False
        """The target went on from the last verdict with a prepared window."""
        self._paced: tuple[TargetMode, float] | None = None
        """What the target did at its last verdict with tokens, and when that ended."""

    # ---- what happened --------------------------------------------------------------------------------------------

    def decoding(self, sessions: int, *, shared: bool, prefilling: bool) -> None:
        """So many sessions decode, this one included. ``shared``: this one shares the target's passes with others;
        ``prefilling``: one prefills. The waits of several do not measure draft and target, and beside a prefill the
        pace measures nothing.
        """
        self._sessions, self._shared, self._undisturbed = sessions, shared, not prefilling
        self._policy.observe_sessions(sessions, shared=shared)

    @property
    def _alone(self) -> bool:
        """Is this the only session at the actors?"""
        return self._sessions == 1 and self._undisturbed

    def drafted(self, window: DraftWindow) -> None:
        """A window has arrived, of whatever epoch."""
        self.counts.drafted_tokens += len(window.tokens)
        timed = len(window.tokens) - window.adopted
        if timed > 0 and window.draft_ms > 0:
            ms = window.draft_ms / timed
            if window.beside:
                self._policy.observe_branches(window.beside, ms)
            else:
                self.counts.draft_token_ms.append(ms)
                self._policy.observe_draft(ms)

    def continued(self, window: DraftWindow) -> None:
        """A window has arrived that continues the line."""
        if self._rejected_s is not None:
            if self._alone and not window.adopted:
                self._policy.observe_lag(max(0.0, window.began_s - self._rejected_s) * 1000)
            self._rejected_s = None

    def sent(self, window: DraftWindow) -> None:
        """A window has been sent to the target."""
        self._gaps.sent(window)

    def judged(self, verdict: Verdict, mode: TargetMode, *, waits: bool) -> None:
        """A verdict was committed in a mode. ``waits``: after a rejection the target waits for the next window."""
        counts = self.counts
        counts.accepted_tokens += verdict.accepted
        counts.rejected_tokens += verdict.rejected
        if verdict.accepted or verdict.rejected:
            self._policy.observe_tested(verdict.accepted, int(verdict.rejected))
        if verdict.window:
            counts.windows.append(verdict.window)
            counts.accepted_lengths.append(verdict.accepted)
        if verdict.pass_tokens:
            counts.target_passes += 1
            counts.target_pass_ms.append(verdict.pass_ms)
            counts.target_pass_tokens.append(verdict.pass_tokens)
            self._policy.observe_pass(verdict.pass_tokens, verdict.pass_ms)
            if verdict.window:  # a token that the target draws alone may share the pass of the others' windows
                self._policy.observe_sharing(verdict.pass_tokens, verdict.own_tokens)
            if (gap := self._gaps.passed(verdict)) is not None:
                counts.idle_ms.append(gap.ms)
                if self._hit:
                    counts.hit_coordination_ms.append(gap.ms)
                if verdict.window or not self._awaited:  # else it has waited in vain
                    counts.coordination_ms.append(gap.coordination_ms)
                self._observe_gap(verdict, gap)
        self._awaited = verdict.rejected and waits and not verdict.branch
        self._hit = False
        if (verdict.rejected and not verdict.branch) or mode == "turns":
            self._rejected_s = verdict.ended_s
        self._observe_pace(verdict, mode)

    def prepared(self, prepared: Prepared) -> None:
        """Prepared windows have arrived, of whatever epoch."""
        tokens = sum(len(outcome.tokens) for outcome in prepared.outcomes)
        self.counts.prepared_windows += len(prepared.outcomes)
        self.counts.prepared_batches += 1
        self.counts.drafted_tokens += tokens
        if tokens and prepared.draft_ms > 0 and self.counts.draft_token_ms:  # written one after the other
            beside_ms = self.counts.draft_token_ms[-1] + prepared.draft_ms / tokens
            self._policy.observe_branches(1, beside_ms)

    def decided(self, verdict: Verdict, outcome: Outcome | None, prepared: int) -> Found:
        """A verdict rejected a token. ``outcome``: the prepared window with which the target goes on; ``prepared``: how
        many were at hand for the rejected position.
        """
        if prepared:
            self._policy.observe_outcome(None if outcome is None else outcome.rank, prepared)
        if outcome is None:
            self.counts.outcome_misses += 1
            return "miss"
        if not verdict.branch:
            self.counts.outcome_late_hits += 1
            return "late"
        self.counts.outcome_hits += 1
        self._hit = True
        return "hit"

    def _observe_gap(self, verdict: Verdict, gap: Gap) -> None:
        """What the time before a pass teaches. While sessions share the actors it measures the others."""
        if not self._alone:
            return
        if gap.transit_ms is not None:
            self._policy.observe_transit(gap.transit_ms)
        elif verdict.window or not self._awaited:
            self._policy.observe_coordination(gap.ms)

    def _observe_pace(self, verdict: Verdict, mode: TargetMode) -> None:
        """The time since the last verdict with tokens, if the target did the same there."""
        if not verdict.tokens:
            return
        before, self._paced = self._paced, (mode, verdict.ended_s)
        if before is None or before[0] != mode or not self._undisturbed:
            return
        ms = max(0.0, verdict.ended_s - before[1]) * 1000
        if mode == "alone":  # plain decoding: a token of each session, in one pass or in one after the other
            size, exact = verdict.pass_tokens, self._sessions if self._shared else 1
            if verdict.window or size < exact or (size > exact and self._policy.baselined):
                return
            if self._sessions > 1 and not self._shared:  # between its own passes others may verify windows
                ms = verdict.pass_ms * self._sessions
        self._policy.observe_pace(mode, len(verdict.tokens), ms)

    def probed(self, agreed: int, parted: bool) -> None:
        """A probe was compared with the target's text: ``agreed`` tokens were the same, and with ``parted`` the next
        one was not.
        """
        if agreed or parted:
            self._policy.observe_tested(agreed, int(parted))

    def forget_rejection(self) -> None:
        """The draft does not continue after a rejection, so its next window does not measure the lag."""
        self._rejected_s = None

    def interrupted(self) -> None:
        """The target was lost: the gap before its next pass measures nothing."""
        self._gaps = Gaps()
        self._rejected_s, self._awaited, self._paced = None, False, None

    # ---- what follows ---------------------------------------------------------------------------------------------

    def outdate(self) -> None:
        """The next `reconsider` has to choose again."""
        self._outdated = True

    def reconsider(self) -> None:
        """Choose the window again, if anything has happened since the last choice. Takes up to a millisecond."""
        if self._outdated:
            self._outdated = False
            self._choice = self._policy.choice()

    @property
    def pays(self) -> bool:
        """Does drafting pay? Not before it is known how fast the target is alone."""
        return self._choice.pays and self._policy.baselined

    @property
    def hopeless(self) -> bool:
        """Would drafting not pay either if every drafted token were accepted?"""
        return self._choice.hopeless

    @property
    def turns(self) -> bool:
        """Do draft and target work together in turns?"""
        return self._choice.turns

    @property
    def prepares(self) -> bool:
        """Does the draft prepare outcomes?"""
        return bool(self._choice.outcomes)

    @property
    def baselined(self) -> bool:
        """Is it known how fast the target is alone?"""
        return self._policy.baselined

    @property
    def patient(self) -> bool:
        """Does the target wait for the draft's first window, however long that takes?"""
        return self._policy.patient

    def window(self) -> Window:
        """The sizes of the next windows."""
        choice = self._choice
        patience_ms = min(choice.patience_ms, MAX_MILLISECONDS)
        return Window(
            gamma=choice.gamma,
            wait=choice.wait,
            patience_ms=patience_ms,
            ahead=not choice.turns,
            outcomes=choice.outcomes,
        )

    def probe(self) -> Window:
        """The window of a probe: one alone, so that the draft does not compete with the target for longer."""
        return Window(gamma=max(self._choice.gamma, PROBE_TOKENS), ahead=False)
