"""The step store for prunes and sweeps: lists steps, reads guards, and removes steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepseal.layout import Area
from stepseal.steps._attempts import sweep
from stepseal.steps._catalog import read_step
from stepseal.steps._claims import INCARNATIONS, read_claims
from stepseal.steps._folders import parse_folder
from stepseal.steps._guards import read_guards
from stepseal.steps._latest import repair_latest
from stepseal.steps._leases import drop_expired
from stepseal.steps._pins import PINS
from stepseal.steps._publishers import drop_older
from stepseal.steps._remembered import RememberedSteps
from stepseal.steps._retire import Retirement, reasons_to_go_back
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import KeyNotFound, sweep_temporaries

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from stepseal.steps._catalog import StepEntry
    from stepseal.steps._claims import ClaimRecord
    from stepseal.steps._folders import FolderName
    from stepseal.steps._guards import Guards
    from stepseal.steps._remembered import KnownStep
    from stepseal.storage import Storage

__all__ = ["Removal"]


class Removal:
    """All operations that a prune and a sweep need; implements `RemoveSteps`.

    Args:
        storage: the root.
        clock: Unix time.
        lease_clock: Unix time by which leases are judged; None takes the same.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Callable[[], float] = time.time,
        lease_clock: Callable[[], float] | None = None,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._lease_clock = lease_clock or clock
        self._remembered: dict[tuple[str, Area], RememberedSteps] = {}

    def now_s(self) -> float:
        """Return Unix time."""
        return self._clock()

    def entries(self, run_id: str, area: Area = Area.STEPS) -> tuple[KnownStep, ...]:
        """Return every folder with a canonical name, ascending; reads changed manifests only."""
        remembered = self._remembered.get((run_id, area))
        if remembered is None:
            remembered = RememberedSteps(self._storage, run_id, area)
            self._remembered[run_id, area] = remembered
        return remembered.entries()

    def entry(self, step: int, run_id: str, area: Area = Area.STEPS) -> StepEntry:
        """Read the entry of one step, or publication."""
        return read_step(self._storage, step, run_id, area)

    def claims(self) -> tuple[ClaimRecord, ...]:
        """Return all claims, oldest first."""
        return read_claims(self._storage)

    def guards(self, area: Area = Area.STEPS) -> Guards:
        """Return the current guards."""
        return read_guards(self._storage, self._lease_clock(), area)

    def superseded(self) -> tuple[str, ...]:
        """Return the names of superseded folders."""
        return self._names(SUPERSEDED)

    def trash(self, area: Area = Area.STEPS) -> tuple[str, ...]:
        """Return the names of folders in the trash that are not of another area."""
        names = ((name, parse_folder(name, None)) for name in self._names(TRASH))
        return tuple(name for name, found in names if (found.area if found else Area.STEPS) is area)

    def _names(self, place: str) -> tuple[str, ...]:
        try:
            return tuple(entry.name for entry in self._storage.list_dir(place))
        except KeyNotFound:  # a copied root may lack it
            return ()

    def reasons_to_go_back(self, folder: FolderName, guards: Guards) -> str:
        """Return why a whole folder in the trash must be put back; empty if it may be deleted."""
        return reasons_to_go_back(self._storage, folder, guards)

    def retirement(
        self, incarnation: int, *, trash_grace_s: float, trashed: Collection[str]
    ) -> Retirement:
        """Return a `Retirement`, which removes steps for this incarnation."""
        return Retirement(
            self._storage,
            incarnation,
            trash_grace_s=trash_grace_s,
            trashed=trashed,
            clock=self._clock,
            lease_clock=self._lease_clock,
        )

    def repair_latest(self, run_id: str) -> None:
        """Make `latest` name the newest step, if it names one that is gone."""
        repair_latest(self._storage, run_id)

    def sweep(self, incarnation: int) -> None:
        """Remove leftovers of crashes: staging of earlier incarnations, leases, temporaries.

        Raises:
            StorageUnavailable: something could not be removed; a later sweep tries again.
        """
        sweep(self._storage, incarnation)
        drop_older(self._storage, incarnation)
        drop_expired(self._storage, self._lease_clock())
        for key in ("", INCARNATIONS, PINS):
            sweep_temporaries(self._storage, key, now_s=self._clock())
