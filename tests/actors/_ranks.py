"""Ranks on threads, each with a loop that nobody can call; a barrier stands for collectives."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import stepseal as ss
from stepseal import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

__all__ = ["Group", "LoopRank", "kinds"]


class LoopRank:
    """One rank; counts its steps in a component, and trains until it is told to end.

    Args:
        root: root of the coordinator.
        number: its number.
        group: the others.
    """

    def __init__(self, root: Path, number: int, group: Group) -> None:
        self.root, self.number, self.group = root, number, group
        self.state = {"step": 0}
        self.own = ss.Rank("trainer", rank=number, size=group.size)
        self.own.add("counter", self.state, sharing=ss.PER_RANK)
        self.resumed: list[ss.Restored | None] = []
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.live, daemon=True)

    def live(self) -> None:
        try:
            self.own.wait_admitted(self.root, timeout_s=60)
            if self.group.restores:
                self.resumed.append(self.own.wait_restored())
            self.loop()
        except Exception as error:  # the test looks at it
            self.error = error
        finally:
            self.group.barrier.abort()
            self.own.close()

    def loop(self) -> None:
        while self.group.goes_on(self):
            self.state["step"] += 1
            self.group.at(self)
            restored = self.own.step(self.state["step"] + self.group.skew.get(self.number, 0))
            if restored is not None:
                self.resumed.append(restored)


class Group:
    """All ranks of a role.

    Args:
        root: root of the coordinator.
        size: number of ranks.
        restores: they wait for a restore before their loop.
        at: called by each rank in each of its steps.
        skew: number of a rank to what it adds to the number of each step.
    """

    def __init__(
        self,
        root: Path,
        size: int = 2,
        *,
        restores: bool = False,
        at: Callable[[LoopRank], None] = lambda _rank: None,
        skew: dict[int, int] | None = None,
    ) -> None:
        self.size, self.restores, self.at = size, restores, at
        self.skew = skew or {}
        self.barrier = threading.Barrier(size)
        self.ending = threading.Event()
        self.ends = False
        self.ranks = [LoopRank(root, number, self) for number in range(size)]

    def goes_on(self, rank: LoopRank) -> bool:
        """Meet the others, as in a collective; all end at the same step."""
        if rank.number == 0:
            self.ends = self.ending.is_set()
        try:
            self.barrier.wait(60)
        except threading.BrokenBarrierError:
            return False
        ends = self.ends
        try:
            self.barrier.wait(60)
        except threading.BrokenBarrierError:
            return False
        return not ends

    def __enter__(self) -> Self:
        for rank in self.ranks:
            rank.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self.ending.set()
        for rank in self.ranks:
            rank.thread.join(60)
            assert not rank.thread.is_alive()

    def errors(self) -> list[Any]:
        return [rank.error for rank in self.ranks]

    def members(self) -> list[Any]:
        return [*ss.ranks("trainer", self.size)]


def kinds(found: list[Any]) -> list[str]:
    """Return the kind of error of each rank, and `None` where there is none."""
    return [one.kind if isinstance(one, errors.CheckpointError) else repr(one) for one in found]
