"""Who takes part in this job, and how its ranks find the coordinator.

The coordinator's address travels once through the process group's store; after that no collective
and no store is used. Invariants: a coordinator that cannot start tells the others why, through the
same store; no call of the store is waited for beyond `connect_s`, though a store whose server was
stopped blocks far past its own timeout.
"""

from __future__ import annotations

import itertools
import json
import queue
import secrets
import socket
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from stepseal.commit import Address, Deadlines, SocketHub, SocketLink, cause_of, error_from
from stepseal.components import Topology
from stepseal.errors import CoordinatorLost

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Rendezvous", "discover"]

_LOOPBACK = "127.0.0.1"
_GRACE_S = 1.0
"""What a store gets beyond its own timeout to answer by itself."""
_numbers = itertools.count()


def discover(role: str) -> Topology:
    """Return the topology: all ranks of the default process group, or this process alone."""
    if dist.is_available() and dist.is_initialized():
        world, rank = dist.get_world_size(), dist.get_rank()
    else:
        world, rank = 1, 0
    return Topology(rank, tuple(f"{role}/{number}" for number in range(world)))


class Rendezvous:
    """One exchange of the coordinator's address between the ranks of the default process group.

    Every rank makes one, in the same order as its others. Rank 0 then calls `listen` and `publish`
    (or `refuse`), the others call `connect`.

    Args:
        topology: who takes part; more than one participant.
        deadlines: connection limits.
        control_host: interface of rank 0 to listen on; None takes loopback when all ranks share a
            host name, else the address of rank 0's host name.

    Raises:
        CoordinatorLost: the process group's store does not answer within `connect_s`.
    """

    def __init__(self, topology: Topology, deadlines: Deadlines, control_host: str | None) -> None:
        self._topology = topology
        self._deadlines = deadlines
        self._control_host = control_host
        self._end = time.monotonic() + deadlines.connect_s
        self._prefix = f"stepseal/{next(_numbers)}"
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._set(self._host_key(topology.rank), socket.gethostname())

    def listen(self) -> SocketHub:
        """Open the coordinator's socket.

        Raises:
            CoordinatorLost: a rank did not show up within `connect_s`.
            OSError: the interface cannot be listened on.
        """
        host = self._control_host or self._own_host()
        token = secrets.token_hex(16)
        return SocketHub(host, self._topology.participants, token, self._deadlines)

    def publish(self, address: Address) -> None:
        """Tell the others where to connect."""
        self._tell({"host": address.host, "port": address.port, "token": address.token})

    def refuse(self, error: Exception) -> None:
        """Tell the others why there is no coordinator; each raises the same error."""
        cause = cause_of(error)
        self._tell({"kind": cause.kind, "message": cause.message})

    def connect(self, version: str) -> SocketLink:
        """Wait for the address and connect.

        Raises:
            CoordinatorLost: rank 0 did not answer within `connect_s`.
            CheckpointError: what rank 0 refused with.
        """
        found = json.loads(self._read(f"{self._prefix}/address", "rank 0"))
        if "kind" in found:
            raise error_from(found["kind"], f"rank 0 cannot coordinate: {found['message']}")
        address = Address(found["host"], found["port"], found["token"])
        return SocketLink(address, self._topology.me, self._deadlines, version)

    def _tell(self, answer: dict[str, Any]) -> None:
        self._set(f"{self._prefix}/address", json.dumps(answer))

    def _own_host(self) -> str:
        mine = socket.gethostname()
        ranks = range(self._topology.world_size)
        hosts = {self._read(self._host_key(rank), f"rank {rank}") for rank in ranks}
        return _LOOPBACK if hosts == {mine} else socket.gethostbyname(mine)

    def _host_key(self, rank: int) -> str:
        return f"{self._prefix}/host/{rank}"

    def _read(self, key: str, who: str) -> str:
        def read() -> bytes:
            self._store.wait([key], timedelta(seconds=self._left_s()))
            return bytes(self._store.get(key))

        found: bytes = self._within(read, f"{who} did not make its Checkpointer")
        return found.decode()

    def _set(self, key: str, value: str) -> None:
        self._within(
            lambda: self._store.set(key, value), "the process group's store did not answer"
        )

    def _left_s(self) -> float:
        return max(0.1, self._end - time.monotonic())

    def _within(self, use_store: Callable[[], Any], problem: str) -> Any:  # noqa: ANN401 - of any
        """Use the store on a thread of its own, which is left behind if the store blocks."""
        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put((use_store(), None))
            except Exception as error:
                answers.put((None, error))

        threading.Thread(target=run, name="stepseal-rendezvous", daemon=True).start()
        try:
            answer, failure = answers.get(timeout=self._left_s() + _GRACE_S)
        except queue.Empty as error:
            raise self._lost(f"{problem}, and its store is silent") from error
        if failure is None:
            return answer
        if isinstance(failure, (dist.DistError, RuntimeError)):
            raise self._lost(problem) from failure
        raise failure

    def _lost(self, problem: str) -> CoordinatorLost:
        return CoordinatorLost(
            f"control plane: {problem} within {self._deadlines.connect_s:g} s. Every rank must "
            "construct it, in the same order.",
            participant=self._topology.me,
        )
