"""The job of the hang proofs, one function per participant: restore, save, save again, close.

Participants are processes that talk over sockets; each call is written with its time and what came
of it. The gates are those of `tests.multi._job`, with those of connecting and leaving.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaigns.harness._processes import new_token, read_address, write_address
from tests.campaigns.harness._states import Replica, names
from tests.multi._held import Data
from tests.multi._job import (
    Gate,
    GatedDriver,
    GatedHub,
    GatedLink,
    GatedWiring,
    Log,
    gated_storage,
)

import stepseal as ss
from stepseal.components import Topology
from stepseal.protocol import Deadlines, SocketHub
from stepseal.session import JobOptions, Wiring, coordinate
from stepseal.steps import PosixSteps
from stepseal.storage import LocalStorage
from stepseal.testing import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Start", "live", "make_template", "start_again"]

FIRST_LIFE, HIT_LIFE, NEXT_LIFE = 1, 2, 3
STEPS = (10, 20)
"""What the root of every case begins with."""
_CALM = Deadlines(
    connect_s=30, capture_s=30, write_s=30, commit_s=30, check_s=30, apply_s=30, close_s=30
)
"""Of starts that nobody disturbs."""
_NO_PIPE: Any = None
_OPEN = Gate(_NO_PIPE, None)


@dataclass(frozen=True, slots=True)
class Start:
    """What a participant of the job that is hit needs to know."""

    folder: Path
    world: int
    gate: str
    victim: int
    deadlines: Deadlines
    in_flight: bool = False
    """Close while the save is in flight."""
    relayed: bool = False
    """Connect through the relay."""

    @property
    def root(self) -> Path:
        """The root of the case."""
        return self.folder / "root"

    def events(self, rank: int) -> Path:
        """Where a participant writes its calls."""
        return self.folder / f"events.{rank}"


def live(start: Start, rank: int, pipe: Any) -> None:  # noqa: ANN401 - a connection
    """Be one participant of the job that is hit."""
    errors_to = os.open(start.folder / f"stderr.{rank}", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(errors_to, 2)
    gate = Gate(pipe, start.gate if rank == start.victim else None)
    if start.gate == "save/prepared" and rank == 0:
        gate.hold = "coordinator/publish"
    log = Log(start.events(rank))
    log.call("job", lambda: _job(start, rank, gate, log))


def _job(start: Start, rank: int, gate: Gate, log: Log) -> None:
    gate.reach("construct/before")
    join = _join(start, rank, gate)
    ckpt = log.call(
        "construct",
        lambda: ss.Checkpointer(start.root, deadlines=start.deadlines, _join=join),
    )
    if ckpt is None:
        return
    replica = Replica(rank)
    replica.add_to(ckpt)
    data = Data(rank, gate)
    ckpt.add("data", data, sharing=ss.PER_RANK)
    gate.reach("restore/join")
    log.call("restore", lambda: _restore(ckpt, replica))
    replica.fill(HIT_LIFE, 30)
    data.is_training = True
    gate.reach("save/before")
    pending = log.call("save", lambda: ckpt.save(30, cut={"life": HIT_LIFE}))
    if pending is not None and not start.in_flight:
        log.call("wait", pending.wait)
    if not start.in_flight:
        replica.fill(HIT_LIFE, 40)
        pending = log.call("next", lambda: ckpt.save(40, cut={"life": HIT_LIFE}))
        if pending is not None:
            log.call("wait next", pending.wait)
    gate.reach("close/before")
    log.call("close", ckpt.close)


def _restore(ckpt: ss.Checkpointer, replica: Replica) -> ss.Restored:
    """Restore; an AssertionError, which is no typed one, if it brought back anything else."""
    restored = ckpt.restore()
    assert restored is not None, "restore() returned None"
    assert restored.step == STEPS[-1], f"expected step {STEPS[-1]} restored, found {restored.step}"
    difference = replica.differs_from(FIRST_LIFE, STEPS[-1])
    assert not difference, f"restored wrong values: {difference}"
    return restored


def _join(
    start: Start, rank: int, gate: Gate
) -> Callable[[str, JobOptions], tuple[Topology, Wiring]]:
    """Return what connects a participant as a process group does, with gates in all parts."""

    def join(root: str, options: JobOptions) -> tuple[Topology, Wiring]:
        deadlines = options.deadlines
        topology = Topology(rank, names(start.world))
        steps = PosixSteps(gated_storage(root, gate))
        coordinator = None
        link: Any
        if rank == 0:
            hub = SocketHub("127.0.0.1", topology.participants, new_token(), deadlines)
            link = hub.link(topology.me)
            write_address(start.folder, hub.address, "hub" if start.relayed else "address")
            gate.reach("coordinator/listening")
            gated = GatedHub(hub, gate, topology.participants[-1])
            coordinator = coordinate(steps, topology, options, gated)
        else:
            name = f"address.{rank}" if start.relayed else "address"
            address = read_address(start.folder, deadlines, name)
            gate.reach("connect/address")
            link = GatedLink(address, topology.me, deadlines, ss.__version__)
            link.gate = gate
        driver = GatedDriver(topology.me, link, deadlines)
        driver.gate = gate
        GatedWiring.gate = gate
        return topology, GatedWiring(steps, driver, coordinator)

    return join


def _calm(root: Path, world: int, script: Callable[[int, ss.Checkpointer, Replica], None]) -> None:
    """Run a job that nobody disturbs, its participants on threads."""
    job = World(world, lambda _: LocalStorage.create(root), deadlines=_CALM)

    def work(rank: int, checkpointer: ss.Checkpointer) -> None:
        replica = Replica(rank)
        replica.add_to(checkpointer)
        checkpointer.add("data", Data(rank, _OPEN), sharing=ss.PER_RANK)
        with checkpointer:
            script(rank, checkpointer, replica)

    job.run(work)


def make_template(root: Path, world: int) -> None:
    """Make a root with two steps."""

    def script(_rank: int, checkpointer: ss.Checkpointer, replica: Replica) -> None:
        checkpointer.restore()
        for step in STEPS:
            replica.fill(FIRST_LIFE, step)
            checkpointer.save(step, cut={"life": FIRST_LIFE}).wait()

    _calm(root, world, script)


def start_again(root: Path, world: int) -> list[str]:
    """Start the job anew on what is left: it resumes from the newest step, and saves twice.

    Returns:
        What was wrong.
    """
    newest = ss.open(root).latest()
    if newest is None:
        return ["no step is left"]
    life = newest.manifest.cut["life"]
    assert isinstance(life, int)
    found: list[str] = []

    def script(rank: int, checkpointer: ss.Checkpointer, replica: Replica) -> None:
        restored = checkpointer.restore()
        if restored is None or restored.step != newest.step:
            found.append(f"start again: rank {rank}: expected {newest.step}, restored {restored}")
            return
        difference = replica.differs_from(life, restored.step)
        found.extend([f"start again: {difference}"] if difference else [])
        for step in (restored.step + 10, restored.step + 20):
            replica.fill(NEXT_LIFE, step)
            checkpointer.save(step, cut={"life": NEXT_LIFE}).wait()

    try:
        _calm(root, world, script)
    except ss.errors.CheckpointError as error:
        found.append(f"start again: {type(error).__name__}: {error}")
    return found
