"""Virtual time, processes that run, stand still or die, and the disk that all of them share.

No thread runs unless the loop lets it: events are taken in the order of virtual time, and the
blocking storage work of a process stands still before any verb for as long as the seed says.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.campaigns.simulator._fibers import Fiber, Fibers, Killed

from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Faults", "Node", "World"]

_FIBERS = Fibers()
_EPOCH_S = 1.8e9


@dataclass(frozen=True)
class Faults:
    """How likely each kind of trouble is, per opportunity unless said otherwise."""

    loss: float = 0.004
    """A message never arrives, and its line is dead from then on, as with TCP."""
    repeat: float = 0.05
    delay: float = 0.05
    """A message comes up to 30 s late."""
    fail: float = 0.01
    """A participant reports a failure instead of going on."""
    switch: float = 0.08
    """Another process goes on before a storage verb does."""
    slow: float = 0.02
    """Of the switches, those that take up to 60 s: a slow disk."""
    stall: float = 0.15
    """Right before a verb that decides (a commit, a claim, a prune), a process stands still for up
    to 100 s, and others may decide meanwhile."""
    refuse: float = 0.002
    """A mutating verb is refused, or is carried out and its answer is lost."""
    differ: float = 0.01
    """Per participant and save: it holds other values than the others, and may not even tell."""
    full: float = 0.1
    """Per life but the first: until it has claimed, there is no room for its coordinator's files
    while anything is staged."""
    unreadable: float = 0.0005
    """A reading verb is refused."""
    crash: float = 0.5
    """Per life: a process or the whole job is killed before some verb, or at some time."""
    pause: float = 0.4
    """Per life: a process or the whole job stands still for long, before some verb."""
    power: float = 0.25
    """Per life: power is lost before some verb."""
    second: float = 0.35
    """Per life: another start of the job begins while this one may still run."""
    rot: float = 0.25
    """Per life: a byte of a step flips."""
    readers: float = 0.3
    """Per life: somebody reads steps, and half as often somebody pins one."""
    back: float = 0.4
    """Per seed without rot: lives save more, and later ones restore an older step on purpose, which
    leaves the newer ones outside the lineage."""
    reorder: float = 0.1
    """Per life: lines do not keep the order of the messages of saves."""
    engines: float = 0.0
    """Per seed: an engine of each participant writes a file of its own into every attempt."""
    triggers: float = 0.0
    """Per seed: ranks step between their saves, and signals, minutes and time limits ask for more
    saves, and for the end."""
    actors: float = 0.0
    """Per seed: the coordinator opens the calls, for actors of several roles."""


@dataclass(eq=False)
class Node:
    """One process: may die or stand still, and everything of it with it."""

    name: str
    job: int
    alive: bool = True
    frozen_until: float = 0.0
    stood_s: float = 0.0
    """How long it stood still so far."""
    fibers: list[Fiber] = field(default_factory=list)
    incarnation: int = 0
    """Number that its job claimed, as soon as it knows."""
    on_death: Callable[[], None] = lambda: None
    """Lets others notice, in their own time."""
    on_freeze: Callable[[float], None] = lambda _seconds: None


class World:
    """Time, randomness, processes and disk of one seed."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.roll = self.random.random
        self.faults = faults
        self.now = 0.0
        self.disk = MemoryStorage()
        self.num_verbs = 0
        self.trace: list[str] | None = None
        """What happens, line by line, if somebody wants to read it."""
        self.at_verb: dict[int, Callable[[Node], None]] = {}
        """What happens before the verb of that number, in the process that asks for it."""
        self._order = itertools.count()
        self._events: list[tuple[float, int, Node | None, Callable[[], None]]] = []
        self.nodes: list[Node] = []
        self._fibers = _FIBERS

    def chance(self, probability: float) -> bool:
        """Tell whether something of this probability happens now."""
        return self.roll() < probability

    def clock(self) -> float:
        """Return Unix time, as files bear it."""
        return _EPOCH_S + self.now

    def at(self, delay: float, run: Callable[[], None], node: Node | None = None) -> None:
        """Do something later, in a process: not if it is dead then, later if it stands still."""
        heapq.heappush(self._events, (self.now + delay, next(self._order), node, run))

    def run(self, end: float) -> None:
        """Take events until there are none, or time is over."""
        while self._events and self._events[0][0] <= end:
            when, _, node, run = heapq.heappop(self._events)
            if when > self.now:
                self.now = when
            if node is not None:
                if not node.alive:
                    continue
                if node.frozen_until > self.now:
                    self.at(node.frozen_until - self.now, run, node)
                    continue
            run()

    def note(self, *words: object) -> None:
        """Add a line to the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.now:9.3f} {' '.join(str(word) for word in words)}")

    # -- processes -------------------------------------------------------------------------------

    def new_node(self, name: str, job: int) -> Node:
        """Return a process that runs."""
        node = Node(name, job)
        self.nodes.append(node)
        return node

    def spawn(self, node: Node, work: Callable[[], None]) -> None:
        """Let a process do blocking work, beginning now."""
        self.at(0.0, lambda: self._start(node, work), node)

    def _start(self, node: Node, work: Callable[[], None]) -> None:
        assert node.alive
        self._fibers.start(work)

    def freeze(self, node: Node, seconds: float) -> None:
        """Let a process stand still; it does not notice."""
        self.note(node.name, f"stands still for {seconds:.1f} s")
        node.frozen_until = max(node.frozen_until, self.now + seconds)
        node.stood_s += seconds
        node.on_freeze(seconds)

    def kill(self, node: Node) -> None:
        """End a process by SIGKILL, from the loop or from within any process."""
        if node.alive:
            self.note(node.name, "is killed")
            node.alive = False
            self.at(0.0, lambda: self._unwind(node))
            node.on_death()

    def _unwind(self, node: Node) -> None:
        for fiber in node.fibers:
            self._fibers.kill(fiber)
        node.fibers.clear()

    def lose_power(self) -> None:
        """End every process at once; the disk keeps what was synced, and of the rest some."""
        self.note("power is lost")
        for node in self.nodes:
            node.alive = False
            self._unwind(node)
        keep = self.random.choice((0.0, 0.5, 0.5, 1.0))

        def survives(kind: str, _key: str) -> float:
            if self.roll() < keep:
                return 1.0
            return self.roll() if kind == "data" and keep > 0.0 else 0.0

        self.disk = self.disk.after_power_loss(survives)

    def close(self) -> None:
        """Unwind what still stands, so that its threads serve the next seed."""
        for node in self.nodes:
            node.alive = False
            self._unwind(node)

    # -- storage work ----------------------------------------------------------------------------

    def before_verb(self, node: Node) -> None:
        """Count a verb; perhaps let others go on first, or end or stop this process.

        Raises:
            Killed: this process is dead.
        """
        if not node.alive:
            raise Killed
        self.num_verbs += 1
        planned = self.at_verb.pop(self.num_verbs, None) if self.at_verb else None
        if planned is not None:
            planned(node)
            self.stand(node, 0.0)
        elif self.roll() < self.faults.switch:
            slow = self.roll() < self.faults.slow
            self.stand(node, self.roll() * (60.0 if slow else 0.01))

    def stall(self, node: Node) -> None:
        """Perhaps let the process stand still, having looked and being about to decide.

        Raises:
            Killed: this process is dead.
        """
        if self.roll() < self.faults.stall:
            self.stand(node, self.roll() * 100.0)

    def stand(self, node: Node, seconds: float) -> None:
        """Let others go on for some time.

        Raises:
            Killed: this process is dead.
        """
        fiber = self._fibers.current
        assert fiber is not None
        if fiber not in node.fibers:
            node.fibers.append(fiber)
        self.at(seconds, lambda: self._go_on(node, fiber), node)
        self._fibers.pause()
        if not node.alive:
            raise Killed

    def _go_on(self, node: Node, fiber: Fiber) -> None:
        if not fiber.ended:
            self._fibers.resume(fiber)
        if fiber.ended and fiber in node.fibers:
            node.fibers.remove(fiber)
