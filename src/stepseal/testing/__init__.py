"""The public test kit: storage in memory or with faults, conformance suites, jobs, and proofs.

Names are imported on first use: `StorageSuite` needs pytest, the rest torch or neither.
Nothing of stepseal imports this.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepseal.testing._counters import Count, FileCount, Operation, ThreadCount
    from stepseal.testing._exact import ResumableJob, assert_exact_resume
    from stepseal.testing._faults import Delay, Fail, Fault, FaultyStorage, Kill, Lose, Tear
    from stepseal.testing._identical import (
        Difference,
        assert_identical,
        find_difference,
        snapshot,
    )
    from stepseal.testing._memory import MemoryStorage
    from stepseal.testing._ranks import RanksFailed, run_ranks
    from stepseal.testing._storage_suite import StorageSuite
    from stepseal.testing._world import World

__all__ = [
    "FaultyStorage", "Fault", "Fail", "Delay", "Tear", "Lose", "Kill",
    "Operation", "Count", "ThreadCount", "FileCount",
    "MemoryStorage", "StorageSuite",
    "World", "run_ranks", "RanksFailed",
    "assert_exact_resume", "ResumableJob",
    "assert_identical", "find_difference", "Difference", "snapshot",
]  # fmt: skip

_HOMES = {
    "_faults": ("FaultyStorage", "Fault", "Fail", "Delay", "Tear", "Lose", "Kill"),
    "_counters": ("Operation", "Count", "ThreadCount", "FileCount"),
    "_memory": ("MemoryStorage",),
    "_storage_suite": ("StorageSuite",),
    "_world": ("World",),
    "_ranks": ("run_ranks", "RanksFailed"),
    "_exact": ("assert_exact_resume", "ResumableJob"),
    "_identical": ("assert_identical", "find_difference", "Difference", "snapshot"),
}


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
