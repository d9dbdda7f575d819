"""Who takes part in this job, and how its ranks find the coordinator.

The coordinator's addresses travel once through the process group's store; after that no collective
and no store is used. Invariants: a coordinator that cannot start tells the others why, through the
same store, and so does a rank that cannot connect, so that all raise alike; no call of the store is
waited for beyond `connect_s`, though a store whose server was stopped blocks far past its own
timeout; nothing that an earlier life of the job left in the store is taken for this one's, though
torchrun keeps one store for all restarts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import secrets
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from stepseal.components import Topology
from stepseal.errors import CoordinatorLost, ParticipantFailed
from stepseal.process import start_thread
from stepseal.protocol import (
    Address,
    Deadlines,
    SocketHub,
    SocketLink,
    error_from,
    failure_of,
    reach,
)
from stepseal.session._host import host_id
from stepseal.session._listening import ControlAddress, choose_hosts, open_listeners
from stepseal.session._nodes import packed, unpacked
from stepseal.session._verdicts import error_of, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Rendezvous", "discover"]

_GRACE_S = 1.0
"""What a store gets beyond its own timeout to answer by itself."""
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.5, 5.0
"""How long a rank waits for an answer until it looks whether another life has begun."""
_REACH_SHARE = 0.8
"""Part of the time that is left in which a rank tries to connect; the rest is for its report."""
_DUTY = "start the Checkpointer on all ranks"
_numbers = itertools.count()


def discover(role: str) -> Topology:
    """Return the topology: all ranks of the default process group, or this process alone."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        world, rank = dist.get_world_size(), dist.get_rank()
    else:
        world, rank = 1, 0
    return Topology(rank, tuple(f"{role}/{number}" for number in range(world)))


class Rendezvous:
    """One exchange between the ranks of the default process group: all to rank 0, and its answer.

    Every rank makes one, in the same order as its others. For a coordinator, rank 0 then calls
    `listen` and `publish` (or `refuse`), and the others call `find` and `join` (or `connect`, which
    is both); unless rank 0 refused, all call `settle`. Whoever has something else to settle calls
    `gather` and `tell` (or `refuse`) on rank 0, and `ask` on the others. Rank 0 names this life of
    the job by a random word; each other rank answers to it with a word of its own, under which it
    finds the addresses: so both sides know that the other one is of this life.

    Args:
        topology: who takes part; more than one participant.
        deadlines: connection limits.
        duty: what every rank must do to take part, for messages.

    Raises:
        CoordinatorLost: the process group's store does not answer within `connect_s`.
    """

    def __init__(
        self,
        topology: Topology,
        deadlines: Deadlines,
        duty: str = "make its Checkpointer",
    ) -> None:
        import torch.distributed as dist

        self._duty = duty
        self._topology = topology
        self._deadlines = deadlines
        self._end = time.monotonic() + deadlines.connect_s
        self._prefix = f"stepseal/{next(_numbers)}"
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._word = secrets.token_hex(8)
        self._words: dict[int, str] = {}
        self._notes: dict[int, Any] = {}
        self._note: Any = None
        self._host = host_id()
        self._hosts: set[str] = {self._host}
        self._life = self._word if topology.rank == 0 else ""
        self._met = False
        if topology.rank == 0:
            self._set({self._life_key: self._word})

    def listen(self, version: str, control: ControlAddress | None = None) -> SocketHub:
        """Open the coordinator's sockets, once every rank has shown up; only `version` may enter.

        Loopback alone where all ranks are on one host, else every address of this host.

        Raises:
            CoordinatorLost: a rank did not show up within `connect_s`.
            InvalidInput: what `control` says cannot be used.
        """
        self._meet()
        control = control or ControlAddress()
        one_host = self._hosts == {self._host}
        hosts = self._within(
            lambda: choose_hosts(control, one_host=one_host, towards=_host_of(self._store)),
            self._left_s(),
            f"rank 0 did not find its own addresses ({control})",
        )
        listeners = open_listeners(control, hosts)
        token = secrets.token_hex(16)
        return SocketHub(listeners, self._topology.participants, token, self._deadlines, version)

    def publish(self, addresses: Sequence[Address], nodes: Iterable[int]) -> None:
        """Tell the others where to connect, best first, and the node of each rank."""
        places = [[address.host, address.port] for address in addresses]
        answer = {"places": places, "token": addresses[0].token, "left_s": self._left_s()}
        self._tell({**answer, "nodes": packed(nodes)})

    def refuse(self, error: Exception) -> None:
        """Tell the others why there is no coordinator; each raises the same error."""
        cause = failure_of(error)
        with contextlib.suppress(CoordinatorLost):
            if not self._met:
                self._meet()
        with contextlib.suppress(CoordinatorLost):
            self._tell({"kind": cause.kind, "message": cause.message})
            self._linger()

    def connect(self, version: str, node: str) -> tuple[SocketLink, tuple[int, ...]]:
        """Say our node, connect to rank 0, and return the node of each rank, too.

        Raises:
            CoordinatorLost: rank 0 did not answer within `connect_s`, or no address leads to it.
            CheckpointError: what rank 0 refused with.
        """
        addresses, limit_s, nodes = self.find(node)
        return self.join(addresses, limit_s, version), nodes

    def find(self, node: str) -> tuple[list[Address], float, tuple[int, ...]]:
        """Say our node; return rank 0's addresses, seconds to try them, the node of each rank.

        From here on the time that rank 0 has left counts on all ranks, so all give up together.

        Raises:
            CoordinatorLost: rank 0 did not answer within `connect_s`.
            CheckpointError: what rank 0 refused with.
        """
        found = self.ask(node)
        if "kind" in found:
            self._say_heard()
            raise error_from(found["kind"], f"rank 0 cannot coordinate: {found['message']}")
        addresses = [Address(host, port, found["token"]) for host, port in found["places"]]
        self._end = time.monotonic() + found["left_s"]
        return addresses, _REACH_SHARE * found["left_s"], unpacked(found["nodes"])

    def join(self, addresses: Sequence[Address], limit_s: float, version: str) -> SocketLink:
        """Connect to the first of the addresses that proves to be rank 0's.

        Raises:
            CoordinatorLost: none does; `problems` says why.
        """
        me = self._topology.me
        connection = reach(addresses, me, limit_s)
        return SocketLink(addresses[0], me, self._deadlines, version, connection)

    def settle(self, error: Exception | None) -> None:
        """Return if every rank is connected; else raise, on all ranks alike.

        Args:
            error: why this rank is not connected, or None.

        Raises:
            CheckpointError: a rank is not; `failures` says why.
        """
        mine = None if error is None else msgspec.to_builtins(failure_of(error))
        if self._topology.rank:
            self._set({self._key("joined", self._word): json.dumps(mine)})
            try:
                limit_s = self._left_s() + 2 * _GRACE_S  # rank 0 may be saying who is missing
                answer = json.loads(self._read(self._outcome_key, "rank 0", limit_s))
            except CoordinatorLost as lost:
                raise error or lost from error
        else:
            answer = verdict(self._gather_joined(), _DUTY, "Nothing was changed.")
            self._set({self._outcome_key: json.dumps(answer)})
        if not answer:
            return
        if self._topology.rank:
            self._say_heard()
        else:
            self._linger()
        raise error_of(answer) from error

    def _gather_joined(self) -> dict[int, Any]:
        """Return what each other rank said to `settle`, or that it said nothing."""
        found: dict[int, Any] = {}
        for rank, word in self._words.items():
            try:
                found[rank] = json.loads(self._read(self._key("joined", word), f"rank {rank}"))
            except CoordinatorLost:
                limit_s = self._deadlines.connect_s
                text = f"it did not say within {limit_s:g} s that it is connected"
                found[rank] = {"kind": CoordinatorLost.kind, "message": text}
        return found

    def _say_heard(self) -> None:
        with contextlib.suppress(CoordinatorLost):
            self._set({self._key("heard", self._word): ""})

    def _linger(self) -> None:
        """Wait shortly until the others have read why all fail: the store may end with rank 0."""
        heard = [self._key("heard", word) for word in self._words.values()]

        def wait() -> None:
            self._store.wait(heard, timedelta(seconds=_GRACE_S))

        with contextlib.suppress(CoordinatorLost):
            self._within(wait, _GRACE_S, "the others did not hear why rank 0 failed")

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
        facts = {"host": self._host, "word": self._word, "note": self._note}
        mine = json.dumps(facts)
        end = self._end + _GRACE_S  # rank 0 may be saying right now who is missing
        look_s = _FIRST_LOOK_S
        while True:
            life = self._life = self._read(self._life_key, "rank 0")
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

    def _key(self, kind: str, word: str) -> str:
        return f"{self._prefix}/{self._life}/{kind}/{word}"

    @property
    def _outcome_key(self) -> str:
        return self._key("outcome", "all")

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
        """Use the store on a thread that is left behind if it blocks; here if none can be had."""
        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put((use_store(), None))
            except Exception as error:
                answers.put((None, error))

        try:
            start_thread(threading.Thread(target=run, name="stepseal-rendezvous", daemon=True))
        except ParticipantFailed:  # said later, through the same store
            run()
        try:
            answer, failure = answers.get(timeout=timeout_s + _GRACE_S)
        except queue.Empty as error:
            raise self._lost(f"{problem}, and its store is silent") from error
        if failure is None:
            return answer
        import torch.distributed as dist

        if isinstance(failure, (dist.DistError, RuntimeError)):
            raise self._lost(problem) from failure
        raise failure

    def _lost(self, problem: str) -> CoordinatorLost:
        return CoordinatorLost(
            f"control plane: {problem} within {self._deadlines.connect_s:g} s. Every rank must do "
            "so, in the same order.",
            participant=self._topology.me,
        )


def _host_of(store: Any) -> str | None:  # noqa: ANN401 - a store of torch
    """Return the host of a TCP store, under whatever wraps it; None for other stores."""
    while (inner := getattr(store, "underlying_store", None)) is not None:
        store = inner
    host = getattr(store, "host", None)
    return host if isinstance(host, str) else None
