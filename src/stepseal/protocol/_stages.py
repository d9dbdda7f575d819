"""Who of a call that the coordinator opened is told to capture when, and who stays frozen; no I/O.

Invariant: a stage begins only after every participant of the stages before it has captured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.layout import role_of
from stepseal.protocol import _actions as actions
from stepseal.protocol._opening import stages

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from stepseal.protocol._opening import Opening

__all__ = ["Stages"]


class Stages:
    """The stages of one capture; there are none where the participants make the calls."""

    def __init__(self) -> None:
        self._opening: Opening | None = None
        self._call = 0
        self._lives: Mapping[str, str] = {}
        self._next: list[tuple[str, ...]] = []
        self._capturing: set[str] = set()
        """Who was told to capture, and has not yet."""

    def open(
        self, call: int, opening: Opening, participants: tuple[str, ...], lives: Mapping[str, str]
    ) -> list[actions.Action]:
        """Tell the participants of the first stage to capture."""
        self._opening, self._call, self._lives = opening, call, lives
        self._next = stages(participants, opening.order)
        return self.begin_next()

    def captured(self, participant: str) -> None:
        """Note that a participant has captured."""
        self._capturing.discard(participant)

    def begin_next(self) -> list[actions.Action]:
        """Tell the next stage to capture, if all before it have captured."""
        if self._opening is None or not self._next or self._capturing:
            return []
        stage = self._next.pop(0)
        self._capturing.update(stage)
        begins = self._opening.begins(self._call, stage, self._lives)
        return [actions.Send(one, message) for one, message in begins.items()]

    def awaited(self, missing: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the missing that may capture already."""
        if self._opening is None:
            return missing
        return tuple(one for one in missing if one in self._capturing)

    def frozen(self, captured: Collection[str]) -> list[str]:
        """Return who of those that have captured is frozen until all have."""
        roles = () if self._opening is None else self._opening.freeze
        return [one for one in self._lives if one in captured and role_of(one) in roles]
