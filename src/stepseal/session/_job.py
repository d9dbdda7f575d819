"""Who takes part in this job, and how its ranks find the coordinator.

The coordinator's address travels once through the process group's store; after that no collective
and no store is used. Invariants: a coordinator that cannot start tells the others why, through the
same store; no call of the store is waited for beyond `connect_s`, though a store whose server was
stopped blocks far past its own timeout; nothing that an earlier life of the job left in the store
is taken for this one's, though torchrun keeps one store for all restarts.
"""

from __future__ import annotations

import contextlib
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

from stepseal.components import Topology
from stepseal.errors import CoordinatorLost
from stepseal.protocol import Address, Deadlines, SocketHub, SocketLink, error_from, failure_of
from stepseal.session._nodes import packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Rendezvous", "discover"]

_LOOPBACK = "127.0.0.1"
_GRACE_S = 1.0
"""What a store gets beyond its own timeout to answer by itself."""
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.5, 5.0
"""How long a rank waits for an answer until it looks whether another life has begun."""
_numbers = itertools.count()


def discover(role: str) -> Topology:
    """Return the topology: all ranks of the default process group, or this process alone."""
    if dist.is_available() and dist.is_initialized():
        world, rank = dist.get_world_size(), dist.get_rank()
    else:
        world, rank = 1, 0
    return Topology(rank, tuple(f"{role}/{number}" for number in range(world)))


class Rendezvous:
    """One exchange between the ranks of the default process group: all to rank 0, and its answer.

    Every rank makes one, in the same order as its others. For a coordinator, rank 0 then calls
    `listen` and `publish` (or `refuse`), the others call `connect`. Whoever has something else to
    settle calls `gather` and `tell` (or `refuse`) on rank 0, and `ask` on the others. Rank 0 names
    this life of the job by a random word; each other rank answers to it with a word of its own,
    under which it finds the address: so both sides know that the other one is of this life.

    Args:
        topology: who takes part; more than one participant.
        deadlines: connection limits.
        control_host: interface of rank 0 to listen on; None takes loopback when all ranks share a
            host name, else the address of rank 0's host name.
        duty: what every rank must do to take part, for messages.

    Raises:
        CoordinatorLost: the process group's store does not answer within `connect_s`.
    """

    def __init__(
        self,
        topology: Topology,
        deadlines: Deadlines,
        control_host: str | None,
        duty: str = "make its Checkpointer",
    ) -> None:
        self._duty = duty
        self._topology = topology
        self._deadlines = deadlines
        self._control_host = control_host
        self._end = time.monotonic() + deadlines.connect_s
        self._prefix = f"stepseal/{next(_numbers)}"
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._word = secrets.token_hex(8)
        self._words: dict[int, str] = {}
        self._notes: dict[int, Any] = {}
        self._note: Any = None
        self._hosts: set[str] = {socket.gethostname()}
        self._met = False
        if topology.rank == 0:
            self._set({self._life_key: self._word})

    def listen(self, version: str) -> SocketHub:
        """Open the coordinator's socket, once every rank has shown up; only `version` may enter.

        Raises:
            CoordinatorLost: a rank did not show up within `connect_s`.
            OSError: the interface cannot be listened on.
        """
        self._meet()
        mine = socket.gethostname()
        own = _LOOPBACK if self._hosts == {mine} else socket.gethostbyname(mine)
        token = secrets.token_hex(16)
        host = self._control_host or own
        return SocketHub(host, self._topology.participants, token, self._deadlines, version)

    def publish(self, address: Address, nodes: Iterable[int]) -> None:
        """Tell the others where to connect, and the node of each rank."""
        where = {"host": address.host, "port": address.port, "token": address.token}
        self._tell({**where, "nodes": packed(nodes)})

    def refuse(self, error: Exception) -> None:
        """Tell the others why there is no coordinator; each raises the same error."""
        cause = failure_of(error)
        with contextlib.suppress(CoordinatorLost):
            if not self._met:
                self._meet()
        with contextlib.suppress(CoordinatorLost):
            self._tell({"kind": cause.kind, "message": cause.message})

    def connect(self, version: str, node: str) -> tuple[SocketLink, tuple[int, ...]]:
        """Say our node, wait for the address and connect; return the node of each rank, too.

        Raises:
            CoordinatorLost: rank 0 did not answer within `connect_s`.
            CheckpointError: what rank 0 refused with.
        """
        found = self.ask(node)
        if "kind" in found:
            raise error_from(found["kind"], f"rank 0 cannot coordinate: {found['message']}")
        address = Address(found["host"], found["port"], found["token"])
        link = SocketLink(address, self._topology.me, self._deadlines, version)
        return link, unpacked(found["nodes"])

    def gather(self) -> dict[int, Any]:
        """Return what each other rank said to `ask` or `connect`; only rank 0 calls it.

        Raises:
            CoordinatorLost: a rank did not show up in time.
        """
        if not self._met:
            self._meet()
        return self._notes

    def tell(self, answer: dict[str, Any]) -> None:
        """Give all others their answer."""
        self._tell(answer)

    def ask(self, note: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Say something to rank 0 and return its answer.

        Raises:
            CoordinatorLost: rank 0 did not answer in time.
        """
        self._note = note
        return self._ask()

    def _meet(self) -> None:
        """Take the word and the host of every other rank; raise for the first one missing."""
        self._met = True
        missing: CoordinatorLost | None = None
        for rank in range(1, self._topology.world_size):
            try:
                found = json.loads(self._read(self._rank_key(self._word, rank), f"rank {rank}"))
            except CoordinatorLost as error:
                missing = missing or error
                if time.monotonic() > self._end + _GRACE_S:
                    break
            else:
                self._words[rank] = found["word"]
                self._hosts.add(found["host"])
                self._notes[rank] = found["note"]
        if missing is not None:
            raise missing

    def _tell(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer)
        words = self._words.values()
        self._set({self._answer_key(self._word, word): text for word in words})

    def _ask(self) -> dict[str, Any]:
        """Return rank 0's answer to our word; names of earlier lives are given up on the way."""
        facts = {"host": socket.gethostname(), "word": self._word, "note": self._note}
        mine = json.dumps(facts)
        end = self._end + _GRACE_S  # rank 0 may be saying right now who is missing
        look_s = _FIRST_LOOK_S
        while True:
            life = self._read(self._life_key, "rank 0")
            self._set({self._rank_key(life, self._topology.rank): mine})
            begun = time.monotonic()
            limit_s = max(0.001, min(look_s, end - begun))
            try:
                answer = self._read(self._answer_key(life, self._word), "rank 0", limit_s)
            except CoordinatorLost as error:
                now = time.monotonic()
                if now >= end or now - begun < 0.5 * limit_s:  # time is up, or the store is gone
                    raise self._missing(life) or error from error
                look_s = min(2 * look_s, _LONGEST_LOOK_S)
            else:
                found: dict[str, Any] = json.loads(answer)
                return found

    def _missing(self, life: str) -> CoordinatorLost | None:
        """Return an error that names the first rank that rank 0 must be waiting for, if any."""

        def look() -> int | None:
            for rank in range(1, self._topology.world_size):
                if not self._store.check([self._rank_key(life, rank)]):
                    return rank
            return None

        with contextlib.suppress(CoordinatorLost):
            rank: int | None = self._within(look, 0.0, "the process group's store did not answer")
            if rank is not None:
                return self._lost(f"rank {rank} did not {self._duty}")
        return None

    @property
    def _life_key(self) -> str:
        return f"{self._prefix}/life"

    def _rank_key(self, life: str, rank: int) -> str:
        return f"{self._prefix}/{life}/rank/{rank}"

    def _answer_key(self, life: str, word: str) -> str:
        return f"{self._prefix}/{life}/answer/{word}"

    def _left_s(self) -> float:
        return max(0.001, self._end - time.monotonic())

    def _read(self, key: str, who: str, limit_s: float | None = None) -> str:
        timeout_s = self._left_s() if limit_s is None else limit_s

        def read() -> bytes:
            self._store.wait([key], timedelta(seconds=timeout_s))
            return bytes(self._store.get(key))

        found: bytes = self._within(read, timeout_s, f"{who} did not {self._duty}")
        return found.decode()

    def _set(self, values: Mapping[str, str]) -> None:
        def write() -> None:
            for key, value in values.items():
                self._store.set(key, value)

        self._within(write, self._left_s(), "the process group's store did not answer")

    def _within(self, use_store: Callable[[], Any], timeout_s: float, problem: str) -> Any:  # noqa: ANN401 - of any
        """Use the store on a thread of its own, which is left behind if the store blocks."""
        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put((use_store(), None))
            except Exception as error:
                answers.put((None, error))

        threading.Thread(target=run, name="stepseal-rendezvous", daemon=True).start()
        try:
            answer, failure = answers.get(timeout=timeout_s + _GRACE_S)
        except queue.Empty as error:
            raise self._lost(f"{problem}, and its store is silent") from error
        if failure is None:
            return answer
        if isinstance(failure, (dist.DistError, RuntimeError)):
            raise self._lost(problem) from failure
        raise failure

    def _lost(self, problem: str) -> CoordinatorLost:
        return CoordinatorLost(
            f"control plane: {problem} within {self._deadlines.connect_s:g} s. Every rank must do "
            "so, in the same order.",
            participant=self._topology.me,
        )
