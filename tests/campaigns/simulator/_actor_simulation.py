"""One seed of a job of actors: controllers follow each other, actors live through several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaigns.simulator._actor_oracle import ActorOracle
from tests.campaigns.simulator._company import Company, Era
from tests.campaigns.simulator._published import ReaderOfVersions
from tests.campaigns.simulator._simulation import Simulation
from tests.campaigns.simulator._world import Faults

if TYPE_CHECKING:
    from tests.campaigns.simulator._participant import Plan
    from tests.campaigns.simulator._readers import Reader

    from stepseal.retention import Retention

__all__ = ["WITH_ACTORS", "ActorSimulation"]

WITH_ACTORS = Faults(actors=1.0, delay=0.01, loss=0.001)
"""Fewer delays and losses per message than usual, as each call needs several of everybody."""


class ActorSimulation(Simulation):
    """One seed of actors."""

    oracle: ActorOracle

    def __init__(self, seed: int, faults: Faults) -> None:
        super().__init__(seed, faults)
        self.company = Company(self.world, self.oracle, self.world.random.choice((1, 2, 2, 3)))

    def new_oracle(self) -> ActorOracle:
        return ActorOracle(self.world)

    def new_start(self, number: int, size: int, plan: Plan, retention: Retention | None) -> Era:
        """Return the next controller."""
        del size
        return Era(self.company, number, plan, self.new_attempt, retention)

    def new_reader(self, number: int) -> Reader:
        return ReaderOfVersions(self.world, self.oracle, number)

    def check_end(self) -> None:
        super().check_end()
        self.oracle.published.require_kept("at the end")
