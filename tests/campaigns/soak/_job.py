"""What the participants of the soak do, and what they and those beside them write down.

Words go to one file outside the root: appended with one write and synced, so that they survive the
death of who said them, in the order in which they were said.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tests.campaigns.harness._processes import new_token, read_address, write_address
from tests.campaigns.harness._states import Replica, names
from tests.multi._job import Log as Calls

import stepseal as ss
from stepseal.components import Topology
from stepseal.protocol import Deadlines, ParticipantDriver, SocketHub, SocketLink
from stepseal.session import JobOptions, Wiring, coordinate
from stepseal.steps import PosixSteps
from stepseal.storage import LocalStorage
from stepseal.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.session._wiring import Join

__all__ = ["DEADLINES", "Folder", "Plan", "Word", "Words", "train"]

DEADLINES = Deadlines(
    connect_s=8, capture_s=5, write_s=5, commit_s=5, check_s=5, apply_s=5, close_s=2,
    heartbeat_s=0.3, lost_s=1.8,
)  # fmt: skip
_NO_LIFE = 9  # what a replica is filled with that was not restored
_MOST_FAILURES = 3
"""Saves that may fail until a life gives up."""
Kind = Literal[
    "claiming", "restored", "begin", "acknowledged", "wrong", "read", "verified", "gone", "pruned",
    "pinned", "put back",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Word:
    """One line of what was said."""

    kind: Kind
    """`claiming`: about to restore; `restored`: with the step and the incarnation; `begin`: about
    to save; `acknowledged`: `wait()` returned; `wrong`: a violation that its process saw; `read`,
    `verified`, `gone`: what a reader found; `pruned`, `pinned`: done beside the job; `put back`: a
    pinned step was away, for as many seconds as the text says."""
    life: int
    rank: int
    step: int = 0
    incarnation: int = 0
    text: str = ""


class Words:
    """The file of words.

    Args:
        path: made with the first word.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def say(self, word: Word) -> None:
        """Append a word, durably."""
        values = [getattr(word, name) for name in Word.__slots__]
        line = json.dumps(values).encode() + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            assert os.write(fd, line) == len(line)
            os.fsync(fd)
        finally:
            os.close(fd)

    def all(self) -> list[Word]:
        """Return all words, oldest first."""
        if not self._path.exists():
            return []
        return [Word(*json.loads(line)) for line in self._path.read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the files of a round are."""

    path: Path

    @property
    def root(self) -> Path:
        """The root of the run."""
        return self.path / "root"

    @property
    def words(self) -> Words:
        """What was said."""
        return Words(self.path / "words")

    def calls(self, life: int, rank: int) -> Path:
        """Where a participant writes its calls."""
        return self.path / f"calls.{life}.{rank}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a life of the job does."""

    life: int
    world: int
    num_steps: int
    mode: Literal["sync", "async"]
    pause_s: float
    """Between two steps."""
    full: tuple[int, float, float] | None = None
    """A participant whose disk is full from one time after its start to another."""
    options: tuple[tuple[str, Any], ...] = ()
    """More arguments of the checkpointer."""


class _Driver(ParticipantDriver):
    """Knows its incarnation, which a fresh start does not tell its caller."""

    incarnation = 0

    def wait_order(self, call: int, timeout_s: float) -> Any:  # noqa: ANN401 - as inherited
        """Take the next word of a restore."""
        order = super().wait_order(call, timeout_s)
        self.incarnation = getattr(order, "incarnation", 0)
        return order


def train(folder: Folder, plan: Plan, rank: int, _pipe: Any) -> None:  # noqa: ANN401
    """Be one participant of one life; ends by itself, early if a call raised a typed error."""
    calls = Calls(folder.calls(plan.life, rank))
    try:
        _train(folder, plan, rank, calls)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        folder.words.say(Word("wrong", plan.life, rank, text=text))


def _train(folder: Folder, plan: Plan, rank: int, calls: Calls) -> None:
    words, life = folder.words, plan.life
    drivers: list[_Driver] = []
    join = _join(folder, plan, rank, drivers)
    ckpt = calls.call(
        "construct",
        lambda: ss.Checkpointer(
            folder.root, mode=plan.mode, deadlines=DEADLINES, _join=join, **dict(plan.options)
        ),
    )
    if ckpt is None:
        return
    replica = Replica(rank)
    replica.add_to(ckpt)
    words.say(Word("claiming", life, rank))
    if not _resume(folder, life, drivers[0], ckpt, replica, calls):
        calls.call("close", ckpt.close)
        return
    newest = replica.counters["step"] if replica.counters["life"] != _NO_LIFE else 0
    pending: ss.PendingSave | None = None
    num_failures = 0
    for step in range(newest + 10, newest + 10 * plan.num_steps + 1, 10):
        replica.fill(life, step)
        words.say(Word("begin", life, rank, step))
        before = pending
        pending = calls.call("save", functools.partial(ckpt.save, step, cut={"life": life}))
        _acknowledge(words, life, rank, before, calls)
        num_failures += pending is None
        if num_failures > _MOST_FAILURES:
            break
        time.sleep(plan.pause_s)
    _acknowledge(words, life, rank, pending, calls)
    calls.call("close", ckpt.close)


def _resume(
    folder: Folder,
    life: int,
    driver: _Driver,
    ckpt: ss.Checkpointer,
    replica: Replica,
    calls: Calls,
) -> bool:
    words, rank = folder.words, replica.rank
    found = calls.call("restore", lambda: (ckpt.restore(),))
    if found is None:
        return False
    (restored,) = found
    if restored is None:
        words.say(Word("restored", life, rank, 0, driver.incarnation))
        return True
    of = replica.counters["life"]
    difference = replica.differs_from(of, restored.step)
    if difference:
        words.say(Word("wrong", life, rank, restored.step, text=f"restored: {difference}"))
    words.say(Word("restored", life, rank, restored.step, restored.incarnation or 0, str(of)))
    return True


def _acknowledge(
    words: Words, life: int, rank: int, pending: ss.PendingSave | None, calls: Calls
) -> None:
    if pending is not None and calls.call("wait", pending.wait) is not None:
        words.say(Word("acknowledged", life, rank, pending.step))


def _join(folder: Folder, plan: Plan, rank: int, drivers: list[_Driver]) -> Join:
    """Return what connects a participant as a process group does."""

    def join(root: str, options: JobOptions) -> tuple[Topology, Wiring]:
        deadlines = options.deadlines
        topology = Topology(rank, names(plan.world))
        steps = PosixSteps(_storage(root, plan, rank))
        address = f"address.{plan.life}"
        if rank:
            found = read_address(folder.path, deadlines, address)
            link = SocketLink(found, topology.me, deadlines, ss.__version__)
            drivers.append(_Driver(topology.me, link, deadlines))
            return topology, Wiring(steps, drivers[0], None)
        hub = SocketHub("127.0.0.1", topology.participants, new_token(), deadlines)
        own = hub.link(topology.me)
        coordinator = coordinate(steps, topology, options, hub)
        drivers.append(_Driver(topology.me, own, deadlines))
        write_address(folder.path, hub.address, address)
        return topology, Wiring(steps, drivers[0], coordinator)

    return join


def _storage(root: str, plan: Plan, rank: int) -> FaultyStorage | LocalStorage:
    local = LocalStorage.create(root)
    if plan.full is None or plan.full[0] != rank:
        return local
    _, begin_s, end_s = plan.full
    begun = time.monotonic()

    def is_full(operation: str, _key: str) -> bool:
        grows = operation in ("create_file", "write", "make_dir", "link")
        return grows and begin_s <= time.monotonic() - begun < end_s

    return FaultyStorage(local, [Fault(is_full, Fail(errno.ENOSPC), sticky=True)])
