"""Roots that are about to commit a step, and what goes wrong meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.steps._kit import Root

from stepseal.testing import Fault, FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage


def claimed(storage: Storage) -> Root:
    root = Root(storage)
    root.claim()
    return root


def forked(storage: Storage) -> Root:
    """Return a root whose step 20 is outside the lineage: the job fell back to step 10."""
    root = Root(storage)
    head = root.commit(10)
    root.commit(20)
    root.claim(head)
    return root


def verb(name: str, part: str = "") -> Callable[[str, str], bool]:
    return lambda operation, key: operation == name and part in key


def with_faults(root: Root, *faults: Fault) -> FaultyStorage:
    root.storage = FaultyStorage(root.storage, faults)
    return root.storage
