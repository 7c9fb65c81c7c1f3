"""The window policy that learns. Imports no torch."""

from __future__ import annotations

import math

from pvlm.speculation.estimates import Estimates, Pace
from pvlm.speculation.outcomes import COUNTS, OutcomeTimes
from pvlm.speculation.policy import Way, WindowChoice
from pvlm.speculation.rest import Rest
from pvlm.speculation.theory import ROUNDING, LoopTimes, best_vanilla_window, window_grid
from pvlm_protocols.messages import TargetMode

START_GAMMA = 4
"""Window before both models have been timed."""

WORTHWHILE = 1.02
"""Smallest predicted speed-up at which drafting pays. (Plain speculative decoding always drafts.)"""

STILL_WORTHWHILE, AGAIN_WORTHWHILE = 1.0, 1.1
"""The same while drafting pays, and after it has been tried and did not pay: each return costs a window or two."""

BASELINE_STEPS = 2
"""Tokens that the target must have written alone before drafting can be compared with that."""

PREFERENCE = 1.02
"""By which factor another way of working together must be predicted to be faster before it is taken."""

SEVERAL_GROUPS = 1.5
"""With more groups of sessions in turn at the target (see `LoopTimes`) draft and target take turns, unless working at
the same time is predicted to be faster by `PREFERENCE`.
"""

NEARLY = 0.03
"""While others have turns at the target, the shortest window is chosen of those that are at most so much (a share)
slower: what is drafted in vain takes the others' time.
"""

OUTCOME_SLACK = 0.02
"""Share of a pass by which prepared windows should be early. For one that is late by little the target waits longer,
because messages have to go to and fro.
"""

OUTCOMES_WORTHWHILE, OUTCOMES_STILL_WORTHWHILE = 1.02, 1.0
"""By which factor theorem 8 must predict more than theorem 7 before outcomes are prepared, and while they are: branches
take time that no theorem counts.
"""

USUAL_PACE = 0.95
"""What of a prediction is reached without outcomes, before that has been measured."""

_TIMING_CHANGE = 0.05
"""Relative change of a time that makes earlier choices invalid."""

_PASSES_BETWEEN = 8
"""Passes between two looks at the times. On a busy machine they change with every pass, and a new choice takes CPU time
from the models."""

_BETA_MAX = 0.998
"""The largest acceptance rate for which a window is chosen."""

_STEPS_PER_OCTAVE = 8
"""Grid of beta: 1 - beta in steps of 9%. A choice is computed once for each step and then looked up."""


class AutoWindow:
    """The window that theory finds for the running estimates, computed again when they have moved materially.

    It chooses between taking turns (`best_vanilla_window`) and working at the same time (`LoopTimes`), and says whether
    the better one pays. Both predictions are corrected by the pace that was reached (`Pace`). While they work at the
    same time, the draft prepares outcomes where theorem 8 predicts more with them (`OutcomeTimes`).

    ``gamma_max``: the largest window. ``vanilla``: draft and target always take turns (plain speculative decoding).
    ``outcomes``: the number of branches (None: the best one, 0: none).
    """

    patient = False

    def __init__(self, gamma_max: int = 16, *, vanilla: bool = False, outcomes: int | None = 0) -> None:
        if gamma_max < 1:
            raise ValueError(f"gamma_max is {gamma_max}: a window has at least 1 token")
        self.estimates = Estimates()
        self.rest = Rest()
        self._gamma_max = gamma_max
        self._grid = window_grid(gamma_max)
        self._vanilla = vanilla
        self._counts = COUNTS if outcomes is None else (outcomes,) if outcomes else ()
        self._forced = bool(outcomes)
        self._branching = False
        self._beside, self._branch_ms = 0, 0.0
        self._moved = True
        self._groups = self._sharing = 1.0
        self._passes = 0
        self._look_again = 0
        self._medians: dict[int, float] = {}
        self._draft_ms = 0.0
        self._lag_ms = 0.0
        self._pass_ms: tuple[float, ...] = ()
        self._step_ms: float | None = None
        self._loop = LoopTimes(*self._grid, 1.0, 1.0)
        self._outcome_times: OutcomeTimes | None = None
        self._made: dict[int, tuple[WindowChoice, WindowChoice, WindowChoice | None]] = {}
        self._paces: dict[Way, Pace] = {"turns": Pace(), "together": Pace(), "prepared": Pace()}
        self._predicted: dict[Way, float] = {}
        self._at_best: dict[Way, float] | None = None
        self._turns = vanilla
        self._pays = False

    def observe_pass(self, n_tokens: int, ms: float) -> None:
        self.estimates.observe_pass(n_tokens, ms)
        self._passes += 1
        median, known = self.estimates.passes.median(n_tokens), self._medians.get(n_tokens)
        if known is None:
            self._moved, self._look_again = True, 0
        else:
            self._moved |= _differ(median, known)

    def observe_sessions(self, sessions: int, *, shared: bool) -> None:
        if (sessions, shared) != (self.estimates.sessions, self.estimates.shared):
            self.estimates.sessions, self.estimates.shared = sessions, shared
            self._moved, self._look_again = True, 0

    def observe_sharing(self, n_tokens: int, own_tokens: int) -> None:
        self.estimates.observe_sharing(n_tokens, own_tokens)
        self._moved |= _differ(self.estimates.sharing, self._sharing)

    def observe_draft(self, ms_per_token: float) -> None:
        self.estimates.observe_draft(ms_per_token)
        self._moved |= _differ(self.estimates.draft.value, self._draft_ms)

    def observe_lag(self, ms: float) -> None:
        self.estimates.observe_lag(ms)
        self._moved |= abs(self.estimates.lag_ms - self._lag_ms) > _TIMING_CHANGE * self._draft_ms

    def observe_transit(self, ms: float) -> None:
        self.estimates.observe_transit(ms)
        self._moved |= abs(self.estimates.lag_ms - self._lag_ms) > _TIMING_CHANGE * self._draft_ms

    def observe_coordination(self, ms: float) -> None:
        self.estimates.observe_coordination(ms)

    def observe_pace(self, mode: TargetMode, tokens: int, ms: float) -> None:
        if mode == "alone":
            self.estimates.observe_step(ms / tokens)
            step_ms = self.estimates.step_ms
            self._moved |= self._step_ms is None or step_ms is None or _differ(step_ms, self._step_ms)
            for pace in self._paces.values():
                pace.fade(tokens)
            return
        way: Way = self._together if mode == "together" else mode
        if way == "together":
            self._paces["prepared"].fade(tokens)
        if self._step_ms is not None and (predicted := self._predicted.get(way)):
            self._paces[way].observe(tokens, tokens * self._step_ms / predicted, ms)

    @property
    def baselined(self) -> bool:
        return self._vanilla or self.estimates.steps >= BASELINE_STEPS

    def observe_tested(self, accepted: int, rejected: int) -> None:
        self.estimates.observe_tested(accepted, rejected)

    def observe_branches(self, beside: float, ms: float) -> None:
        known, self._beside = self.estimates.branches.measured, round(beside)
        self.estimates.observe_branches(beside, ms)
        if self.estimates.timed:  # else the first choice takes it in
            self._moved |= not known or _differ(self.estimates.branch_ms()(self._beside + 1), self._branch_ms)

    def observe_outcome(self, rank: int | None, prepared: int) -> None:
        self.estimates.hits.observe(rank, prepared)

    def choice(self) -> WindowChoice:
        """Look the choice up by beta. A materially changed time or a new step of beta's grid computes it again."""
        if not self.estimates.timed:
            return WindowChoice(min(START_GAMMA, self._gamma_max), turns=self._vanilla)
        if self._moved and self._passes >= self._look_again:
            self._moved = False
            self._look_again = self._passes + min(self._passes, _PASSES_BETWEEN)
            self._medians = self.estimates.passes.medians()
            self._draft_ms = self.estimates.draft.value
            self._lag_ms = self.estimates.lag_ms
            self._step_ms = self.estimates.step_ms
            self._groups, self._sharing = self.estimates.groups, self.estimates.sharing
            curve, extra_ms = self.estimates.passes.curve(), self.estimates.coordination_ms
            self._pass_ms = tuple(curve(round(n * self._sharing)) + extra_ms for n in range(1, self._gamma_max + 2))
            self._loop = LoopTimes(
                *self._grid, self._pass_time, self._draft_ms, self._lag_ms, self._step_ms, self._groups
            )
            if self._counts:
                branch_ms = self.estimates.branch_ms()
                self._branch_ms = branch_ms(self._beside + 1)
                lag_ms = self._lag_ms + OUTCOME_SLACK * self._pass_time(1)
                self._outcome_times = OutcomeTimes(
                    self._gamma_max,
                    self._pass_time,
                    self._draft_ms,
                    branch_ms,
                    lag_ms,
                    self._step_ms,
                    self._groups,
                )
            self._made.clear()
            self._at_best = None
        turns, together, prepared = self._best(self.estimates.acceptance.value)
        if self._vanilla:
            return turns
        _, usually_together, usually = self._best(self.estimates.usual_acceptance.value)
        self._branching = usually is not None and self._better(usually_together, usually)
        if self._branching and usually is not None:
            together = prepared or usually
        self._predicted = {"turns": turns.speedup or 0.0, self._together: together.speedup or 0.0}
        in_turns, at_once = self._paced("turns", turns), self._paced(self._together, together)
        # While others have their passes a draft gains nothing by writing ahead, and takes time from them.
        first = self._turns or self._groups > SEVERAL_GROUPS
        self._turns = in_turns * PREFERENCE > at_once if first else in_turns > PREFERENCE * at_once
        self._turns &= not self._forced  # outcomes that were asked for are prepared while both work
        chosen, speedup = (turns, in_turns) if self._turns else (together, at_once)
        if self._pays:
            needed = STILL_WORTHWHILE
        else:
            tried = self._paces["turns" if self._turns else self._together].known
            needed = AGAIN_WORTHWHILE if tried else WORTHWHILE
        self._pays = speedup >= needed
        hopeless = not self._pays and self._most() < needed
        return chosen._replace(speedup=speedup, pays=self._pays, hopeless=hopeless)

    def _best(self, beta: float) -> tuple[WindowChoice, WindowChoice, WindowChoice | None]:
        """The best choices in turns, together, and with prepared outcomes, at the grid's nearest acceptance rate."""
        step = round(-_STEPS_PER_OCTAVE * math.log2(1 - min(beta, _BETA_MAX)))
        if step not in self._made:
            beta = 1 - 2 ** (-step / _STEPS_PER_OCTAVE)
            together = self._best_together(beta)
            self._made[step] = self._best_turns(beta), together, self._best_prepared(beta, together)
        return self._made[step]

    def _most(self) -> float:
        """The predicted speed-up if nearly every drafted token were accepted."""
        if self._at_best is None:
            turns, together = self._best_turns(_BETA_MAX), self._best_together(_BETA_MAX)
            self._at_best = {"turns": turns.speedup or 0.0, "together": together.speedup or 0.0}
        return max(speedup * self._paces[way].factor for way, speedup in self._at_best.items())

    def _pass_time(self, n: int) -> float:
        return self._pass_ms[n - 1]

    @property
    def _nearly(self) -> float:
        return NEARLY if self._groups > 1 else ROUNDING

    @property
    def _together(self) -> Way:
        """How draft and target work at the same time at the moment."""
        return "prepared" if self._branching else "together"

    def _paced(self, way: Way, choice: WindowChoice) -> float:
        """The predicted speed-up, corrected by the pace that was reached in this way."""
        return (choice.speedup or 0.0) * self._factor(way)

    def _factor(self, way: Way) -> float:
        """By which predictions for a way are to be multiplied. Few tokens say nothing of prepared outcomes."""
        if way == "prepared" and not self._paces[way].sure:
            way = "together"
        return self._paces[way].factor

    def _better(self, together: WindowChoice, prepared: WindowChoice) -> bool:
        """Prepare outcomes? Only where that is clearly better, both as predicted and by what was reached."""
        gain = (prepared.speedup or 0.0) / (together.speedup or math.inf)
        reached, usual = self._paces["prepared"], self._paces["together"]
        if reached.sure:
            gain *= min(1.0, reached.factor / (usual.factor if usual.sure else USUAL_PACE))
        return self._forced or gain > (OUTCOMES_STILL_WORTHWHILE if self._branching else OUTCOMES_WORTHWHILE)

    def _best_prepared(self, beta: float, together: WindowChoice) -> WindowChoice | None:
        """None where outcomes are not worthwhile. A bound comes before the search, which takes longer."""
        if self._outcome_times is None:
            return None
        hits, without = self.estimates.hits.hits, together.speedup or 0.0
        if not self._forced and self._outcome_times.bound(beta, hits) < OUTCOMES_STILL_WORTHWHILE * without:
            return None
        best = self._outcome_times.best(beta, hits, self._counts)
        # A token more than the wait needs, for the draft may be in the middle of one; then half of a pass.
        patience_ms = self._lag_ms + (best.wait + 1) * self._draft_ms + self._pass_time(1) / 2
        return WindowChoice(best.steps, best.wait, patience_ms, best.speedup, outcomes=best.plan)

    def _best_turns(self, beta: float) -> WindowChoice:
        best = best_vanilla_window(
            beta,
            self._pass_time,
            self._draft_ms,
            self._gamma_max,
            self._lag_ms,
            self._step_ms,
            self._groups,
            self._nearly,
        )
        return WindowChoice(best.gamma, speedup=best.speedup, turns=True)

    def _best_together(self, beta: float) -> WindowChoice:
        gamma, k, speedup = self._loop.best(beta, whole_windows=True, nearly=self._nearly)
        patience_ms = 0.0
        if k > 0:
            by_k = self._loop.cycle_ms(beta, whole_windows=True)[gamma - 1]
            patience_ms = self._lag_ms + (k + 1) * self._draft_ms + max(0.0, float(by_k[0] - by_k[k]))
        return WindowChoice(gamma, k, patience_ms, speedup)


def _differ(ms: float, known: float) -> bool:
    """Whether a time has changed by more than `_TIMING_CHANGE`."""
    return abs(ms - known) > _TIMING_CHANGE * known
