"""How a session is opened at both actors, at first and again after a loss."""

from __future__ import annotations

import msgspec

from pvlm.coordination.events import Command, ToDraftActor, ToTargetActor
from pvlm.coordination.modes import Mode
from pvlm.coordination.text import Text
from pvlm_protocols.messages import Open, PruneMask, Sampling, SetMode, Window


class Openings:
    """``target``, ``draft``: the first openings; ``draft`` is None where no draft can take part. ``mask``: the video
    tokens that the draft sees, once the target has published it.
    """

    def __init__(self, target: Open, draft: Open | None) -> None:
        self.target = target
        self.draft = draft
        self.mask: PruneMask | None = None
        self.prefilled = False
        """The target has completed its prefill once."""

    @property
    def draft_sampling(self) -> Sampling:
        return (self.draft or self.target).sampling

    @property
    def paired(self) -> Mode:
        """The mode in which draft and target work together in this session."""
        return Mode.TURNS if self.target.schedule.mode == "turns" else Mode.TOGETHER

    def at_target(self, text: Text, window: Window, mode: Mode, shares: bool = True) -> list[Command]:
        """Open the session at a target, to continue from the committed text in a mode."""
        opening = _continued(self.target, text, window, shares)
        commands: list[Command] = [ToTargetActor(opening)]
        if mode.of_target != opening.schedule.mode:
            commands.append(ToTargetActor(SetMode(session=opening.session, mode=mode.of_target)))
        return commands

    def at_draft(self, opening: Open, text: Text, window: Window, shares: bool = True) -> list[Command]:
        """Open the session at a draft, to continue from the committed text; with the mask, if it may have that."""
        commands: list[Command] = [ToDraftActor(_continued(opening, text, window, shares))]
        if self.mask is not None and (self.prefilled or self.target.schedule.overlap_prefill):
            commands.append(ToDraftActor(self.mask))
        return commands


def _continued(opening: Open, text: Text, window: Window, shares: bool) -> Open:
    committed = tuple(text.committed)
    return msgspec.structs.replace(opening, committed=committed, epoch=text.epoch, window=window, shares=shares)
