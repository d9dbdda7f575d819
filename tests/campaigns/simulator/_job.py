"""One life of the job: a coordinator, its participants and the lines between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaigns.simulator._coordinator import Head
from tests.campaigns.simulator._lines import Line
from tests.campaigns.simulator._participant import Plan, Process
from tests.campaigns.simulator._stepping import SteppingProcess, Together
from tests.steps._kit import DEADLINES

from stepseal import errors
from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.simulator._oracle import Oracle
    from tests.campaigns.simulator._world import Node, World

    from stepseal.protocol._triggers import Timing
    from stepseal.retention import Retention

__all__ = ["Job", "Start"]


class Start:
    """One start of a job: what becomes of its calls.

    Args:
        world: time and disk.
        oracle: judges what is told.
        number: which start this is, from 1.
    """

    head: Head

    def __init__(self, world: World, oracle: Oracle, number: int) -> None:
        self.world = world
        self.oracle = oracle
        self.number = number
        self.participants: tuple[str, ...] = ()
        self.restored: set[tuple[int, str, int]] = set()
        """Step, attempt and incarnation that each participant restored; one, if all is well."""
        self.ends: dict[int, dict[str, str]] = {}
        """Call to how it ended for each participant."""
        self.together = Together(oracle)

    @property
    def nodes(self) -> list[Node]:
        """All its processes."""
        raise NotImplementedError

    @property
    def over(self) -> bool:
        """True when nobody of it does anything any more, or ever will before it wakes up."""
        raise NotImplementedError

    def kill(self) -> None:
        """End all its processes."""
        for node in self.nodes:
            self.world.kill(node)

    def freeze(self, seconds: float) -> None:
        """Let the whole job stand still."""
        for node in self.nodes:
            self.world.freeze(node, seconds)

    def miss(self, seconds: float, lines: list[Line]) -> None:
        """Let the other ends notice that nothing comes any more."""
        if seconds > DEADLINES.lost_s:
            for line in lines:
                self.world.at(DEADLINES.lost_s, line.cut)

    def end(self, process: Process, call: int, attempt: str, end: str) -> None:
        """Judge how a save ended for one participant."""
        state = process.machine.save(call)
        ends = self.ends.setdefault(call, {})
        ends[process.alias] = end
        self.world.note(process.node.name, "ends call", call, end, attempt)
        failed = any(other.startswith("failed") for other in ends.values())
        alike = not (failed and "committed" in ends.values()) or self.oracle.is_superseded(attempt)
        self.oracle.require("all participants hear alike", alike, ends, attempt)
        unsure = state.lost is not None or isinstance(state.outcome, messages.Unresolved)
        allowed = end != "unknown" or unsure
        self.oracle.require("unknown only without a coordinator", allowed, process.name, call)

    def check_over(self) -> None:
        """Judge, when time is over, that nobody still waits."""
        raise NotImplementedError


class Job(Start):
    """One start of a job whose participants make the calls.

    Args:
        world: time and disk.
        oracle: judges what is told.
        number: which start this is, from 1.
        num_participants: of this life.
        plan: what its participants do.
        new_attempt: returns a fresh id.
        retention: which steps its coordinator keeps.
        timing: triggers that depend on time alone.
    """

    def __init__(
        self,
        world: World,
        oracle: Oracle,
        number: int,
        num_participants: int,
        plan: Plan,
        new_attempt: Callable[[], str],
        retention: Retention | None,
        timing: Timing | None = None,
    ) -> None:
        super().__init__(world, oracle, number)
        self.participants = tuple(f"trainer/{rank}" for rank in range(num_participants))
        node = world.new_node(f"{number}/head", number)
        self.head = Head(world, oracle, node, self.participants, new_attempt, retention, timing)
        self.lines: dict[str, Line] = {}
        self.processes: list[Process] = []
        reorders, wired = world.chance(world.faults.reorder), world.chance(0.1)
        for name in self.participants:
            self._add(name, plan, reorders=reorders, wired=wired)
        self.head.lines = self.lines
        node.on_death = self._cut
        node.on_freeze = lambda seconds: self.miss(seconds, list(self.lines.values()))
        self.head.start(self._begin)

    def _add(self, name: str, plan: Plan, *, reorders: bool, wired: bool) -> None:
        node = self.world.new_node(f"{self.number}/{name}", self.number)
        line = Line(self.world, self.head.node, node, reorders=reorders, wired=wired)
        self.lines[name] = line
        kind = SteppingProcess if plan.triggers else Process
        process = kind(self, node, name, line, plan)
        self.processes.append(process)
        line.on_up = lambda message: self.head.take(name, message)
        line.on_down = process.hear
        line.on_lost_up = lambda cause: self.head.lose(name, cause)
        line.on_lost_down = process.lose
        node.on_death = line.cut
        node.on_freeze = lambda seconds: self.miss(seconds, [line])

    def _cut(self) -> None:
        for line in self.lines.values():
            line.cut()

    def _begin(self) -> None:
        for process in self.processes:
            self.world.at(self.world.roll() * 0.1, process.start, process.node)

    @property
    def nodes(self) -> list[Node]:
        """All its processes."""
        return [self.head.node, *(process.node for process in self.processes)]

    @property
    def over(self) -> bool:
        """True when nobody of it does anything any more, or ever will before it wakes up."""
        now = self.world.now
        return all(
            process.over or not process.node.alive or process.node.frozen_until > now
            for process in self.processes
        )

    def check_over(self) -> None:
        """Judge, when time is over, that nobody still waits."""
        for process in self.processes:
            stuck = process.node.alive and process.waits and not process.busy
            kind = errors.CommitTimeout.kind
            self.oracle.require("nobody waits for ever", not stuck, process.node.name, kind)
