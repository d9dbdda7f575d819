"""One of each: storage, control plane, coordinator and participant of this process, connected.

The only place that knows how the wings are put together in an SPMD job or a single process.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stepseal._version import __version__
from stepseal.commit import CoordinatorDriver, InProcessHub, JobFacts, ParticipantDriver
from stepseal.errors import CheckpointError
from stepseal.session._finisher import StepFinisher
from stepseal.session._job import Rendezvous
from stepseal.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.commit import Deadlines, Hub
    from stepseal.components import Topology
    from stepseal.storage import Storage

__all__ = ["Wiring", "wire"]


@dataclass(frozen=True, slots=True)
class Wiring:
    """What one process needs to take part."""

    storage: Storage
    driver: ParticipantDriver
    coordinator: CoordinatorDriver | None
    """Only in the process that hosts it (rank 0)."""

    def close(self) -> None:
        """Say goodbye; the coordinator lingers for the goodbye of the others. Idempotent."""
        self.driver.close()
        if self.coordinator is not None:
            self.coordinator.close()


def wire(
    root: str,
    topology: Topology,
    deadlines: Deadlines,
    *,
    control_host: str | None,
    wrap: Callable[[Storage], Storage],
) -> Wiring:
    """Connect this process.

    Args:
        root: absolute path of the root.
        topology: who takes part.
        deadlines: connection limits and all others.
        control_host: interface of rank 0 for the control plane, or None.
        wrap: put around the storage; the identity, or a fault injector.

    Raises:
        CheckpointError: the root or the coordinator cannot be reached or used; the same on all
        ranks.
    """
    if topology.world_size == 1:
        storage = wrap(LocalStorage.create(root))
        hub = InProcessHub()
        coordinator = _coordinate(storage, topology, deadlines, hub)
        driver = ParticipantDriver(topology.me, hub.link(topology.me), deadlines)
        return Wiring(storage, driver, coordinator)
    rendezvous = Rendezvous(topology, deadlines, control_host)
    if topology.rank > 0:
        link = rendezvous.connect(__version__)
        storage = wrap(LocalStorage.open(root))
        return Wiring(storage, ParticipantDriver(topology.me, link, deadlines), None)
    try:
        storage = wrap(LocalStorage.create(root))
        sockets = rendezvous.listen()
        own = sockets.link(topology.me)
        coordinator = _coordinate(storage, topology, deadlines, sockets)
    except (CheckpointError, OSError) as error:
        rendezvous.refuse(error)
        raise
    driver = ParticipantDriver(topology.me, own, deadlines)
    rendezvous.publish(sockets.address)
    return Wiring(storage, driver, coordinator)


def _coordinate(
    storage: Storage, topology: Topology, deadlines: Deadlines, hub: Hub
) -> CoordinatorDriver:
    versions = {
        "stepseal": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    return CoordinatorDriver(
        storage,
        topology.participants,
        hub=hub,
        deadlines=deadlines,
        finisher=StepFinisher(),
        facts=JobFacts(versions, {"world_size": topology.world_size}),
    )
