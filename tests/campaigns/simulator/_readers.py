"""People who read or pin steps while jobs write, supersede and prune them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.campaigns.simulator._disk import Disk
from tests.campaigns.simulator._parts import is_payload_of, read_part

from stepseal.errors import CheckpointError
from stepseal.steps._catalog import list_steps, read_marker
from stepseal.steps._pins import pin
from stepseal.steps._reading import Reading

if TYPE_CHECKING:
    from tests.campaigns.simulator._oracle import Oracle
    from tests.campaigns.simulator._world import World

    from stepseal.layout import Manifest
    from stepseal.steps._catalog import StepEntry

__all__ = ["Pinner", "Reader"]


class Reader:
    """Lists the steps and reads one, several times.

    Args:
        world: time and disk.
        oracle: judges what is read.
        number: which reader this is.
    """

    def __init__(self, world: World, oracle: Oracle, number: int) -> None:
        self.world = world
        self.oracle = oracle
        self.node = world.new_node(f"reader/{number}", 0)
        self.disk = Disk(world, self.node, oracle)
        self.rounds = 3
        self.next()

    def next(self) -> None:
        """Read once more, some time later."""
        if self.rounds:
            self.rounds -= 1
            self.world.at(
                self.world.roll() * 20.0, lambda: self.world.spawn(self.node, self.read), self.node
            )

    def read(self) -> None:
        """Read one step: an error is allowed when it went away, other bytes never."""
        try:
            steps = [e for e in list_steps(self.disk) if e.state == "committed"]
            if steps:
                newest = self.world.chance(0.5)
                self.read_step(steps[-1] if newest else self.world.random.choice(steps))
        except CheckpointError:
            pass  # nothing there yet, refused, or superseded meanwhile
        self.world.at(0.0, self.next, self.node)

    def read_step(self, entry: StepEntry) -> None:
        found = entry.manifest
        assert found is not None
        known = self.oracle.is_commit(found.attempt)
        self.oracle.require("readers see commits only", known, entry.name, found.attempt)
        reading = Reading(self.disk, found, self.world.clock, self.wait)
        try:
            with reading:
                if reading._lease is not None:
                    self.oracle.keeping.hold(self.node, found.attempt, float("inf"))
                self.read_parts(entry, found)
        finally:
            self.oracle.keeping.release(self.node)

    def wait(self, seconds: float) -> None:
        """Stand still, as a reader does whose step a prune has moved."""
        self.world.stand(self.node, seconds)

    def read_parts(self, entry: StepEntry, found: Manifest) -> None:
        for index, part in enumerate(found.parts):
            data = read_part(self.disk, entry.step, found, index)
            right = is_payload_of(data, found.attempt, part.participant)
            self.oracle.require("readers never see a mixed step", right, entry.name, data)


class Pinner:
    """Pins one step, some time.

    Args:
        world: time and disk.
        oracle: judges what becomes of the step.
        number: which pinner this is.
    """

    def __init__(self, world: World, oracle: Oracle, number: int) -> None:
        self.world = world
        self.oracle = oracle
        self.node = world.new_node(f"pinner/{number}", 0)
        self.disk = Disk(world, self.node, oracle)
        world.at(world.roll() * 60.0, lambda: world.spawn(self.node, self.pin), self.node)

    def pin(self) -> None:
        with contextlib.suppress(CheckpointError):
            run_id = read_marker(self.disk)
            steps = [e.step for e in list_steps(self.disk, run_id) if e.state == "committed"]
            if steps:
                step = self.world.random.choice(steps)
                pin(self.disk, step, run_id)
                self.oracle.keeping.pinned.add(step)
