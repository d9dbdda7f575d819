"""Broken variants of how triggers reach all ranks: small patches of the real code.

The random walk must see each, and the simulator some of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import structs

from stepseal.protocol import _asking, _messages
from stepseal.protocol._asking import SafePoints
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._safe_points import OwnPoints
from stepseal.protocol._triggers import Due, Fired, Triggers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.protocol._lives import Lives

__all__ = [
    "BROKEN",
    "closing_ranks_awaited",
    "due_kept",
    "failure_before_the_question",
    "failures_forgotten",
    "largest",
    "lost_after_the_target",
    "lost_ranks_awaited",
    "lost_with_a_rank",
    "no_hold",
    "served_at_the_target",
    "served_ranks_not_let_go",
    "served_without_a_stop",
    "told_again",
    "told_to_one",
    "told_too_early",
]

Patch = tuple[object, str, object]


# -- what a rank does wrong ------------------------------------------------------------------------


def no_hold() -> Patch:
    """A rank that has answered goes on before it knows the target."""

    def try_pass(self: OwnPoints, *, waits: bool = False) -> bool:
        self.passed += 1
        return not waits

    return OwnPoints, "try_pass", try_pass


def due_kept() -> Patch:
    """A rank does not forget what was due when it has done it."""
    real = OwnPoints.take_due

    def take_due(self: OwnPoints) -> Any:  # noqa: ANN401
        request, due = self._request, real(self)
        self._request = request
        return due

    return OwnPoints, "take_due", take_due


# -- what the coordinator does wrong ---------------------------------------------------------------


def largest() -> Patch:
    """The target is the largest number, which a rank has already passed."""

    def target(passed: Iterable[int]) -> int:
        return max(passed)

    return _asking, "target", target


def told_too_early() -> Patch:
    """The target is told when the first has answered."""
    real = SafePoints.on_point

    def on_point(self: SafePoints, who: str, message: _messages.SafePoint) -> list[Any]:
        for one in self._roster:
            self._passed.setdefault(one, message.point)
        return real(self, who, message)

    return SafePoints, "on_point", on_point


def told_to_one() -> Patch:
    """What is due is told to the first rank alone."""
    real = SafePoints._name_targets

    def name_targets(self: SafePoints) -> list[Any]:
        todo: list[Any] = real(self)
        for action in todo[1:]:
            object.__setattr__(action, "message", structs.replace(action.message, due=Due()))
        return todo

    return SafePoints, "_name_targets", name_targets


def told_again() -> Patch:
    """What was told stays due."""

    def take(self: Triggers) -> Due:
        return Due(self._save, self._stop, self._failed)

    return Triggers, "take", take


def lost_after_the_target() -> Patch:
    """What fires between the target and the arrival of all at it is forgotten."""
    real = SafePoints._end_if_met

    def end_if_met(self: SafePoints) -> None:
        real(self)
        if not self.is_open:
            self._triggers.take()

    return SafePoints, "_end_if_met", end_if_met


def served_at_the_target() -> Patch:
    """What fires where a rank is at the target already is taken to be served there."""

    def serves(self: SafePoints, _who: str, fired: Fired) -> bool:
        due = self._due
        return bool(self._targets) and bool(due.save) and (bool(due.stop) or not fired.stop)

    return SafePoints, "serves", serves


def served_without_a_stop() -> Patch:
    """What asks for the end of the loop is taken to be served by any save."""

    def serves(self: SafePoints, who: str, _fired: Fired) -> bool:
        return bool(self._targets) and who in self.missing() and bool(self._due.save)

    return SafePoints, "serves", serves


def served_ranks_not_let_go() -> Patch:
    """Who is held where a trigger fired is not let go when all were asked, or nobody will be."""
    return SafePoints, "let_go", lambda _self, _ranks: []


def lost_with_a_rank() -> Patch:
    """The loss of a rank makes the request lapse, and what is due is forgotten."""
    real = SafePoints.drop

    def drop(self: SafePoints, lives: Lives) -> list[Any]:
        if self.is_open and not self._targets and lives.absent(self._roster):
            self._triggers.take()
            return self.lapse()
        return real(self, lives)

    return SafePoints, "drop", drop


def closing_ranks_awaited() -> Patch:
    """A goodbye is not heeded where a request is open."""
    real = SafePoints.drop
    return SafePoints, "drop", lambda self, lives: [] if lives.closed else real(self, lives)


def lost_ranks_awaited() -> Patch:
    """A loss is not heeded where a request is open."""
    real = SafePoints.drop
    return SafePoints, "drop", lambda self, lives: real(self, lives) if lives.closed else []


def failure_before_the_question() -> Patch:
    """Ranks hear of a failure before they are asked where to raise it."""
    real = Coordinator._keep

    def keep(self: Coordinator, todo: list[Any]) -> list[Any]:
        def asks(action: Any) -> bool:  # noqa: ANN401
            return isinstance(getattr(action, "message", None), _messages.AskSafePoint)

        return sorted(real(self, todo), key=asks)

    return Coordinator, "_keep", keep


def failures_forgotten() -> Patch:
    """Saves that fail behind are not due to be raised."""
    real = Triggers.on_ended

    def on_ended(self: Triggers, call: int, now: float, **_options: bool) -> None:
        real(self, call, now, committed=True)

    return Triggers, "on_ended", on_ended


BROKEN = [
    no_hold,
    due_kept,
    largest,
    told_too_early,
    told_to_one,
    told_again,
    lost_after_the_target,
    served_at_the_target,
    served_without_a_stop,
    served_ranks_not_let_go,
    lost_with_a_rank,
    closing_ranks_awaited,
    lost_ranks_awaited,
    failure_before_the_question,
    failures_forgotten,
]
