"""The coordinator's side of safe points: where ranks that nobody can call stop next; no I/O.

Invariants:

- One request at a time. It ends when every rank that was asked is at its target, or it lapses.
- The target of a role is told only after all of its ranks have answered.
- A rank passes no safe point before all have connected, so nobody is asked before that.
- A rank is told to begin a call together with the target, never before it.
- A rank that is lost, released, closed or too late is never waited for. The request for a call
  lapses then. One without a call goes on among the others; it lapses only if a rank closes before
  the target is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.layout import role_of
from stepseal.protocol import _actions as actions
from stepseal.protocol._cut import by_role
from stepseal.protocol._opening import BeginRestore, BeginSave
from stepseal.protocol._safe_points import AskSafePoint, Lapsed, SafePoint, Target
from stepseal.protocol._triggers import Due

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from stepseal.protocol._lives import Lives
    from stepseal.protocol._opening import Begin
    from stepseal.protocol._triggers import Fired, Triggers

__all__ = ["SafePoints", "target"]

_NONE = 0
"""Number of no request: they begin with 1."""


def target(passed: Iterable[int]) -> int:
    """Return the first safe point that no rank has passed.

    Args:
        passed: the last one that each has passed.
    """
    return max(passed) + 1


class SafePoints:
    """The one open request, if there is one.

    It comes with a call that the coordinator opened, or with what is due.

    Args:
        triggers: what is due.
    """

    def __init__(self, triggers: Triggers) -> None:
        self._triggers = triggers
        self._stepping: set[str] = set()
        """Participants that begin a call at a safe point."""
        self._request = 0
        self._roster: dict[str, str] = {}
        """Who was asked, and their lives; empty where no request is open."""
        self._passed: dict[str, int] = {}
        self._targets: dict[str, int] = {}
        """Role to its target; empty until all have answered."""
        self._here: set[str] = set()
        """Who is at the target."""
        self._due = Due()
        """What was told with the target."""
        self._begins: dict[str, Begin] = {}
        """What they are told to begin there."""

    def declare(self, participant: str, *, steps: bool) -> None:
        """Note whether a participant begins its calls at safe points."""
        (self._stepping.add if steps else self._stepping.discard)(participant)

    @property
    def is_open(self) -> bool:
        """True while a request is open."""
        return bool(self._roster)

    @property
    def is_asking(self) -> bool:
        """True while a request is open, and what comes due is told with its target."""
        return self.is_open and not self._targets and self.call is None

    @property
    def call(self) -> int | None:
        """The call that the open request is for; None without one."""
        return next((begin.call for begin in self._begins.values()), None)

    def ask(self, roster: Mapping[str, str]) -> list[actions.Action]:
        """Ask ranks for their safe points.

        Args:
            roster: the ranks and their lives.
        """
        assert not self.is_open, "one request at a time"
        self._request += 1
        self._roster = dict(roster)
        self._passed, self._targets, self._here, self._begins = {}, {}, set(), {}
        return [actions.Send(one, AskSafePoint(self._request)) for one in roster]

    def instead(
        self,
        todo: list[actions.Action],
        calls: Collection[int],
        lives: Mapping[int, Mapping[str, str]],
    ) -> list[actions.Action]:
        """Replace what tells ranks to begin a call by the question for their safe points.

        Args:
            todo: what the coordinator is about to do.
            calls: those that are open.
            lives: call to its participants and their lives.
        """
        begins = {} if not self._stepping else self._begins_in(todo)
        if not begins:
            return todo
        held = {id(begin) for begin in begins.values()}
        rest = [a for a in todo if not (isinstance(a, actions.Send) and id(a.message) in held)]
        call = next(begin.call for begin in begins.values())
        if call not in calls:  # it has ended before it began
            return rest
        lapsed = self.lapse() if self.is_open else []  # a rank captured elsewhere: its call fails
        asked = self.ask({one: lives[call][one] for one in begins})
        self._begins = begins
        return rest + lapsed + asked

    def _begins_in(self, todo: list[actions.Action]) -> dict[str, Begin]:
        return {
            action.to: action.message
            for action in todo
            if isinstance(action, actions.Send)
            and action.to in self._stepping
            and isinstance(action.message, (BeginSave, BeginRestore))
            and action.message is not self._begins.get(action.to)
        }

    def on_point(self, participant: str, message: SafePoint) -> list[actions.Action]:
        """Handle an answer; after the last one, tell all the target, and to begin there."""
        if message.request != self._request or participant not in self._roster:
            return []
        if self._targets:
            return self._arrived(participant, message)
        self._passed[participant] = message.point
        return self._name_targets()

    def _name_targets(self) -> list[actions.Action]:
        if len(self._passed) < len(self._roster):
            return []
        self._targets = {
            role: target([self._passed[one] for one in names])
            for role, names in by_role(self._roster).items()
        }
        due = self._triggers.take() if self.call is None else None
        self._due = due or Due()
        todo: list[actions.Action] = []
        for one in self._roster:
            point = self._targets[role_of(one)]
            todo.append(actions.Send(one, Target(self._request, point, due)))
            if one in self._begins:
                todo.append(actions.Send(one, self._begins[one]))
        return todo

    def _arrived(self, participant: str, message: SafePoint) -> list[actions.Action]:
        if message.point == self._targets[role_of(participant)]:
            self._here.add(participant)
        self._end_if_met()
        return []

    def _end_if_met(self) -> None:
        if not self.missing():
            self._roster = {}

    def serves(self, participant: str, fired: Fired) -> bool:
        """Return whether what is done at the target is what this trigger asks for.

        It is, as long as the rank has not come to the target: a signal to all ranks saves once.
        """
        waits = bool(self._targets) and participant in self.missing()
        return waits and bool(self._due.save) and (bool(self._due.stop) or not fired.stop)

    def let_go(self, ranks: Iterable[str]) -> list[actions.Action]:
        """Let ranks go on that wait to be asked: nobody will be, or all were."""
        return [actions.Send(one, Lapsed(_NONE)) for one in ranks]

    def drop(self, lives: Lives) -> list[actions.Action]:
        """Go on without ranks that are gone, in a request without a call.

        A rank that closes passes no more safe points, and neither do the others, who make the same
        calls: they are let go if they do not know the target yet.
        """
        if not self.is_open or self.call is not None:
            return []
        absent = lives.absent(self._roster)
        gone = [one for one in self.missing() if one in absent]
        if not gone:
            return []
        if not self._targets and any(one in lives.closed for one in gone):
            return self.lapse()
        self._roster = {one: life for one, life in self._roster.items() if one not in gone}
        for one in gone:
            self._passed.pop(one, None)
        if self._targets:
            self._end_if_met()
            return []
        return self._name_targets() if self._roster else []

    def missing(self) -> tuple[str, ...]:
        """Return who was asked and is not at the target yet."""
        return tuple(one for one in self._roster if one not in self._here)

    def late(self) -> dict[str, str | None]:
        """Return where each rank is that is missing, for the end of the time.

        None for those that wait at a safe point until others have answered.
        """
        return {one: self._where(one) for one in self.missing()}

    def waiting(self) -> dict[int, dict[str, str | None]]:
        """Return the call of the open request, if it has one, and what `late` says."""
        return {} if self.call is None else {self.call: self.late()}

    def _where(self, participant: str) -> str | None:
        if participant not in self._passed:
            return "its process does not say at which safe point it is"
        if not self._targets:
            return None
        last, end = self._passed[participant], self._targets[role_of(participant)]
        return f"it was asked after safe point {last}, and did not come to number {end}"

    def lapse(self) -> list[actions.Action]:
        """Give the request up: all go on as if nobody had asked."""
        told: list[actions.Action] = [
            actions.Send(one, Lapsed(self._request)) for one in self._roster
        ]
        self._roster = {}
        return told

    def ask_what_is_due(self, lives: Lives) -> list[actions.Action]:
        """Ask all ranks that are left where they stop for what is due, one request at a time."""
        if self.is_open or not self._triggers.is_due or not lives.all_connected:
            return []
        roster = lives.roster()
        gone = lives.absent(roster)
        left = {one: life for one, life in roster.items() if one not in gone}
        if not lives.closed:
            return self.ask(left)
        self._triggers.take()  # the others close next, and settle their saves there
        return self.let_go(left)

    def settle(self, calls: Collection[int]) -> list[actions.Action]:
        """Let the request of a call lapse that has ended.

        Args:
            calls: those that are open.
        """
        if self.is_open and self.call is not None and self.call not in calls:
            return self.lapse()
        return []
