"""The job that the real-process campaigns run, one function per rank, and the gates it is hit at.

A gate is a named point of a save, a restore or a close. The rank that is to be hit says on its pipe
that it reached the gate and waits there; the test then signals it. Every call is written, with its
time and what came of it, to a file outside the root.
"""

from __future__ import annotations

import dataclasses
import errno
import faulthandler
import json
import os
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from tests.multi._held import RANKS_PER_NODE, Data, held, number_of
from torch import nn
from torch._C._distributed_c10d import TCPStore
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import stepseal as ss
from stepseal import errors, protocol
from stepseal.session import JobOptions, Wiring, coordinate
from stepseal.session._job import Rendezvous, discover
from stepseal.session._nodes import node_text, numbered
from stepseal.steps import PosixSteps
from stepseal.steps._attempts import NONCE
from stepseal.storage import LocalStorage
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection

    from stepseal.components import Topology

T = TypeVar("T")

DEADLINES = ss.Deadlines(
    connect_s=20, capture_s=4, write_s=6, commit_s=4, check_s=4, apply_s=4, close_s=2,
    heartbeat_s=0.3, lost_s=1.2,
)  # fmt: skip
CALM = dataclasses.replace(
    DEADLINES, connect_s=40, capture_s=20, write_s=20, commit_s=20, check_s=20, apply_s=20,
    heartbeat_s=1.0, lost_s=15,
)  # fmt: skip
ROWS, COLUMNS = 8, 4
LIMIT_S = 60.0
"""No life of the job takes longer, whatever happens; far above the sum of its deadlines."""


@dataclass(frozen=True, slots=True)
class Life:
    """One start of the job."""

    root: str
    folder: str
    """Where events and stacks go."""
    name: str
    world: int
    gate: str | None = None
    victim: int | None = None
    """Who waits at the gate."""
    in_flight: bool = False
    """Close while the save is in flight."""
    sharded: bool = False
    connect_s: float = DEADLINES.connect_s
    sharing: str = ""
    """Of the component that has the gate, among one of each sharing; empty for PER_RANK alone."""

    @property
    def deadlines(self) -> ss.Deadlines:
        """Deadlines of the job; many ranks on few processors are slow."""
        return CALM if self.sharing else dataclasses.replace(DEADLINES, connect_s=self.connect_s)

    def file(self, kind: str, rank: int) -> Path:
        """Return the file of one rank's `kind` in this life."""
        return Path(self.folder) / f"{kind}.{self.name}.{rank}"


@dataclass(slots=True)
class Gate:
    """Where this rank stops once and waits to be hit; `hold` makes it wait for another's hit."""

    pipe: Connection[Any, Any]
    name: str | None
    hold: str | None = None
    passed: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reach(self, name: str) -> None:
        """Wait here for the test, if this is the gate."""
        with self.lock:
            if name not in (self.name, self.hold) or name in self.passed:
                return
            self.passed.add(name)
        if name == self.name:
            self.pipe.send(("reached", name))
        try:
            answer = self.pipe.recv()
        except EOFError:
            os._exit(3)  # the test is gone
        if answer == "leave":
            os._exit(0)  # without a goodbye
        if answer == "raise" and name == "save/capture":
            raise RuntimeError("hit in its state_dict")
        if answer == "raise":
            raise errors.StorageUnavailable("hit in its storage", errno=errno.ENOSPC)


class GatedHub:
    """The coordinator's lines, with gates before what it tells."""

    def __init__(self, inner: protocol.SocketHub, gate: Gate, last: str) -> None:
        self._inner = inner
        self._gate = gate
        self._last = last

    def start(self, on_message: Callable[[str, Any, str], None]) -> None:
        self._inner.start(on_message)

    def send(self, participant: str, message: Any) -> None:  # noqa: ANN401 - any message
        if isinstance(message, protocol.Candidate):
            self._gate.reach("coordinator/select")
        if isinstance(message, protocol.Restored):
            self._gate.reach("coordinator/claimed")
        if isinstance(message, protocol.Committed):
            self._gate.reach("coordinator/committed")
            if participant == self._last:
                self._gate.reach("coordinator/told")
        self._inner.send(participant, message)

    def close(self) -> None:
        self._inner.close()


class GatedRendezvous(Rendezvous):
    """A rendezvous with a gate between the coordinator's address and the connection to it."""

    gate: Gate

    def _ask(self) -> dict[str, Any]:
        answer = super()._ask()
        self.gate.reach("connect/address")
        return answer


class GatedLink(protocol.SocketLink):
    """A line with gates between its connection, its first word and its last one."""

    gate: Gate

    def start(self, on_message: Callable[[Any], None]) -> None:
        self.gate.reach("connect/reached")
        super().start(on_message)
        self.gate.reach("connect/hello")

    def send(self, message: Any) -> None:  # noqa: ANN401 - any message
        super().send(message)
        if self.gate.name == "close/said" and type(message).__name__ == "Goodbye":
            self.gate.reach("close/said")


class GatedWiring(Wiring):
    """What takes part, with a gate before the coordinator lingers for the others."""

    gate: ClassVar[Gate]

    def close(self) -> None:
        self.driver.close()
        if self.coordinator is not None:
            self.gate.reach("close/linger")
            self.coordinator.close()


class GatedDriver(protocol.ParticipantDriver):
    """A participant with gates around what it reports."""

    gate: Gate

    def vote(self, message: protocol.Checked | protocol.Applied | protocol.Rejected) -> None:
        if isinstance(message, protocol.Checked):
            self.gate.reach("restore/check")
        super().vote(message)
        if isinstance(message, protocol.Applied):
            self.gate.reach("restore/applied")

    def send_prepared(self, *args: Any) -> bool:  # noqa: ANN401 - as it is sent
        sent = super().send_prepared(*args)
        self.gate.reach("save/prepared")
        return sent


def gated_storage(root: str, gate: Gate) -> FaultyStorage:
    renamed = threading.Event()

    def before(_index: int, operation: str, key: str) -> None:
        if operation == "read":
            _reach_by_reading(gate, key)
        elif threading.current_thread().name.startswith("stepseal-write"):
            gate.reach("save/captured")
            if operation == "sync":
                gate.reach("save/write")
        elif operation == "make_dir" and "/staging/step-" in key:
            gate.reach("coordinator/begin")
        elif operation == "remove_file" and key.endswith(NONCE):
            gate.reach("coordinator/publish")
        elif operation == "rename" and "-> step-" in key:
            gate.reach("coordinator/rename")
            renamed.set()
        elif operation == "sync_dir" and renamed.is_set():
            gate.reach("coordinator/renamed")
        elif operation == "rename" and key.endswith("-> latest"):
            gate.reach("coordinator/latest")
        elif operation == "link" and "-> .stepseal/incarnations/" in key:
            gate.reach("coordinator/claim")

    return FaultyStorage(LocalStorage.create(root), before=before, reads=True)


def _reach_by_reading(gate: Gate, key: str) -> None:
    if not key.startswith("step-"):
        return
    if threading.current_thread().name == "stepseal-commit":
        gate.reach("coordinator/look")
    elif "/parts/" in key:
        gate.reach("restore/read")
    elif key.endswith(".distcp"):
        gate.reach("restore/stream")


def gated_join(gate: Gate) -> Callable[[str, JobOptions], tuple[Topology, Wiring]]:
    """Return what connects a rank as the process group join does, with gates in all parts."""

    def join(root: str, options: JobOptions) -> tuple[Topology, Wiring]:
        topology, node = discover("trainer"), node_text(None)
        rendezvous = GatedRendezvous(topology, options.deadlines)
        rendezvous.gate = gate
        steps = PosixSteps(gated_storage(root, gate))
        coordinator = None
        link: Any
        if topology.rank == 0:
            try:
                hub = rendezvous.listen(ss.__version__)
            except errors.CheckpointError as error:
                rendezvous.refuse(error)
                raise
            link = hub.link(topology.me)
            gate.reach("coordinator/listening")
            gated = GatedHub(hub, gate, topology.participants[-1])
            coordinator = coordinate(steps, topology, options, gated)
            said = {0: node, **rendezvous.gather()}
            rendezvous.publish(hub.addresses, nodes := numbered([said[i] for i in sorted(said)]))
        else:
            link, nodes = rendezvous.connect(ss.__version__, node)
            gate.reach("connect/reached")
        topology = dataclasses.replace(topology, nodes=nodes)
        driver = GatedDriver(topology.me, link, options.deadlines)
        driver.gate = gate
        rendezvous.settle(None)  # all have connected before anybody passes a safe point
        return topology, Wiring(steps, driver, coordinator)

    return join


class Log:
    """Calls of one rank, with their times on the machine's monotonic clock."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def call(self, name: str, run: Callable[[], T]) -> T | None:
        """Run a call and write what came of it; None when it raised."""
        self.put(name, "started")
        try:
            result = run()
        except Exception as error:
            self._raised(name, error)
            return None
        facts: dict[str, Any] = {}
        if isinstance(result, ss.Saved):
            facts = {"step": result.step, "sha256": result.manifest_sha256}
        if isinstance(result, ss.Restored):
            facts = {"step": result.step, "incarnation": result.incarnation}
        self.put(name, "returned", **facts)
        return result

    def _raised(self, name: str, error: Exception) -> None:
        typed = isinstance(error, errors.CheckpointError)
        kind = error.kind if isinstance(error, errors.CheckpointError) else type(error).__name__
        failures = error.failures if isinstance(error, errors.CheckpointError) else {}
        self.put(name, "raised", typed=typed, kind=kind, message=str(error), failures=failures)

    def put(self, name: str, what: str, **facts: Any) -> None:  # noqa: ANN401 - JSON
        event = {"at": time.monotonic(), "call": name, "what": what, **facts}
        self._file.write(json.dumps(event) + "\n")


def live(rank: int, life: Life, pipe: Connection[Any, Any]) -> None:
    """Run one rank of one life of the job: restore, save, save again, close."""
    errors_to = os.open(life.file("stderr", rank), os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(errors_to, 2)
    stack = life.file("stack", rank).open("w")
    faulthandler.dump_traceback_later(0.8 * LIMIT_S, file=stack)
    torch.set_num_threads(1)
    log = Log(life.file("events", rank))
    log.call("job", lambda: _job(rank, life, pipe, log))
    os._exit(0)  # a process group of which some are dead is not taken down


def _job(rank: int, life: Life, pipe: Connection[Any, Any], log: Log) -> None:
    _join_group(rank, life, pipe)
    is_victim = rank == life.victim
    gate = Gate(pipe, life.gate if is_victim else None)
    if life.gate == "save/prepared" and rank == 0 and not is_victim:
        gate.hold = "coordinator/publish"
    model = nn.Linear(COLUMNS, ROWS)
    if life.sharded:
        fully_shard(model)
    if life.sharing:
        os.environ["GROUP_RANK"] = str(rank // RANKS_PER_NODE)
    data = held(rank, life.world, gate, life.sharing)
    deadlines = life.deadlines
    gate.reach("construct/before")
    ckpt = log.call(
        "construct",
        lambda: ss.Checkpointer(life.root, deadlines=deadlines, _join=gated_join(gate)),
    )
    if ckpt is None:
        threading.Event().wait(2.0)  # the store lives in rank 0, and others may still read it
        return
    ckpt.add("model", model)
    for name, part in data.items():
        ckpt.add(name, part, sharing=part.sharing, kind=part.kind)
    gate.reach("restore/join")
    restored = log.call("restore", ckpt.restore)
    step = 0
    if restored is not None:
        step = restored.step
        log.put("values", "right" if _is_of(model, data, rank, life.world, step) else "wrong")
    _train(model, data, rank, life.world, step + 1)
    for part in data.values():
        part.is_training = True
    gate.reach("save/before")
    pending = log.call("save", lambda: ckpt.save(step + 1))
    if pending is not None and not life.in_flight:
        log.call("wait", pending.wait)
    if not life.in_flight:
        _train(model, data, rank, life.world, step + 2)
        pending = log.call("next", lambda: ckpt.save(step + 2))
        if pending is not None:
            log.call("wait next", pending.wait)
    gate.reach("close/before")
    log.call("close", ckpt.close)


def _join_group(rank: int, life: Life, pipe: Connection[Any, Any]) -> None:
    """Join over a store that rank 0 serves, so that it goes silent when rank 0 does."""
    timeout = timedelta(seconds=30)
    if rank == 0:
        store = TCPStore("127.0.0.1", 0, life.world, is_master=True, wait_for_workers=False)
        pipe.send(("port", store.port))
    else:
        port = int(pipe.recv())
        store = TCPStore("127.0.0.1", port, life.world, is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=life.world, timeout=timeout)
    dist.barrier()  # nobody is hit while another one is still joining


def _expected(rank: int, world: int, step: int, *, sharded: bool) -> torch.Tensor:
    whole = torch.arange(float(ROWS * COLUMNS)).view(ROWS, COLUMNS) + 1000.0 * step
    return whole.chunk(world)[rank] if sharded else whole


def _local(model: nn.Linear) -> torch.Tensor:
    weight = model.weight.detach()
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _train(model: nn.Linear, data: Mapping[str, Data], rank: int, world: int, step: int) -> None:
    sharded = isinstance(model.weight, DTensor)
    _local(model).copy_(_expected(rank, world, step, sharded=sharded))
    for part in data.values():
        part.fill(step)


def _is_of(model: nn.Linear, data: Mapping[str, Data], rank: int, world: int, step: int) -> bool:
    """Return whether all state of this rank is that of a step."""
    expected = _expected(rank, world, step, sharded=isinstance(model.weight, DTensor))
    parts = [part.is_of(step, number_of(name, rank)) for name, part in data.items()]
    return all(parts) and torch.equal(_local(model), expected)
