"""One of each: storage, control plane, coordinator and participant of this process, connected.

The only place that knows how the wings are put together in an SPMD job or a single process.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stepseal._version import __version__
from stepseal.commit import CoordinatorDriver, Deadlines, InProcessHub, JobFacts, ParticipantDriver
from stepseal.components import Topology
from stepseal.errors import CheckpointError
from stepseal.session._finisher import StepFinisher
from stepseal.session._job import Rendezvous, discover
from stepseal.storage import Access, LocalStorage, Storage

if TYPE_CHECKING:
    from stepseal.commit import Hub

__all__ = ["Join", "Wiring", "coordinate", "join_process_group"]


@dataclass(frozen=True, slots=True)
class Wiring:
    """What one participant needs to take part."""

    storage: Storage
    driver: ParticipantDriver
    coordinator: CoordinatorDriver | None
    """Only with the participant that hosts it (rank 0)."""

    def close(self) -> None:
        """Say goodbye; the coordinator lingers for the goodbye of the others. Idempotent."""
        self.driver.close()
        if self.coordinator is not None:
            self.coordinator.close()


Join = Callable[[str, Deadlines], tuple[Topology, Wiring]]
"""Connects one participant with its job: absolute path of the root, limits -> topology, wiring."""


def join_process_group(
    role: str,
    root: str,
    deadlines: Deadlines,
    *,
    control_host: str | None,
    access: Access | None = None,
) -> tuple[Topology, Wiring]:
    """Connect this process with all ranks of the default process group, or with itself alone.

    Args:
        role: first part of the participant ids.
        root: absolute path of the root.
        deadlines: connection limits and all others.
        control_host: interface of rank 0 for the control plane, or None.
        access: modes of what is made, and whether shared directories are accepted.

    Raises:
        CheckpointError: the root or the coordinator cannot be reached or used; alike on all ranks.
    """
    access = access or Access()
    topology = discover(role)
    if topology.world_size == 1:
        return topology, _alone(root, topology, deadlines, access)
    rendezvous = Rendezvous(topology, deadlines, control_host)
    if topology.rank == 0:
        return topology, _host(root, topology, deadlines, rendezvous, access)
    link = rendezvous.connect(__version__)
    driver = ParticipantDriver(topology.me, link, deadlines)
    try:
        storage = LocalStorage.open(root, access=access)
    except CheckpointError:
        driver.close()
        raise
    return topology, Wiring(storage, driver, None)


def _alone(root: str, topology: Topology, deadlines: Deadlines, access: Access) -> Wiring:
    storage = LocalStorage.create(root, access=access)
    hub = InProcessHub()
    coordinator = coordinate(storage, topology, deadlines, hub)
    driver = ParticipantDriver(topology.me, hub.link(topology.me), deadlines)
    return Wiring(storage, driver, coordinator)


def _host(
    root: str, topology: Topology, deadlines: Deadlines, rendezvous: Rendezvous, access: Access
) -> Wiring:
    try:
        storage = LocalStorage.create(root, access=access)
        hub = rendezvous.listen(__version__)
        link = hub.link(topology.me)
        coordinator = coordinate(storage, topology, deadlines, hub)
    except (CheckpointError, OSError) as error:
        rendezvous.refuse(error)
        raise
    driver = ParticipantDriver(topology.me, link, deadlines)
    rendezvous.publish(hub.address)
    return Wiring(storage, driver, coordinator)


def coordinate(
    storage: Storage, topology: Topology, deadlines: Deadlines, hub: Hub
) -> CoordinatorDriver:
    """Start the coordinator of a job.

    Raises:
        CheckpointError: the root cannot be initialised.
    """
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
