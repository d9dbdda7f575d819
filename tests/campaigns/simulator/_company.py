"""All actors of a job, the framework that runs them, and the eras of its controllers.

The framework starts a process under a name again, brings calls to whoever lives under the name when
they arrive, and may bring one twice.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.campaigns.simulator._cast import GUEST, ORDER
from tests.campaigns.simulator._controller import Controller
from tests.campaigns.simulator._job import Start
from tests.campaigns.simulator._lines import Line
from tests.campaigns.simulator._owner import Owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.simulator._actor_oracle import ActorOracle
    from tests.campaigns.simulator._participant import Plan
    from tests.campaigns.simulator._world import Node, World

    from stepseal.retention import Retention

__all__ = ["Company", "Era", "Hub"]

_RESTARTS = 0.4
"""How often the framework starts a dead actor again by itself."""


class Company:
    """The actors of a job.

    Args:
        world: time and disk.
        oracle: judges what they do.
        num_trainers: in the one group of several actors.
    """

    def __init__(self, world: World, oracle: ActorOracle, num_trainers: int) -> None:
        self.world = world
        self.oracle = oracle
        self.trainers = tuple(f"trainer/{rank}" for rank in range(num_trainers))
        self.names = (*self.trainers, "buffer/0", "dataset/0")
        self.has_bells = world.chance(0.5)
        """Whether the framework brings the calls; else they are sent over the lines."""
        self.publishes = world.chance(0.5)
        """Whether controllers publish between their saves."""
        freezes = ((), (), (), ("buffer",), ("trainer",), ("trainer", "buffer"), ORDER)
        self.freeze: tuple[str, ...] = world.random.choice(freezes)
        """Roles that stay frozen until all have captured."""
        self.here: dict[str, Owner] = {}
        """Who lives under a name now."""
        self.owners: list[Owner] = []
        self._numbers = itertools.count(1)

    def group(self, name: str) -> tuple[str, ...]:
        """Return the participants of a name's role."""
        return self.trainers if name in self.trainers else (name,)

    def next_number(self) -> int:
        """Return the number of what is captured next."""
        return next(self._numbers)

    def lives(self, name: str) -> bool:
        """Tell whether a process lives under a name."""
        return name in self.here and self.here[name].node.alive

    def start(self, name: str, era: Era) -> None:
        """Start a process under a name; one that lived there before is not reached any more."""
        node = self.world.new_node(f"{name}#{len(self.owners)}", era.number)
        owner = Owner(self, era, node, name)
        self.owners.append(owner)
        self.here[name] = owner
        node.on_death = lambda: self._died(owner)
        node.on_freeze = lambda seconds: era.miss(seconds, [owner.line])
        self.world.note(node.name, "is started")

    def _died(self, owner: Owner) -> None:
        owner.line.cut()
        if self.here.get(owner.name) is owner and self.world.chance(_RESTARTS):
            self.world.at(self.world.roll() * 3.0, lambda: self._start_again(owner))

    def _start_again(self, owner: Owner) -> None:
        if self.here.get(owner.name) is owner and owner.job.head.node.alive:
            self.start(owner.name, owner.job)

    def call(
        self, name: str, work: Callable[[Owner], None], gone: Callable[[], None] | None = None
    ) -> None:
        """Bring a call to a name; the framework may bring it once more, much later."""
        world = self.world

        def arrive() -> None:
            if not self.lives(name):
                if gone is not None:
                    gone()
                return
            owner = self.here[name]
            delay = world.roll() * 40.0 if world.chance(world.faults.delay) else 0.0
            world.at(delay, lambda: work(owner), owner.node)

        world.at(world.roll() * 0.05, arrive)
        if world.chance(world.faults.repeat):
            world.at(world.roll() ** 2 * 20.0, arrive)

    def work(self) -> None:
        """Let actors do some of their work: draw prompts, make samples of them, train on them."""
        draw = self.world.random
        if not all(self.is_free(name) for name in self.names):
            return
        dataset, buffer = self.here["dataset/0"], self.here["buffer/0"]
        if not dataset.frozen:
            dataset.value += draw.randint(0, 3)
        if not buffer.frozen:
            buffer.value = max(buffer.value, min(dataset.value, buffer.value + draw.randint(0, 3)))
        trainers = [self.here[name] for name in self.trainers]
        if any(one.frozen for one in trainers):
            return
        alike = len({one.value for one in trainers}) == 1
        together = len({one.captured and one.captured.call for one in trainers}) == 1
        if alike and (together or self.world.chance(10 * self.world.faults.differ)):
            far = min(buffer.value, trainers[0].value + draw.randint(0, 3))
            for one in trainers:
                one.value = max(one.value, far)

    def is_free(self, name: str) -> bool:
        """Tell whether a name has a process that can work now."""
        if not self.lives(name):
            return False
        one = self.here[name]
        return one.doing != "restore" and one.node.frozen_until <= self.world.now


class Hub:
    """The lines of a controller: one for each life that it admitted, and only for its own.

    Args:
        era: whose.
    """

    def __init__(self, era: Era) -> None:
        self.era = era
        self.expected: dict[str, str] = {}
        self.known: set[str] = set()
        """Lives that have had their line."""
        self.lines: dict[str, Line] = {}
        self.reorders = era.world.chance(era.world.faults.reorder)
        self.wired = era.world.chance(0.1)

    def admit(self, name: str, life: str) -> None:
        """Let a life connect; the line of the one before ends."""
        self.end(name)
        self.expected[name] = life

    def end(self, name: str) -> None:
        """Let nobody connect under a name."""
        self.expected.pop(name, None)
        line = self.lines.pop(name, None)
        if line is not None:
            line.cut()

    def may_connect(self, name: str, life: str) -> bool:
        """Tell whether this life is awaited."""
        return self.expected.get(name) == life and life not in self.known

    def connect(self, owner: Owner, life: str) -> Line | None:
        """Return a line for a process; None if it is refused."""
        head, name = self.era.head, owner.name
        if not head.node.alive or not self.may_connect(name, life):
            return None
        self.known.add(life)
        line = Line(
            self.era.world, head.node, owner.node,
            reorders=self.reorders, wired=self.wired, life=life,
        )  # fmt: skip
        line.on_up = lambda message: head.take(name, message, life)
        line.on_lost_up = lambda cause: head.lose(name, cause, life)
        line.on_down, line.on_lost_down = owner.hear, owner.lose
        self.lines[name] = line
        return line


class Era(Start):
    """One controller, from its start to its end.

    Args:
        company: the actors.
        number: which controller this is, from 1.
        plan: what it does.
        new_attempt: returns a fresh id.
        retention: which steps it keeps.
    """

    head: Controller

    def __init__(
        self,
        company: Company,
        number: int,
        plan: Plan,
        new_attempt: Callable[[], str],
        retention: Retention | None,
    ) -> None:
        super().__init__(company.world, company.oracle, number)
        self.company = company
        self.participants = (*company.names, GUEST)
        self.restored_in: dict[int, set[tuple[str, int | None]]] = {}
        """Call to the attempt and the incarnation that each participant restored."""
        self.takes_actors_along = self.world.chance(0.4)
        node = self.world.new_node(f"{number}/head", number)
        self.hub = Hub(self)
        self.head = Controller(self, node, plan, new_attempt, retention)
        node.on_death = self._cut
        node.on_freeze = lambda seconds: self.miss(seconds, list(self.hub.lines.values()))
        self.head.start(self.head.gather)
        self.world.at(self.world.roll(), self._work)

    def _work(self) -> None:
        if not self.over:
            self.company.work()
            self.world.at(self.world.roll() * 3.0, self._work)

    def _cut(self) -> None:
        for line in self.hub.lines.values():
            line.cut()
        if self.takes_actors_along:
            for owner in self.company.owners:
                if owner.job is self:
                    self.world.kill(owner.node)

    def no_line(self, node: Node) -> Line:
        """Return what a process has that was not admitted."""
        line = Line(self.world, self.head.node, node, reorders=False, wired=False)
        line.dead = True
        return line

    @property
    def nodes(self) -> list[Node]:
        return [self.head.node, *(one.node for one in self.company.owners if one.node.alive)]

    @property
    def over(self) -> bool:
        head = self.head
        return head.finished or not head.node.alive or head.node.frozen_until > self.world.now

    def check_over(self) -> None:
        for owner in self.company.owners:
            if owner.job is self:
                stuck = owner.node.alive and owner.doing != "nothing" and not owner.busy
                self.oracle.require("nobody waits for ever", not stuck, owner.node.name)
                still = owner.node.alive and owner.node.frozen_until <= self.world.now
                cold = still and owner.frozen > 0
                self.oracle.require("nobody waits for ever", not cold, owner.node.name, "frozen")
        node = self.head.node
        stuck = node.alive and not self.head.finished
        self.oracle.require("nobody waits for ever", not stuck, node.name)
        self.company.oracle.check_told(self.number, node)
