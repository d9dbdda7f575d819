"""Naive coordinators of gated saves: what to patch, and with what."""

from __future__ import annotations

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._gated_round import GatedRound
from stepseal.protocol._gates import Gates
from stepseal.protocol._save_round import SaveRound


def anonymous() -> tuple[object, str, object]:
    """Count parts, whoever reports them."""
    real = SaveRound.on_prepared

    def on_prepared(
        self: SaveRound, _who: str, message: messages.Prepared, now: float
    ) -> list[actions.Action]:
        self.phase = "write"
        missing = [p for p in self.participants if p not in self._prepared]
        return real(self, missing[0], message, now)

    return SaveRound, "on_prepared", on_prepared


def first_commits() -> tuple[object, str, object]:
    """Commit when the first part is there."""

    def on_prepared(
        self: GatedRound, who: str, message: messages.Prepared, now: float
    ) -> list[actions.Action]:
        self._prepared = dict.fromkeys(self.participants, message.part)
        return self._compare(now, required=True)

    return SaveRound, "on_prepared", on_prepared


def pointer_before_data() -> tuple[object, str, object]:
    """Commit when all functions have returned."""
    real = SaveRound.on_returned

    def on_returned(
        self: GatedRound, who: str, message: messages.EnginesReturned, now: float
    ) -> list[actions.Action]:
        todo = real(self, who, message, now)
        return todo + (SaveRound._publish(self, now) if self.phase == "write" else [])

    return SaveRound, "on_returned", on_returned


def unwanted() -> tuple[object, str, object]:
    """Commit what is complete, whatever the controller says."""
    return GatedRound, "is_ready", property(lambda self: self.phase == "ready")


def one_barrier() -> tuple[object, str, object]:
    """Let all roles wait for each other."""

    def on_returned(
        self: SaveRound, who: str, message: messages.EnginesReturned, now: float
    ) -> list[actions.Action]:
        self._returned.add(who)
        if not self._returned.issuperset(self.participants):
            return []
        order = messages.TakeInventory(self.call, self.attempt)
        return [actions.Send(one, order) for one in self.participants]

    return SaveRound, "on_returned", on_returned


def no_barrier() -> tuple[object, str, object]:
    """List files while others of the role write."""

    def on_returned(
        self: SaveRound, who: str, message: messages.EnginesReturned, now: float
    ) -> list[actions.Action]:
        return [actions.Send(who, messages.TakeInventory(self.call, self.attempt))]

    return SaveRound, "on_returned", on_returned


def any_ask_opens() -> tuple[object, str, object]:
    """Take a late writer for the begin of a new attempt."""
    return Gates, "refusal", lambda *_: None


def as_they_come() -> tuple[object, str, object]:
    """Commit steps as they become ready."""

    def publish(self: Gates, now: float) -> list[actions.Action]:
        return [todo for one in self.open.values() if one.is_ready for todo in one.publish(now)]

    return Gates, "publish", publish
