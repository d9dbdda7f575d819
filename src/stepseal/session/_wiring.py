"""One of each: storage, control plane, coordinator and participant of this process, connected.

The only place that knows how the wings are put together in an SPMD job or a single process.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stepseal._version import __version__
from stepseal.components import Topology, torch_in_use
from stepseal.errors import CheckpointError
from stepseal.process import Behind, Home, LeaseTime
from stepseal.protocol import (
    CoordinatorDriver,
    Deadlines,
    InProcessHub,
    JobInfo,
    ParticipantDriver,
    Timing,
)
from stepseal.retention import Housekeeper
from stepseal.session._alone import check_alone
from stepseal.session._announcing import Announcer
from stepseal.session._display import open_display
from stepseal.session._indexer import DcpIndexer
from stepseal.session._job import Rendezvous, discover
from stepseal.session._late_root import open_late_root
from stepseal.session._listening import ControlAddress
from stepseal.session._nodes import numbered
from stepseal.steps import StepStore, open_store
from stepseal.storage import Access

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from stepseal.layout import Manifest
    from stepseal.protocol import Gate, Hub
    from stepseal.retention import Retention
    from stepseal.session._announcing import OnCommit
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
    control_host: str | None = None
    control_port: int | range | None = None
    """Where rank 0 listens for the others; None lets it find out by itself."""
    on_commit: tuple[OnCommit, ...] = ()
    """Called with each commit."""
    gates: tuple[Gate, ...] = ()
    """What writers save by themselves."""
    publish_keep: int = 2
    """How many publications stay."""
    timing: Timing = field(default_factory=Timing)
    """Triggers that depend on time alone."""
    progress: bool = True
    """Whether the coordinator shows people on a terminal how far each call is."""


_RENEWED_S = 600.0
"""Twice the time after which a reader renews its lease."""


def _writer() -> Behind:
    return Behind("stepseal-write")


@dataclass(frozen=True, slots=True)
class Wiring:
    """What one participant needs to take part."""

    steps: StepStore
    driver: ParticipantDriver
    coordinator: CoordinatorDriver | None
    """Only with the participant that hosts it (rank 0)."""
    retention: Retention | None = None
    """The same, where the coordinator is."""
    behind: Behind = field(default_factory=_writer)
    """Where its parts are written."""
    home: Home = field(default_factory=Home)
    """The process that takes part; no forked child of it does."""

    def own(self, what: str) -> Self:
        """Return this, or refuse a forked child; see `Home.check`."""
        self.home.check(what)
        return self

    def close(self) -> None:
        """Say goodbye; the coordinator lingers for the goodbye of the others. Idempotent."""
        self.driver.close()
        if self.coordinator is not None:
            self.coordinator.close()
        self.behind.close()


Join = Callable[[str, JobOptions], tuple[Topology, Wiring]]
"""Connects one participant with its job: absolute path of the root, options -> topology, wiring."""


def join_process_group(
    role: str, root: str, options: JobOptions, *, node: str, alone: bool = False
) -> tuple[Topology, Wiring]:
    """Connect this process with all ranks of the default process group, or with itself alone.

    Args:
        role: first part of the participant ids.
        root: absolute path of the root.
        options: limits, retention, how the root is made, and where rank 0 listens.
        node: text that names the node of this process, or nothing.
        alone: this process is a job by itself.

    Raises:
        InvalidInput: this process is one of several, and has no process group.
        CheckpointError: the root or the coordinator cannot be reached or used; alike on all ranks.
    """
    topology = discover(role)
    check_alone(topology, alone=alone)
    if topology.world_size == 1:
        return topology, _alone(root, topology, options)
    rendezvous = Rendezvous(topology, options.deadlines)
    if topology.rank == 0:
        return _host(root, topology, options, rendezvous, node)
    return _guest(root, topology, options, rendezvous, node)


def _alone(root: str, topology: Topology, options: JobOptions) -> Wiring:
    ControlAddress(options.control_host, options.control_port)  # wrong even where not needed
    behind = _writer()
    steps = open_store(root, access=options.access, create=True)
    hub = InProcessHub()
    coordinator = coordinate(steps, topology, options, hub)
    driver = ParticipantDriver(topology.me, hub.link(topology.me), options.deadlines)
    return Wiring(steps, driver, coordinator, options.retention, behind)


def _host(
    root: str, topology: Topology, options: JobOptions, rendezvous: Rendezvous, node: str
) -> tuple[Topology, Wiring]:
    try:
        control = ControlAddress(options.control_host, options.control_port)
        behind = _writer()
        steps = open_store(root, access=options.access, create=True)
        hub = rendezvous.listen(__version__, control)
        link = hub.link(topology.me)
        coordinator = coordinate(steps, topology, options, hub)
    except (CheckpointError, OSError) as error:
        rendezvous.refuse(error)
        raise
    driver = ParticipantDriver(topology.me, link, options.deadlines)
    try:
        told = {**rendezvous.gather(), 0: node}
        nodes = numbered([told[rank] for rank in range(topology.world_size)])
        rendezvous.publish(hub.addresses, nodes)
        rendezvous.settle(None)
    except BaseException:
        driver.close()
        coordinator.close(linger=False)  # whoever never connected says no goodbye
        raise
    wiring = Wiring(steps, driver, coordinator, options.retention, behind)
    return replace(topology, nodes=nodes), wiring


def _guest(
    root: str, topology: Topology, options: JobOptions, rendezvous: Rendezvous, node: str
) -> tuple[Topology, Wiring]:
    addresses, limit_s, nodes = rendezvous.find(node)
    end = time.monotonic() + limit_s
    driver, failure = None, None
    try:
        behind = _writer()
        link = rendezvous.join(addresses, limit_s, __version__)
        driver = ParticipantDriver(topology.me, link, options.deadlines)
        left_s = max(0.0, end - time.monotonic())
        steps = open_late_root(root, options.access, left_s, "rank 0")
    except Exception as error:
        failure = error
    try:
        rendezvous.settle(failure)
    except BaseException:
        if driver is not None:
            driver.close()
        raise
    assert driver is not None
    return replace(topology, nodes=nodes), Wiring(steps, driver, None, behind=behind)


def coordinate(
    steps: StepStore, topology: Topology, options: JobOptions, hub: Hub
) -> CoordinatorDriver:
    """Start the coordinator of a job.

    Args:
        steps: the root.
        topology: who makes the calls; without participants, the coordinator opens them.
        options: limits and retention.
        hub: connections.

    Raises:
        CheckpointError: the root cannot be initialised, or a thread cannot be had.
    """
    versions = {"stepseal": __version__, "python": platform.python_version()}
    if torch_in_use():
        import torch

        versions["torch"] = str(torch.__version__)
    indexer = DcpIndexer()
    limits = options.deadlines
    lease_s = limits.check_s + limits.apply_s + limits.commit_s
    try:
        announce = Announcer(options.on_commit, steps.storage, limits.close_s)
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
        job=JobInfo(versions),
        housekeep=Housekeeper(
            steps.removal(LeaseTime(_RENEWED_S)),
            options.retention,
            inspect,
            publish_keep=options.publish_keep,
        ),
        announce=announce,
        gates=options.gates,
        timing=options.timing,
        show=open_display(progress=options.progress),
    )
