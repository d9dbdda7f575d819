"""Broken variants of calls that a coordinator opens, and of those who begin them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.campaigns.simulator import _variants_published as published
from tests.campaigns.simulator._actor_simulation import WITH_ACTORS
from tests.campaigns.simulator._company import Hub

from stepseal.actors import Participant as Actor
from stepseal.protocol import _actions as actions
from stepseal.protocol import _cut, _stages
from stepseal.protocol._agreement import disagreements
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._cut import by_role, role_problems
from stepseal.protocol._lives import Lives
from stepseal.protocol._participant import Participant
from stepseal.protocol._save_round import SaveRound

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.simulator._world import Faults

__all__ = ["BROKEN", "faults_of"]

Patches = list[tuple[object, str, object]]


def _old_lives_count() -> Patches:
    """Messages of every life of a participant count."""

    def hears(self: Lives, participant: str, _life: str) -> bool:
        return participant in self._lives and participant not in self._lost

    return [(Lives, "hears", hears)]


def _old_losses_count() -> Patches:
    """The loss of any life is the loss of the participant."""

    real = Lives.lose

    def lose(self: Lives, participant: str, _life: str, cause: Any) -> None:  # noqa: ANN401
        real(self, participant, self._lives.get(participant, ""), cause)

    return [(Lives, "lose", lose)]


def _told_to_successors() -> Patches:
    """A new life hears of the calls of the one before."""
    return [(Coordinator, "_is_for_this_life", lambda *_: True)]


def _successors_waited_for() -> Patches:
    """A call goes on waiting for a participant that was admitted again."""
    real = Lives.absent

    def absent(self: Lives, roster: Any) -> Any:  # noqa: ANN401
        return real(self, {one: self._lives.get(one, life) for one, life in roster.items()})

    return [(Lives, "absent", absent)]


def _released_waited_for() -> Patches:
    """A call goes on waiting for a participant that was released."""
    real = Lives.absent

    def absent(self: Lives, roster: Any) -> Any:  # noqa: ANN401
        return real(self, {one: life for one, life in roster.items() if one in self._lives})

    return [(Lives, "absent", absent)]


def _roster_open() -> Patches:
    """Whoever is admitted while a save captures takes part in it."""
    real = Coordinator.admit

    def admit(self: Coordinator, participant: str, life: str) -> list[Any]:
        todo = real(self, participant, life)
        for call, save in self._rounds.items():
            joins = isinstance(save, SaveRound) and save.phase == "capture"
            if joins and participant not in save.participants:
                assert isinstance(save, SaveRound)
                assert save._opening is not None
                save.participants = (*save.participants, participant)
                self._rosters[call][participant] = life
                begins = save._opening.begins(call, [participant], self._rosters[call])
                todo += self._keep([actions.Send(*one) for one in begins.items()])
        return todo

    return [(Coordinator, "admit", admit)]


def _lost_forgiven() -> Patches:
    """A save goes on without whoever is lost."""
    real = SaveRound.on_lost

    def on_lost(self: SaveRound, absent: Any) -> list[Any]:  # noqa: ANN401
        left = tuple(p for p in self.participants if p not in absent)
        if not left or self.phase != "write" or len(self._prepared) < len(left):
            return real(self, absent)
        self.participants = left
        self._captured = {p: self._captured[p] for p in left}
        return self._compare(0.0, required=True)

    return [(SaveRound, "on_lost", on_lost)]


def _all_at_once() -> Patches:
    """Nobody waits until its consumers have captured."""
    return [(_stages, "stages", lambda roster, _order: [tuple(roster)])]


def _relations_unchecked() -> Patches:
    return [(_cut, "_broken_relations", lambda *_: {})]


def _relations_late() -> Patches:
    """What roles must agree on is compared when all is written."""
    real = SaveRound._publish

    def within_roles(self: SaveRound) -> Any:  # noqa: ANN401
        found: dict[str, Any] = {}
        for names in by_role(self.participants).values():
            found |= disagreements({p: self._captured[p] for p in names})[0]
        return found, {}

    def publish(self: SaveRound, now: float) -> list[Any]:
        if failures := role_problems(self._captured, self._opening):
            return self._abort(failures, "participants disagree")
        return real(self, now)

    return [(SaveRound, "_disagreements", within_roles), (SaveRound, "_publish", publish)]


def _storage_waited_for() -> Patches:
    """Who opened a save waits for the coordinator's storage, however long that takes."""

    def wait(self: SaveRound) -> list[Any]:
        self.deadline = float("inf")
        return []

    return [(SaveRound, "_publication_took_too_long", wait)]


def _begun_by_anybody() -> Patches:
    """A call that the framework repeats on a process without this life begins."""
    return [(Actor, "_check", lambda *_: (None, None))]


def _begun_twice() -> Patches:
    """A call that the framework repeats begins once more."""
    return [(Participant, "take_up", lambda *_: True)]


def _two_connect() -> Patches:
    """A second process may connect in the life of the first."""
    return [(Hub, "may_connect", lambda self, name, life: self.expected.get(name) == life)]


BROKEN: dict[str, Callable[[], Patches]] = {
    "old-lives-count": _old_lives_count,
    "old-losses-count": _old_losses_count,
    "told-to-successors": _told_to_successors,
    "successors-waited-for": _successors_waited_for,
    "released-waited-for": _released_waited_for,
    "roster-not-fixed": _roster_open,
    "lost-forgiven": _lost_forgiven,
    "producers-not-awaited": _all_at_once,
    "relations-unchecked": _relations_unchecked,
    "relations-checked-late": _relations_late,
    "storage-waited-for": _storage_waited_for,
    "begun-by-anybody": _begun_by_anybody,
    "begun-twice": _begun_twice,
    "two-processes-of-one-life": _two_connect,
    **published.BROKEN,
}
"""Variant to its patches."""


def faults_of(name: str) -> Faults:
    """Return the trouble in which a variant shows."""
    if name == "storage-waited-for":
        return replace(WITH_ACTORS, switch=0.3, slow=0.25, stall=0.8)
    return WITH_ACTORS
