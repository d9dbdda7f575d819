"""A participant that steps between its saves, where all hear what triggers ask for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.campaigns.simulator._participant import Process

from stepseal.protocol import _messages as messages
from stepseal.protocol._triggers import Timing

if TYPE_CHECKING:
    from tests.campaigns.simulator._oracle import Oracle
    from tests.campaigns.simulator._world import World

    from stepseal.protocol._participant import SaveState

__all__ = ["SteppingProcess", "Together", "draw_timing"]

_STEPS_PER_SAVE = 4


def draw_timing(world: World) -> Timing:
    """Return the triggers of one start that depend on time alone."""
    draw = world.random
    ends_s = draw.choice((None, None, 40.0, 150.0))
    stop_at = None if ends_s is None else world.now + ends_s * draw.random()
    return Timing(draw.choice((None, None, 10.0, 60.0)), stop_at, margin_s=10.0)


class Together:
    """Judges that all ranks of one start do the same at the same safe point.

    Args:
        oracle: takes the judgements.
    """

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._dues: dict[int, dict[SteppingProcess, str]] = {}
        self._raised: dict[int, dict[SteppingProcess, str]] = {}
        self._saved: dict[int, dict[SteppingProcess, str]] = {}

    def due(self, process: SteppingProcess, due: messages.Due | None) -> None:
        """Judge what a rank hears at a safe point."""
        found = self._dues.setdefault(process.point, {})
        self._judge("all hear the same at a safe point", found, process, repr(due))

    def raises(self, process: SteppingProcess) -> None:
        """Judge where a rank raises the failure of a save."""
        found = self._raised.setdefault(process.call, {})
        where = f"call {process.call} at {process.point}"
        self._judge("all raise a failure at one safe point", found, process, where)

    def saves(self, process: SteppingProcess) -> None:
        """Judge what a rank saves at a safe point."""
        found = self._saved.setdefault(process.point, {})
        self._judge("all save one step at a safe point", found, process, f"step {process.step}")

    def _judge(
        self,
        promise: str,
        found: dict[SteppingProcess, str],
        process: SteppingProcess,
        what: str,
    ) -> None:
        if not process.is_connected:
            return
        found[process] = what
        others = {one.name: told for one, told in found.items() if one.is_connected}
        alike = len(set(others.values())) == 1
        self._oracle.require(promise, alike, process.node.name, process.point, others)


class SteppingProcess(Process):
    """A participant whose loop goes on while its save is in flight."""

    loop = "restores"
    """restores, trains, waits (at a safe point), raises, settles, captures, closes"""
    point = 0
    """Safe points that it has come to."""
    first = 0
    """Step that was restored."""
    stops = False
    failed = False
    """The save in flight has ended, uncommitted, and nobody was told."""

    @property
    def is_connected(self) -> bool:
        """Whether the coordinator takes it for one of the living."""
        return not self.line.dead and self.job.head.node.alive

    @property
    def waits(self) -> bool:
        """Whether it waits for somebody else."""
        return super().waits or self.loop in ("waits", "raises", "settles", "captures")

    def start(self) -> None:
        super().start()
        draw = random.Random(f"{self.world.seed} {self.node.name} signals")
        together = random.Random(f"{self.world.seed} {self.job.number} signals")
        end_s = 1.0 + self.plan.num_saves * self.plan.pace_s
        for _ in range(together.choice((0, 1, 1))):  # to all ranks
            after = together.random() * end_s + draw.random()
            self._plan_signal(after, stop=together.random() < 0.3, draw=draw)
        for _ in range(draw.choice((0, 0, 1, 3))):
            self._plan_signal(draw.random() * end_s, stop=draw.random() < 0.1, draw=draw)

    def _plan_signal(self, after: float, *, stop: bool, draw: random.Random) -> None:
        grace_s = draw.choice((None, 20.0, 60.0))
        fired = messages.Fired("SIGTERM", stop=stop, grace_s=grace_s)

        def fire() -> None:
            if not self.over:
                self.machine.points.held = True
                self.line.up(fired)

        self.world.at(after, fire, self.node)

    def hear(self, message: messages.FromCoordinator) -> None:
        answer = self.machine.on_message(message)
        if answer is not None and not self.over:
            self.line.up(answer)
        self.go_on()

    # -- the loop --------------------------------------------------------------------------------

    def save(self) -> None:
        """Begin the loop; called when the restore has ended."""
        self.first = self.step
        self.train()

    def train(self) -> None:
        """Do a training step, or end."""
        if self.over:
            return
        if self.stops or self.point == _STEPS_PER_SAVE * self.plan.num_saves:
            self.loop = "closes"
        else:
            self.loop = "trains"
            pace_s = self.plan.pace_s / _STEPS_PER_SAVE
            self.world.at(self.world.roll() * pace_s, self.come, self.node)
        self.go_on()

    def come(self) -> None:
        """Come to the next safe point."""
        self.loop = "waits"
        self.point += 1
        self.go_on()

    def go_on(self) -> None:
        super().go_on()
        if self.over:
            return
        if self.loop == "waits":
            self.pass_point()
        elif self.loop in ("raises", "settles", "closes") and self.doing != "save":
            self.settled()
        elif self.loop == "captures" and self.has_captured():
            self.train()

    def pass_point(self) -> None:
        """Pass the safe point, if nobody asks to wait at it, and do what is due there."""
        points, due = self.machine.points, None
        if self.machine.lost is not None:
            points.leave()
        elif not points.try_pass():
            return
        elif (arrived := points.arrived()) is not None:
            due = points.take_due()
            self.line.up(arrived)
        if self.machine.lost is None:
            self.job.together.due(self, due)
        self.stops = self.stops or (due is not None and bool(due.stop))
        in_flight = self.doing == "save" or self.failed
        if due is not None and in_flight and self.call in due.failed:
            self.loop = "raises"
        elif (due is not None and due.save) or self.point % _STEPS_PER_SAVE == 0:
            self.loop = "settles"
        else:
            self.train()
            return
        self.go_on()

    def settled(self) -> None:
        """Go on where the save in flight has ended."""
        if self.loop == "closes":
            self.leave(goodbye=True)
        elif self.failed:
            self.failed = False
            self.job.together.raises(self)
            self.train()
        elif self.loop == "raises":
            self.train()
        else:
            self.loop = "captures"
            self.step = self.first + self.point
            self.job.together.saves(self)
            self.save_now()

    def has_captured(self) -> bool:
        """Tell whether the call has returned: all were ordered to write, or it has failed."""
        return self.doing != "save" or self.machine.save(self.call).write is not None

    def after_save(self, state: SaveState) -> None:
        """Remember a failure, to be raised where all raise it."""
        if state.lost is not None and state.outcome is None:
            self.leave(goodbye=False)
            return
        end = self.job.ends[self.call][self.alias]
        if self.loop != "captures":  # behind
            self.failed = end != "committed"
        self.world.at(0.0, self.go_on, self.node)
