"""The step store of a POSIX directory: one root, seen through domain verbs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepseal.layout import Area
from stepseal.steps._attempts import NONCE
from stepseal.steps._catalog import (
    list_foreign,
    list_steps,
    read_marker,
    read_step,
    step_numbers,
)
from stepseal.steps._claims import lineage_limits, read_claims
from stepseal.steps._immovable import find_immovable
from stepseal.steps._latest import newest_step
from stepseal.steps._owned import OwnedSteps
from stepseal.steps._pins import Pins
from stepseal.steps._publishers import PublisherWatch
from stepseal.steps._reading import Reading
from stepseal.steps._removal import Removal
from stepseal.steps._reopening import Reopening
from stepseal.steps._resolve import resolve_attempt
from stepseal.steps._unfinished import MAX_NONCE_BYTES, Unfinished, list_unfinished
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout import Manifest
    from stepseal.steps._catalog import StepEntry
    from stepseal.steps._publish import Indexer
    from stepseal.steps._reopening import Reopen
    from stepseal.steps._resolve import Resolved
    from stepseal.storage import Storage

__all__ = ["PosixSteps"]


class PosixSteps:
    """Implements `StepStore` on a directory; creates nothing by itself.

    Args:
        storage: the root.
        root: its path, for messages.
        writable_problem: result of the method of this name.
        is_layered: returns whether some folders may not be movable.
        reopen: see `Reopening`.
    """

    def __init__(
        self,
        storage: Storage,
        root: str = "root",
        *,
        writable_problem: Callable[[], str | None] = lambda: None,
        is_layered: Callable[[], bool] = lambda: False,
        reopen: Reopen | None = None,
    ) -> None:
        self.storage = storage
        self._is_layered = is_layered
        self._reopening = Reopening(storage, reopen)
        self._writable_problem = writable_problem
        self.pins = Pins(storage)
        self._root = root

    def writable_problem(self) -> str | None:
        """Return which other users can change names in the root; see `StepStore`."""
        return self._writable_problem()

    def run_id(self) -> str:
        """Return the id of the run that the root belongs to; see `StepStore`."""
        run_id = read_marker(self.storage, self._root)
        self._reopening.remember()
        return run_id

    def entries(self, run_id: str | None = None, area: Area = Area.STEPS) -> tuple[StepEntry, ...]:
        """Return every folder with a canonical name, ascending; see `StepStore`."""
        return list_steps(self.storage, run_id, area)

    def entry(self, step: int, run_id: str | None = None, area: Area = Area.STEPS) -> StepEntry:
        """Return the entry of one step, or publication; see `StepStore`."""
        return read_step(self.storage, step, run_id, area)

    def newest(self, run_id: str) -> StepEntry | None:
        """Return the newest sound step of the lineage, or None; see `StepStore`."""
        return newest_step(self.storage, run_id)

    def versions(self) -> tuple[int, ...]:
        """Return the number of every entry with the name of a publication; see `StepStore`."""
        return tuple(step_numbers(self.storage, Area.PUBLISHED))

    def unfinished(self) -> tuple[Unfinished, ...]:
        """Return the attempts that are not committed; see `StepStore`."""
        return list_unfinished(self.storage)

    def watch_publisher(self) -> PublisherWatch:
        """Return what tells whether the publisher of publications lives; see `StepStore`."""
        return PublisherWatch(self.storage)

    def foreign(self) -> tuple[str, ...]:
        """Return names that look like checkpoints of other libraries; see `StepStore`."""
        return tuple(entry.name for entry in list_foreign(self.storage))

    def lineage_limits(self) -> dict[int, int | None]:
        """Return the lineage of the newest claim; see `StepStore`."""
        return lineage_limits(read_claims(self.storage))

    def immovable(self) -> tuple[int, ...]:
        """Return the steps that the storage refuses to move; see `StepStore`."""
        return tuple(find_immovable(self.storage, step_numbers(self.storage)))

    def reading(self, manifest: Manifest) -> Reading:
        """Return a context manager that protects a step while it is read; see `StepStore`."""
        return Reading(self.storage, manifest)

    def find_nonce(self, attempt_key: str) -> str | None:
        """Return the nonce of an attempt, None if there is none; see `StepStore`."""
        key = f"{attempt_key}/{NONCE}"

        def look() -> bytes:
            return read_bytes(self.storage, key, MAX_NONCE_BYTES)

        try:
            found = self._reopening.between_attempts(look)
        except KeyNotFound:
            return None
        return found.decode("ascii", "replace").partition(" ")[0]

    def resolve(self, step: int, attempt: str, attempt_key: str) -> Resolved:
        """Find out whether an attempt was committed; see `protocol.ResolveAttempt`."""
        return resolve_attempt(self.storage, step, attempt, attempt_key)

    def own(self, indexer: Indexer, *, lease_s: float) -> OwnedSteps:
        """Initialise the root and return its coordinator's view; see `StepStore`."""
        return OwnedSteps(
            self.storage,
            indexer,
            lease_s=lease_s,
            clock=time.time,
            layered=self._is_layered(),
            reopening=self._reopening,
        )

    def removal(self, lease_clock: Callable[[], float] | None = None) -> Removal:
        """Return the view for removing steps; see `StepStore`."""
        return Removal(self.storage, lease_clock=lease_clock)
