"""Workloads of the crash campaigns: what a job does, life after life, until something kills it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tests.campaigns.harness._log import Event, Kind, Log
from tests.campaigns.harness._states import Replica, digest_of, expected_step

import stepseal as ss
from stepseal.testing import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.storage import Storage

__all__ = ["DEADLINES", "WORKLOADS", "Life", "Player", "Workload"]

DEADLINES = ss.Deadlines(
    connect_s=20, capture_s=20, write_s=20, commit_s=20, check_s=20, apply_s=20, close_s=20
)
"""Far above what a healthy run needs, below the time after which a run counts as hanging."""

Mode = Literal["sync", "async"]


@dataclass(frozen=True)
class Life:
    """One incarnation of a job."""

    number: int
    """Part of every value it saves."""
    root: Path
    log: Log
    storage: Callable[[int], Storage]
    """Storage of a rank."""
    num_participants: int = 2
    keep: int | None = None
    """How many of the newest steps stay; None keeps all."""
    engine: bool = False
    """Every participant has an engine that writes a file of its own."""

    def next(self) -> Life:
        """Return the incarnation after this one."""
        return replace(self, number=self.number + 1)

    def run(self, script: Callable[[Player], None], mode: Mode) -> None:
        """Let every participant follow the script, and close."""
        keep = None if self.keep is None else ss.latest(self.keep)
        world = World(self.num_participants, self.storage, deadlines=DEADLINES, keep=keep)

        def work(rank: int, checkpointer: ss.Checkpointer) -> None:
            player = Player(rank, checkpointer, self, world.participants)
            with checkpointer:
                script(player)
            player.acknowledge()

        world.run(work, mode=mode)


class Player:
    """One participant of one life: keeps its state, and the log of what it was told."""

    def __init__(
        self, rank: int, checkpointer: ss.Checkpointer, life: Life, participants: tuple[str, ...]
    ) -> None:
        self.rank = rank
        self.replica = Replica(rank, engine=life.engine)
        self._checkpointer = checkpointer
        self._life = life
        self._participants = participants
        self._pending: ss.PendingSave | None = None
        self.replica.add_to(checkpointer)

    def restore(self) -> ss.Restored | None:
        """Resume from the newest step."""
        return self._checkpointer.restore()

    def go_back(self, step: int) -> None:
        """Resume from exactly this step, leaving newer ones outside the lineage."""
        self._note("branching", step)
        self._checkpointer.restore(step)
        self._note("branched", step)

    def save(self, step: int, *, wait: bool = True) -> None:
        """Save; without `wait` the outcome is taken at the next save, or at the end."""
        self.replica.fill(self._life.number, step)
        self._note("begin", step)
        pending = self._checkpointer.save(step, cut={"life": self._life.number})
        self.acknowledge()  # the one before is settled
        self._pending = pending
        if wait:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Wait for the save in flight and log that it is committed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._note("acknowledged", pending.wait().step)

    def _note(self, kind: Kind, step: int) -> None:
        number = self._life.number
        engine = self._life.engine
        digest = digest_of(expected_step(number, step, self._participants, engine=engine))
        self._life.log.add(Event(kind, number, step, digest))


@dataclass(frozen=True)
class Workload:
    """What a killed process did."""

    run: Callable[[Life], None]
    num_participants: int = 2
    keep: int | None = None
    """How many of the newest steps stay; None keeps all."""
    prelude: Callable[[Life], None] | None = None
    """What an earlier job did, which was killed too."""
    crash: Callable[[str, str], bool] | None = None
    """The operation before which the earlier job was killed."""
    flagless: bool = False
    """The file system knows no flag of renameat2."""
    engine: bool = False
    """Every participant has an engine that writes a file of its own."""


def _four(player: Player) -> None:
    player.restore()
    player.save(10, wait=False)
    player.save(20)
    player.save(30, wait=False)
    player.save(40, wait=False)


def _async(life: Life) -> None:
    life.run(_four, "async")


def _sync(life: Life) -> None:
    life.run(_four, "sync")


def _mixed(life: Life) -> None:
    """Two asynchronous saves, then a restart, then two synchronous ones."""

    def first(player: Player) -> None:
        player.restore()
        player.save(10, wait=False)
        player.save(20)

    def second(player: Player) -> None:
        restored = player.restore()
        assert restored is not None
        player.save(restored.step + 10)
        player.save(restored.step + 20)

    life.run(first, "async")
    life.next().run(second, "sync")


def _superseding(life: Life) -> None:
    """Go back behind two steps and save both again, in place of what is now outside the lineage."""

    def first(player: Player) -> None:
        player.restore()
        for step in (10, 20, 30):
            player.save(step)

    def second(player: Player) -> None:
        player.go_back(10)
        player.save(20, wait=False)
        player.save(30)

    life.run(first, "async")
    life.next().run(second, "async")


def _pruning(life: Life) -> None:
    """Keep one step, and after a restart also the one that was resumed from."""

    def first(player: Player) -> None:
        player.restore()
        for step in (10, 20, 30):
            player.save(step)

    def second(player: Player) -> None:
        player.restore()
        player.save(40, wait=False)
        player.save(50)

    life.run(first, "async")
    life.next().run(second, "sync")


def _three_saves(life: Life) -> None:
    def script(player: Player) -> None:
        player.restore()
        for step in (10, 20, 30):
            player.save(step)

    life.run(script, "async")


def _resuming(life: Life) -> None:
    """What the job under test does after an earlier one was killed."""

    def script(player: Player) -> None:
        restored = player.restore()
        assert restored is not None
        player.save(restored.step + 10)
        player.save(restored.step + 20)

    life.run(script, "async")


def _going_back(life: Life) -> None:
    """Save step 20 again, in place of one that is outside the lineage then."""

    def script(player: Player) -> None:
        player.go_back(10)
        player.save(20)

    life.run(script, "async")


def _in_part_of_30(operation: str, key: str) -> bool:
    return operation == "write" and ".stepseal/staging/step-30." in key and "/components/" in key


def _at_commit_of_30(operation: str, key: str) -> bool:
    return operation == "rename" and key.endswith(" -> step-30")


def _after_exchange(operation: str, key: str) -> bool:
    return operation == "rename" and " -> .stepseal/superseded/" in key


def _between_moves(operation: str, key: str) -> bool:
    """Without an exchange only: the old step 30 is aside, the new one not yet in its place."""
    return operation == "sync_dir" and key == ".stepseal/superseded"


WORKLOADS = {
    "mixed": Workload(_mixed),
    "async": Workload(_async),
    "sync": Workload(_sync),
    "alone": Workload(_mixed, num_participants=1),
    "three": Workload(_mixed, num_participants=3),
    "engines": Workload(_mixed, engine=True),
    "superseding": Workload(_superseding),
    "pruning": Workload(_pruning, keep=1),
    "after-crash-in-part": Workload(_resuming, prelude=_three_saves, crash=_in_part_of_30),
    "after-crash-at-commit": Workload(_resuming, prelude=_three_saves, crash=_at_commit_of_30),
    "after-crash-in-exchange": Workload(_resuming, prelude=_superseding, crash=_after_exchange),
    "two-moves": Workload(_going_back, prelude=_three_saves, crash=_at_commit_of_30, flagless=True),
    "after-crash-in-two-moves": Workload(
        _resuming, prelude=_superseding, crash=_between_moves, flagless=True
    ),
}
