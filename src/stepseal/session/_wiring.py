"""One of each: storage, control plane, coordinator and participant of this process, connected.

The only place that knows how the wings are put together in an SPMD job or a single process.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from stepseal._version import __version__
from stepseal.commit import CoordinatorDriver, Deadlines, InProcessHub, JobFacts, ParticipantDriver
from stepseal.components import Topology
from stepseal.errors import CheckpointError
from stepseal.retention import Housekeeper
from stepseal.session._finisher import StepFinisher
from stepseal.session._job import Rendezvous, discover
from stepseal.storage import Access, LocalStorage, Storage

if TYPE_CHECKING:
    from stepseal.commit import Hub
    from stepseal.retention import Retention

__all__ = ["JobOptions", "Join", "Wiring", "coordinate", "join_process_group"]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the coordinator of a job needs to know, besides its root."""

    deadlines: Deadlines
    retention: Retention | None = None
    """None keeps every step."""
    access: Access = field(default_factory=Access)
    """Modes of what is made, and whether shared directories are accepted."""


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


Join = Callable[[str, JobOptions], tuple[Topology, Wiring]]
"""Connects one participant with its job: absolute path of the root, options -> topology, wiring."""


def join_process_group(
    role: str, root: str, options: JobOptions, *, control_host: str | None
) -> tuple[Topology, Wiring]:
    """Connect this process with all ranks of the default process group, or with itself alone.

    Args:
        role: first part of the participant ids.
        root: absolute path of the root.
        options: limits, retention, and how the root is made.
        control_host: interface of rank 0 for the control plane, or None.

    Raises:
        CheckpointError: the root or the coordinator cannot be reached or used; alike on all ranks.
    """
    topology = discover(role)
    if topology.world_size == 1:
        return topology, _alone(root, topology, options)
    rendezvous = Rendezvous(topology, options.deadlines, control_host)
    if topology.rank == 0:
        return topology, _host(root, topology, options, rendezvous)
    link = rendezvous.connect(__version__)
    driver = ParticipantDriver(topology.me, link, options.deadlines)
    try:
        storage = LocalStorage.open(root, access=options.access)
    except CheckpointError:
        driver.close()
        raise
    return topology, Wiring(storage, driver, None)


def _alone(root: str, topology: Topology, options: JobOptions) -> Wiring:
    storage = LocalStorage.create(root, access=options.access)
    hub = InProcessHub()
    coordinator = coordinate(storage, topology, options, hub)
    driver = ParticipantDriver(topology.me, hub.link(topology.me), options.deadlines)
    return Wiring(storage, driver, coordinator)


def _host(root: str, topology: Topology, options: JobOptions, rendezvous: Rendezvous) -> Wiring:
    try:
        storage = LocalStorage.create(root, access=options.access)
        hub = rendezvous.listen(__version__)
        link = hub.link(topology.me)
        coordinator = coordinate(storage, topology, options, hub)
    except (CheckpointError, OSError) as error:
        rendezvous.refuse(error)
        raise
    driver = ParticipantDriver(topology.me, link, options.deadlines)
    rendezvous.publish(hub.address)
    return Wiring(storage, driver, coordinator)


def coordinate(
    storage: Storage, topology: Topology, options: JobOptions, hub: Hub
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
    finisher = StepFinisher()
    return CoordinatorDriver(
        storage,
        topology.participants,
        hub=hub,
        deadlines=options.deadlines,
        finisher=finisher,
        facts=JobFacts(versions, {"world_size": topology.world_size}),
        housekeep=Housekeeper(storage, options.retention, finisher),
    )
