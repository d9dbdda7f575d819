"""Participants join, die and come back at random: a sound coordinator keeps its promises.

Broken coordinators must be seen within the same seeds; a walk that sees none proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.protocol._lives_walk import Walk

from stepseal.protocol import _opening, _stages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._lives import Lives
from stepseal.protocol._save_round import SaveRound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.protocol import _actions as actions
    from stepseal.protocol import _messages as messages

SEEDS = range(300)
Patch = tuple[object, str, object]


def test_a_sound_coordinator_keeps_its_promises() -> None:
    num_commits = 0
    for seed in SEEDS:
        walk = Walk(seed)
        assert walk.run() == [], f"seed {seed}"
        num_commits += walk.num_commits
    assert num_commits > 100, "a walk in which nothing is committed proves nothing"


def _lives_unheeded() -> Patch:
    """Messages of every life count."""
    return Lives, "hears", lambda self, one, _life: one in self._lives and one not in self._lost


def _losses_unheeded() -> Patch:
    """The loss of any life is the loss of the participant."""

    real = Lives.lose

    def lose(self: Lives, participant: str, _life: str, cause: messages.Failure) -> None:
        real(self, participant, self._lives.get(participant, ""), cause)

    return Lives, "lose", lose


def _told_to_everybody() -> Patch:
    """A new life hears of the calls of the one before."""
    return Coordinator, "_is_for_this_life", lambda _self, _action: True


def _counted() -> Patch:
    """Parts are counted, and not named."""
    real = SaveRound.on_prepared

    def on_prepared(
        self: SaveRound, _who: str, message: messages.Prepared, now: float
    ) -> list[actions.Action]:
        missing = [p for p in self.participants if p not in self._prepared]
        return real(self, (missing or [_who])[0], message, now)

    return SaveRound, "on_prepared", on_prepared


def _all_at_once() -> Patch:
    """Consumers and producers are captured in any order."""

    def stages(roster: Sequence[str], _order: Sequence[str]) -> list[tuple[str, ...]]:
        return [tuple(roster)]

    return _stages, "stages", stages


def _absent_forgiven() -> Patch:
    """A call goes on without whoever is lost."""
    real = SaveRound.on_lost

    def on_lost(self: SaveRound, absent: dict[str, messages.Failure]) -> list[actions.Action]:
        self.participants = tuple(p for p in self.participants if p not in absent)
        if not self.participants:
            return real(self, {})
        return []

    return SaveRound, "on_lost", on_lost


def _begun_by_all() -> Patch:
    """Each stage tells everybody to begin."""
    real = _opening.Opening.begins

    def begins(
        self: _opening.Opening, call: int, names: Sequence[str], lives: dict[str, str]
    ) -> dict[str, _opening.Begin]:
        return real(self, call, [*lives], lives)

    return _opening.Opening, "begins", begins


BROKEN = [
    _lives_unheeded,
    _losses_unheeded,
    _told_to_everybody,
    _counted,
    _all_at_once,
    _absent_forgiven,
    _begun_by_all,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_coordinator_is_seen(broken: Callable[[], Patch]) -> None:
    owner, name, wrong = broken()
    with mock.patch.object(owner, name, wrong):
        assert any(_is_seen(seed) for seed in SEEDS)


def _is_seen(seed: int) -> bool:
    walk = Walk(seed)
    try:
        return bool(walk.run())
    except (AssertionError, KeyError):
        return True  # the code noticed by itself
