"""One seed, of a job whose participants make the calls, or of actors whose coordinator does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaigns.simulator._actor_simulation import ActorSimulation
from tests.campaigns.simulator._simulation import Simulation
from tests.campaigns.simulator._world import Faults

if TYPE_CHECKING:
    from tests.campaigns.simulator._simulation import Outcome

__all__ = ["simulate"]


def simulate(
    seed: int,
    faults: Faults = Faults(),  # noqa: B008 - frozen
    trace: list[str] | None = None,
) -> Outcome:
    """Run one seed; the same seed does the same.

    Args:
        seed: which.
        faults: how likely trouble is.
        trace: takes a line for whatever happens.
    """
    simulation = ActorSimulation(seed, faults) if faults.actors else Simulation(seed, faults)
    simulation.world.trace = trace
    return simulation.run()
