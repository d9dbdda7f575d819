"""One of each: storage, control plane, coordinator and participant of this process, connected.

The only place that knows how the wings are put together in an SPMD job or a single process.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from stepseal._version import __version__
from stepseal.components import Topology
from stepseal.errors import CheckpointError
from stepseal.protocol import (
    CoordinatorDriver,
    Deadlines,
    InProcessHub,
    JobInfo,
    ParticipantDriver,
)
from stepseal.retention import Housekeeper
from stepseal.session._indexer import DcpIndexer
from stepseal.session._job import Rendezvous, discover
from stepseal.session._nodes import numbered
from stepseal.steps import StepStore, open_store
from stepseal.storage import Access

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.layout import Manifest
    from stepseal.protocol import Hub
    from stepseal.retention import Retention
    from stepseal.steps import StepEntry

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

    steps: StepStore
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
    role: str, root: str, options: JobOptions, *, control_host: str | None, node: str
) -> tuple[Topology, Wiring]:
    """Connect this process with all ranks of the default process group, or with itself alone.

    Args:
        role: first part of the participant ids.
        root: absolute path of the root.
        options: limits, retention, and how the root is made.
        control_host: interface of rank 0 for the control plane, or None.
        node: text that names the node of this process, or nothing.

    Raises:
        CheckpointError: the root or the coordinator cannot be reached or used; alike on all ranks.
    """
    topology = discover(role)
    if topology.world_size == 1:
        return topology, _alone(root, topology, options)
    rendezvous = Rendezvous(topology, options.deadlines, control_host)
    if topology.rank == 0:
        return _host(root, topology, options, rendezvous, node)
    link, nodes = rendezvous.connect(__version__, node)
    driver = ParticipantDriver(topology.me, link, options.deadlines)
    try:
        steps = open_store(root, access=options.access)
    except CheckpointError:
        driver.close()
        raise
    return replace(topology, nodes=nodes), Wiring(steps, driver, None)


def _alone(root: str, topology: Topology, options: JobOptions) -> Wiring:
    steps = open_store(root, access=options.access, create=True)
    hub = InProcessHub()
    coordinator = coordinate(steps, topology, options, hub)
    driver = ParticipantDriver(topology.me, hub.link(topology.me), options.deadlines)
    return Wiring(steps, driver, coordinator)


def _host(
    root: str, topology: Topology, options: JobOptions, rendezvous: Rendezvous, node: str
) -> tuple[Topology, Wiring]:
    try:
        steps = open_store(root, access=options.access, create=True)
        hub = rendezvous.listen(__version__)
        link = hub.link(topology.me)
        coordinator = coordinate(steps, topology, options, hub)
    except (CheckpointError, OSError) as error:
        rendezvous.refuse(error)
        raise
    driver = ParticipantDriver(topology.me, link, options.deadlines)
    told = {**rendezvous.gather(), 0: node}
    nodes = numbered([told[rank] for rank in range(topology.world_size)])
    rendezvous.publish(hub.address, nodes)
    return replace(topology, nodes=nodes), Wiring(steps, driver, coordinator)


def coordinate(
    steps: StepStore, topology: Topology, options: JobOptions, hub: Hub
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
    indexer = DcpIndexer()
    limits = options.deadlines
    lease_s = limits.check_s + limits.apply_s + limits.commit_s
    try:
        owned = steps.own(indexer, lease_s=lease_s)
    except BaseException:
        hub.close()
        raise

    def inspect(entry: StepEntry, manifest: Manifest) -> Sequence[str]:
        return indexer.inspect(steps.storage, entry.name, manifest, exact=False)

    return CoordinatorDriver(
        owned,
        topology.participants,
        hub=hub,
        deadlines=limits,
        job=JobInfo(versions, {"world_size": topology.world_size}),
        housekeep=Housekeeper(steps.removal(), options.retention, inspect),
    )
