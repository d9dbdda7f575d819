"""What a walk of triggers must keep, judged from what is said alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from tests.protocol._triggers_walk import Rank, TriggersWalk

    from stepseal.protocol import _actions as actions

__all__ = ["Judge"]


def _asks(message: messages.FromParticipant) -> bool:
    return isinstance(message, (messages.Fired, messages.SafePoint))


class Judge:
    """Judges one walk; `problems` lists every broken promise."""

    def __init__(self, walk: TriggersWalk) -> None:
        self._walk = walk
        self.problems: list[str] = []
        self.num_common = self.num_failed = self.num_forgiven = 0
        self.early: set[str] = set()
        """Who closes before the end of its program."""
        self.absent: set[str] = set()
        """Who is dead or has closed, as far as the coordinator knows."""
        self.closed = False
        """Whether the coordinator has heard a goodbye."""
        self.dues: dict[str, dict[int, messages.Due | None]] = {name: {} for name in walk.ranks}
        """Rank to each safe point that it has passed, and what was due there."""
        self.raises: dict[int, dict[str, int]] = {}
        """Call to where each rank raised its failure."""
        self.fired: list[messages.Fired] = []
        """What the coordinator was told, and no target has told."""
        self.failed: set[int] = set()
        """Calls that failed, and no target has told."""
        self.begun: set[int] = set()
        """Calls of which somebody was ordered to write."""
        self.asked: set[str] = set()
        """Who was asked, and is not at the target, as far as the coordinator knows."""
        self.request = 0
        self.targets: dict[int, messages.Target] = {}

    def require(self, kept: bool, text: str) -> None:
        if not kept:
            self.problems.append(f"{self._walk.now:.3f}: {text}")

    # -- what the coordinator hears and says -----------------------------------------------------

    def hears(self, name: str, message: messages.FromParticipant) -> None:
        """Take what the coordinator hears now."""
        if isinstance(message, messages.Goodbye):
            self.absent.add(name)
            self.closed = True
        elif isinstance(message, messages.Fired):
            if not self._is_served(name, message):
                self.fired.append(message)
        elif isinstance(message, messages.SafePoint) and message.request == self.request:
            target = self.targets.get(self.request)
            if target is not None and message.point == target.point:
                self.asked.discard(name)

    def _is_served(self, name: str, fired: messages.Fired) -> bool:
        """Tell whether a rank is on its way to a target where all do what this asks for."""
        target = self.targets.get(self.request)
        if target is None or target.due is None or name not in self.asked:
            return False
        return bool(target.due.save) and (bool(target.due.stop) or not fired.stop)

    def hears_of_loss(self, name: str) -> None:
        """Take that the coordinator hears of the end of a rank."""
        self.absent.add(name)

    def says(self, sends: list[actions.Send]) -> None:
        """Judge what the coordinator says to whatever it has heard."""
        was_open = bool(self.asked - self.absent)
        for action in sends:
            self._says(action.to, action.message, was_open=was_open)
        if self.closed:
            self.num_forgiven += len(self.fired)
            self.fired, self.failed = [], set()  # the others go on, and close next
        owed = bool(self.fired or self.failed) and self.absent < set(self._walk.ranks)
        self.require(not owed or bool(self.asked - self.absent), "nobody is asked for what is due")

    def _says(self, to: str, message: messages.FromCoordinator, *, was_open: bool) -> None:
        if isinstance(message, messages.AskSafePoint):
            if message.request != self.request:
                self.require(not self.asked - self.absent, "one request at a time")
                self.request, self.asked = message.request, set()
            self.asked.add(to)
        elif isinstance(message, messages.Lapsed):
            self.asked -= {to} if message.request == self.request else set()
        elif isinstance(message, messages.Target):
            self._named(message)
        elif isinstance(message, messages.Write):
            self.begun.add(message.call)
        elif isinstance(message, messages.Aborted):
            self.failed.add(message.call)
            held = was_open or to in self.asked or self.closed or to in self.absent
            self.require(held, f"{to} hears of a failure before it is asked")

    def _named(self, message: messages.Target) -> None:
        first = self.targets.setdefault(message.request, message)
        self.require(first == message, f"request {message.request}: {first} and {message}")
        if first is not message:
            return
        due = message.due
        assert due is not None
        stops = any(one.stop for one in self.fired)
        self.require(bool(due.save) >= bool(self.fired), f"{self.fired} is not told: {due}")
        self.require(bool(due.stop) >= stops, f"the end is not told: {due}")
        self.require(set(due.failed) == self.failed, f"{due} for {self.failed}")
        by_time = "minutes" in due.save or "time limit" in due.save
        self.require(not due.save or bool(self.fired) or by_time, f"{due} was told before")
        self.fired, self.failed = [], set()

    # -- what ranks do ---------------------------------------------------------------------------

    def after_a_move(self) -> None:
        """Judge that whoever waits for the coordinator is going to hear from it."""
        if not self._walk.is_up or self.asked - self.absent:
            return
        for rank in self._walk.ranks.values():
            own = rank.protocol.points
            waits = own.held or (own._request is not None and own._target is None)
            told = rank.signals or rank.heard or any(_asks(message) for message in rank.said)
            self.require(not rank.lives or not waits or bool(told), f"{rank.name} waits for nobody")

    def passes(self, rank: Rank, *, told: bool) -> None:
        """Judge a rank that passes a safe point, its target being named or not."""
        asked = rank.protocol.points._request is not None
        self.require(told or not asked, f"{rank.name} passes after its answer")

    def at_point(self, rank: Rank, due: messages.Due | None) -> None:
        """Take what is due where a rank is."""
        self.dues[rank.name][rank.count] = due

    def raised(self, rank: Rank, call: int) -> None:
        """Take where a rank raised a failure."""
        self.raises.setdefault(call, {})[rank.name] = rank.count

    def at_the_end(self) -> None:
        """Judge that all did the same, and that nobody is held."""
        walk = self._walk
        for rank in walk.ranks.values():
            self.require(not rank.lives, f"{rank.name} is held for ever: {rank.where}")
        if not walk.is_up:
            return  # ranks without a coordinator do as they can
        dead = {rank.name for rank in walk.ranks.values() if rank.where == "dead"}
        points = {point for found in self.dues.values() for point in found}
        for point in sorted(points):
            here = {name: found[point] for name, found in self.dues.items() if point in found}
            alive = {name: due for name, due in here.items() if name not in dead or due is not None}
            alike = len({repr(due) for due in alive.values()}) <= 1
            self.require(alike, f"safe point {point}: {alive}")
            self.num_common += alike and len(alive) > 1 and None not in alive.values()
        for call, where in self.raises.items():
            living = {name: point for name, point in where.items() if name not in dead}
            early = set(where) & self.early
            self.require(len(set(living.values())) <= 1 or bool(early), f"call {call}: {where}")
            self.num_failed += len(living) > 1 and call in self.begun
