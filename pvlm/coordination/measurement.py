"""What the messages of one session tell of times and acceptance, and the windows that follow from it."""

from __future__ import annotations

from pvlm.coordination.statistics import Counts
from pvlm.speculation.gaps import Gaps
from pvlm.speculation.windows import WindowPolicy
from pvlm_protocols.limits import MAX_MILLISECONDS
from pvlm_protocols.messages import DraftWindow, Verdict, Window

PROBE_TOKENS = 4
"""The least that a probe is long."""


class Measuring:
    """Counts one session, lets its policy learn, and asks it for windows."""

    def __init__(self, policy: WindowPolicy) -> None:
        self.counts = Counts()
        self.shared = False
        """Other sessions have turns at the same actors: what this one waits for says nothing of draft and target."""
        self._policy = policy
        self._choice = policy.choice()
        self._gaps = Gaps()
        self._rejected_s: float | None = None
        """When the last verdict rejected, until the draft's next window is there."""
        self._awaited = False
        """The last verdict rejected, and the target was told to wait for the next window."""

    def drafted(self, window: DraftWindow) -> None:
        """A window has come, of whatever epoch."""
        self.counts.drafted_tokens += len(window.tokens)
        if window.tokens and window.draft_ms > 0:
            self.counts.draft_token_ms.append(window.draft_ms / len(window.tokens))
            self._policy.observe_draft(window.draft_ms / len(window.tokens))

    def continued(self, window: DraftWindow) -> None:
        """A window has come that continues the line."""
        if self._rejected_s is not None:
            if not self.shared:
                self._policy.observe_lag(max(0.0, window.began_s - self._rejected_s) * 1000)
            self._rejected_s = None

    def forwarded(self, window: DraftWindow) -> None:
        """A window has been sent to the target."""
        self._gaps.sent(window)

    def judged(self, verdict: Verdict, *, waits: bool) -> None:
        """``waits``: after a rejection the target waits for the next window."""
        counts = self.counts
        counts.accepted_tokens += verdict.accepted
        counts.rejected_tokens += verdict.rejected
        if verdict.accepted or verdict.rejected:
            self._policy.observe_tested(verdict.accepted, int(verdict.rejected))
        if verdict.window:
            counts.windows.append(verdict.window)
        if verdict.pass_tokens:
            counts.target_passes += 1
            counts.target_pass_ms.append(verdict.pass_ms)
            counts.target_pass_tokens.append(verdict.pass_tokens)
            self._policy.observe_pass(verdict.pass_tokens, verdict.pass_ms)
            if (gap := self._gaps.passed(verdict)) is not None:
                counts.idle_ms.append(gap.ms)
                if verdict.window or not self._awaited:  # else it has waited in vain
                    counts.coordination_ms.append(gap.coordination_ms)
                if verdict.window and not self._awaited and not self.shared:
                    self._policy.observe_coordination(gap.coordination_ms)
        self._awaited = verdict.rejected and waits
        if verdict.rejected:
            self._rejected_s = verdict.ended_s

    def probed(self, agreed: int, parted: bool) -> None:
        """A probe was compared with what the target had written: so many tokens agreed, and then one did not."""
        if agreed or parted:
            self._policy.observe_tested(agreed, int(parted))

    def forget_rejection(self) -> None:
        """The draft is not sent on after a rejection: its next window tells nothing of the lag."""
        self._rejected_s = None

    def interrupted(self) -> None:
        """The target was away: the gap before its next pass is nobody's."""
        self._gaps = Gaps()
        self._rejected_s, self._awaited = None, False

    # ---- what follows ---------------------------------------------------------------------------------------------

    def reconsider(self) -> None:
        """Choose anew, by what was learned. Takes up to a millisecond, and happens nowhere else."""
        self._choice = self._policy.choice()

    @property
    def pays(self) -> bool:
        """Is drafting worth its while?"""
        return self._choice.pays

    @property
    def patient(self) -> bool:
        """Does the target wait for the draft's first window, however long that takes?"""
        return self._policy.patient

    def window(self) -> Window:
        """How wide the next window should be."""
        choice = self._choice
        patience_ms = min(choice.patience_ms, MAX_MILLISECONDS)
        return Window(gamma=choice.gamma, wait=choice.wait, patience_ms=patience_ms)

    def probe(self) -> Window:
        """The window of a probe."""
        return Window(gamma=max(self._choice.gamma, PROBE_TOKENS))
