"""The public test kit: storage that fails on purpose, conformance suites, a job in one process.

Names are imported on first use: `StorageSuite` needs pytest, `World` needs torch, the rest neither.
Nothing of stepseal imports this.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepseal.testing._counters import Count, FileCount, Operation, ThreadCount
    from stepseal.testing._faults import Delay, Fail, Fault, FaultyStorage, Kill, Lose, Tear
    from stepseal.testing._storage_suite import StorageSuite
    from stepseal.testing._world import World

__all__ = [
    "FaultyStorage", "Fault", "Fail", "Delay", "Tear", "Lose", "Kill",
    "Operation", "Count", "ThreadCount", "FileCount",
    "StorageSuite",
    "World",
]  # fmt: skip

_HOMES = {
    "_faults": ("FaultyStorage", "Fault", "Fail", "Delay", "Tear", "Lose", "Kill"),
    "_counters": ("Operation", "Count", "ThreadCount", "FileCount"),
    "_storage_suite": ("StorageSuite",),
    "_world": ("World",),
}


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
