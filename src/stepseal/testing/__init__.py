"""The public test kit: conformance suites for backends, and storage that fails on purpose.

`StorageSuite` needs pytest, so every name is imported on first use. Nothing of stepseal imports
this.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepseal.testing._counters import Count, FileCount, Operation, ThreadCount
    from stepseal.testing._faults import Delay, Fail, Fault, FaultyStorage, Kill, Lose, Tear
    from stepseal.testing._storage_suite import StorageSuite

__all__ = [
    "FaultyStorage", "Fault", "Fail", "Delay", "Tear", "Lose", "Kill",
    "Operation", "Count", "ThreadCount", "FileCount",
    "StorageSuite",
]  # fmt: skip

_HOMES = dict.fromkeys(__all__[:7], "_faults") | dict.fromkeys(__all__[7:11], "_counters")
_HOMES["StorageSuite"] = "_storage_suite"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
