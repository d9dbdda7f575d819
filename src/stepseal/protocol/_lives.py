"""Who takes part, in which life, and what was not delivered to whom; no I/O.

A *life* is one admission of a participant. Messages, goodbyes and losses of an earlier life change
nothing. In an SPMD job each participant has one life, the empty one, from start to end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import role_of
from stepseal.protocol._failures import Failure

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from stepseal.protocol import _actions as actions

__all__ = ["Lives"]

_GONE = Failure(errors.ParticipantFailed.kind, "closed its checkpointer before this call")
_AGAIN = Failure(errors.ParticipantFailed.kind, "was admitted again, as a new life")
_RELEASED = Failure(errors.ParticipantFailed.kind, "was released")


class Lives:
    """The participants of a coordinator, and the current life of each.

    Args:
        participants: those that take part from the start, in ordinal order.
    """

    def __init__(self, participants: Iterable[str]) -> None:
        self._lives = dict.fromkeys(participants, "")
        self._lost: dict[str, Failure] = {}
        self._gone: set[str] = set()
        self._holds: dict[str, frozenset[str]] = {}
        self._num_changes = 0
        """How often a life began or ended."""
        self._looked: tuple[Mapping[str, str], int, dict[str, Failure]] = ({}, -1, {})
        """The roster that was looked through last, after which change, and who was absent."""
        self._kept: dict[str, list[actions.Action]] = {p: [] for p in self._lives}

    def admit(self, participant: str, life: str) -> None:
        """Let a participant take part from the next call on; its earlier life ends."""
        self._num_changes += 1
        self._lives[participant] = life
        self._kept[participant] = []
        self._lost.pop(participant, None)
        self._gone.discard(participant)

    def release(self, participant: str) -> None:
        """Let a participant take no part in later calls."""
        self._num_changes += 1
        self._lives.pop(participant, None)
        self._kept.pop(participant, None)
        self._holds.pop(participant, None)
        self._lost.pop(participant, None)
        self._gone.discard(participant)

    def hold(self, participant: str, components: Iterable[str]) -> str:
        """Remember which components a participant holds, also once it is lost; return its life."""
        self._holds[participant] = frozenset(components)
        return self._lives[participant]

    def unknown(self, components: Iterable[str]) -> tuple[str, ...]:
        """Return those of `components` that nobody holds."""
        return tuple(sorted(set(components).difference(*self._holds.values())))

    def holders(self, components: Collection[str]) -> dict[str, str]:
        """Return the roster of the roles that hold any of these components."""
        roles = {role_of(p) for p, held in self._holds.items() if not held.isdisjoint(components)}
        return {p: life for p, life in self.roster().items() if role_of(p) in roles}

    def roster(self) -> dict[str, str]:
        """Return each participant and its life, roles together, in ordinal order."""
        roles: dict[str, int] = {}
        for one in self._lives:
            roles.setdefault(role_of(one), len(roles))
        ordered = sorted(self._lives, key=lambda one: (roles[role_of(one)], *_rank_of(one)))
        return {one: self._lives[one] for one in ordered}

    def everybody(self) -> tuple[str, ...]:
        """Return all participants, in the order in which they were named."""
        return tuple(self._lives)

    def hears(self, participant: str, life: str) -> bool:
        """Return whether messages of this life count."""
        return self.is_current(participant, life) and participant not in self._lost

    def is_current(self, participant: str, life: str) -> bool:
        """Return whether this is the participant's life now."""
        return self._lives.get(participant) == life

    def lose(self, participant: str, life: str, cause: Failure) -> None:
        """Remember that a life ended without a goodbye; a lost life stays lost."""
        if self.is_current(participant, life) and participant not in self._gone:
            self._lost.setdefault(participant, cause)
            self._num_changes += 1

    def leave(self, participant: str) -> None:
        """Remember a goodbye."""
        self._gone.add(participant)
        self._num_changes += 1

    @property
    def everybody_left(self) -> bool:
        """True once every participant has said goodbye or is lost."""
        return len(self._gone | self._lost.keys()) >= len(self._lives)

    @property
    def closed(self) -> Collection[str]:
        """Who said goodbye."""
        return self._gone

    @property
    def all_connected(self) -> bool:
        """True once everybody has connected who is not lost."""
        return self._kept.keys() <= self._lost.keys()

    def absent(self, roster: Mapping[str, str]) -> dict[str, Failure]:
        """Return who of a call is not there any more, and why.

        Asked for each message of everybody, so it looks only after something has changed.

        Args:
            roster: participants of the call, with their lives.
        """
        looked, changes, found = self._looked
        if looked is not roster or changes != self._num_changes:
            found = self._look(roster)
            self._looked = (roster, self._num_changes, found)
        return found

    def _look(self, roster: Mapping[str, str]) -> dict[str, Failure]:
        found = {}
        for one, life in roster.items():
            if one not in self._lives:
                found[one] = _RELEASED
            elif self._lives[one] != life:
                found[one] = _AGAIN
            elif one in self._lost:
                found[one] = self._lost[one]
            elif one in self._gone:
                found[one] = _GONE
        return found

    def keep(self, action: actions.Send) -> None:
        """Keep a message to a participant that has not connected yet."""
        if action.to in self._kept:
            self._kept[action.to].append(action)

    def kept(self, participant: str) -> list[actions.Action]:
        """Return what was kept for a participant that connects now."""
        return self._kept.pop(participant, [])


def _rank_of(participant: str) -> tuple[int, str]:
    rank = participant.rpartition("/")[2]
    return (int(rank), "") if rank.isdecimal() else (-1, rank)
