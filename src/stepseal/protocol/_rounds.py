"""Hands a message or an answer of the driver to the round of its call; drops it if that ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._restore_round import RestoreRound
from stepseal.protocol._save_round import SaveRound

if TYPE_CHECKING:
    Report = (
        messages.EnginesReturned
        | messages.Prepared
        | messages.Compared
        | messages.Checked
        | messages.Applied
        | messages.Rejected
        | messages.Progressed
    )

__all__ = ["answer", "report"]


def report(
    found: SaveRound | RestoreRound | None, participant: str, message: Report, now: float
) -> list[actions.Action]:
    """Hand a report of a participant over; ignore one that the round does not wait for."""
    match message:
        case messages.EnginesReturned() if isinstance(found, SaveRound):
            return found.on_returned(participant, message, now)
        case messages.Prepared() if isinstance(found, SaveRound):
            return found.on_prepared(participant, message, now)
        case messages.Compared() if isinstance(found, SaveRound):
            return found.on_compared(participant, message, now)
        case messages.Progressed() if found is not None:
            found.figures.progressed(participant, message, now)
            return []
        case messages.Rejected() if isinstance(found, RestoreRound):
            return found.on_rejected(participant, message, now)
        case messages.Checked() | messages.Applied() if isinstance(found, RestoreRound):
            return found.on_vote(participant, message, now)
        case _:
            return []


def answer(
    found: SaveRound | RestoreRound | None, event: actions.DriverEvent, now: float
) -> list[actions.Action]:
    """Hand an answer of the driver over; undo it if the round has ended meanwhile."""
    match event:
        case actions.Staged() if isinstance(found, SaveRound):
            return found.on_staged(event, now)
        case actions.Staged():
            return [actions.Discard(event.staging)]
        case actions.Published() if isinstance(found, SaveRound):
            return found.on_published(event, now)
        case actions.PublishUnknown() if isinstance(found, SaveRound):
            return found.on_unknown(event)
        case actions.Selected() if isinstance(found, RestoreRound):
            return found.on_selected(event, now)
        case actions.Claimed() if isinstance(found, RestoreRound):
            return found.on_claimed(event, now)
        case actions.IoFailed() if found is not None:
            return found.on_io_failed(event)
        case _:
            return []  # the round ended meanwhile, at its deadline or by a failure
