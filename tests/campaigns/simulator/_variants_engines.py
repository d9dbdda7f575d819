"""Broken variants of what concerns the files of engines, in the form of `_variants`."""

from __future__ import annotations

from typing import Any

from tests.campaigns.simulator._disk import Disk
from tests.campaigns.simulator._parts import Indexer

from stepseal.protocol._participant import Participant, SaveState
from stepseal.protocol._save_round import SaveRound

__all__ = ["files_unsynced", "inventory_early", "no_inventory_round"]

_TRUSTING = (Indexer, "inspect", lambda *_args, **_options: ())
"""Takes away the coordinator's own look at the files, which compares them with the parts."""


def inventory_early() -> list[tuple[object, str, object]]:
    """The first engine that returned counts for those of everybody."""
    real = SaveRound.on_returned

    def on_returned(self: SaveRound, _who: str, message: Any, now: float) -> list[Any]:  # noqa: ANN401
        return [a for one in self.participants for a in real(self, one, message, now)]

    return [(SaveRound, "on_returned", on_returned), _TRUSTING]


def no_inventory_round() -> list[tuple[object, str, object]]:
    """Each participant lists what it sees when its own engine has returned."""

    real = Participant.save

    def save(self: Participant, call: int) -> SaveState:
        found = real(self, call)
        found.inventory = True
        return found

    def on_prepared(self: SaveRound, who: str, message: Any, now: float) -> list[Any]:  # noqa: ANN401
        self.phase = "write" if self.phase == "engines" else self.phase
        return real_prepared(self, who, message, now)

    real_prepared = SaveRound.on_prepared
    return [(Participant, "save", save), (SaveRound, "on_prepared", on_prepared), _TRUSTING]


def files_unsynced() -> list[tuple[object, str, object]]:
    """What an engine wrote is taken for durable as it is."""
    return [(Disk, "adopt", lambda self, key: self.stat(key))]
