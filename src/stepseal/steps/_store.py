"""The step store as Protocols: operations on the steps of a root, for any kind of storage.

The coordinator's operations are in `protocol.CoordinatorSteps`. docs/design/0009-step-store.md maps
each operation to an object store. Every operation may raise `StorageUnavailable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stepseal.layout import Area

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from stepseal.layout import Manifest
    from stepseal.steps._catalog import StepEntry
    from stepseal.steps._claims import ClaimRecord
    from stepseal.steps._folders import FolderName
    from stepseal.steps._guards import Guards
    from stepseal.steps._owned import OwnedSteps
    from stepseal.steps._pins import Pins
    from stepseal.steps._publish import Indexer
    from stepseal.steps._publishers import PublisherWatch
    from stepseal.steps._reading import Reading
    from stepseal.steps._remembered import KnownStep
    from stepseal.steps._resolve import Resolved
    from stepseal.steps._retire import Retirement
    from stepseal.steps._unfinished import Unfinished
    from stepseal.storage import Storage

__all__ = ["ReadSteps", "RemoveSteps", "StepStore"]


class ReadSteps(Protocol):
    """The steps of a root, for readers."""

    @property
    def storage(self) -> Storage:
        """The storage that holds the files of steps and attempts."""
        ...

    def writable_problem(self) -> str | None:
        """Return which users besides the owner can change names in the root; None if none can."""
        ...

    @property
    def pins(self) -> Pins:
        """The pins, which keep steps by hand."""
        ...

    def run_id(self) -> str:
        """Return the id of the run that the root belongs to.

        Raises:
            RootNotFound: there is neither a format marker nor a step.
            IncompatibleFormat: a newer format version made the root.
            Corrupt: the marker is damaged, or missing although there are steps.
        """
        ...

    def entries(self, run_id: str | None = None, area: Area = Area.STEPS) -> tuple[StepEntry, ...]:
        """Return every entry with a canonical name, ascending.

        A root with steps never looks empty.

        Args:
            run_id: run that the manifests must name; None accepts any.
            area: steps, or publications.
        """
        ...

    def entry(self, step: int, run_id: str | None = None, area: Area = Area.STEPS) -> StepEntry:
        """Return the entry of one step, or publication; damage is reported in it, not raised.

        Raises:
            StepNotFound: the root has no entry of this name.
        """
        ...

    def newest(self, run_id: str) -> StepEntry | None:
        """Return the newest sound step of the lineage, or None; it may not be resumable.

        Reads no manifest of an older step.

        Args:
            run_id: run that the manifest must name.
        """
        ...

    def versions(self) -> tuple[int, ...]:
        """Return the number of every entry with the name of a publication, ascending.

        Reads no manifest: some may not be of this run, or damaged.
        """
        ...

    def unfinished(self) -> tuple[Unfinished, ...]:
        """Return the attempts that are not committed: saves in flight, and what is left over."""
        ...

    def watch_publisher(self) -> PublisherWatch:
        """Return what tells whether the publisher of publications lives."""
        ...

    def foreign(self) -> tuple[str, ...]:
        """Return names that look like checkpoints of other libraries."""
        ...

    def lineage_limits(self) -> dict[int, int | None]:
        """Return, per incarnation in the newest claim's lineage, the last step that counts."""
        ...

    def reading(self, manifest: Manifest) -> Reading:
        """Return a context manager that protects a step, or a publication, while it is read."""
        ...


class StepStore(ReadSteps, Protocol):
    """The steps of a root, for participants."""

    def find_nonce(self, attempt_key: str) -> str | None:
        """Return the nonce of an attempt; a participant that finds it sees the coordinator's root.

        Returns:
            None if there is no such attempt.
        """
        ...

    def resolve(self, step: int, attempt: str, attempt_key: str) -> Resolved:
        """Find out whether an attempt was committed; see `protocol.ResolveAttempt`."""
        ...

    def immovable(self) -> tuple[int, ...]:
        """Return the steps that the storage refuses to move, such as those of a container image.

        Tries it with each step, which stays where it is. Not for a root that a server keeps.
        """
        ...

    def own(self, indexer: Indexer, *, lease_s: float) -> OwnedSteps:
        """Initialise the root if needed, and return its coordinator's view.

        Args:
            indexer: writes the index and inspects files.
            lease_s: longest time from the selection of a candidate to the claim.
        """
        ...

    def removal(self, lease_clock: Callable[[], float] | None = None) -> RemoveSteps:
        """Return the view for removing steps.

        Args:
            lease_clock: Unix time by which leases are judged; None takes that of the system.
        """
        ...


class RemoveSteps(Protocol):
    """The steps of a root, for prunes and sweeps."""

    def now_s(self) -> float:
        """Return the current Unix time, for graces and leases."""
        ...

    def entries(self, run_id: str, area: Area = Area.STEPS) -> tuple[KnownStep, ...]:
        """Return every entry with a canonical name, ascending; reads changed manifests only."""
        ...

    def entry(self, step: int, run_id: str, area: Area = Area.STEPS) -> StepEntry:
        """Read the entry of one step, or publication; see `ReadSteps.entry`."""
        ...

    def claims(self) -> tuple[ClaimRecord, ...]:
        """Return all claims, oldest first; call it after `entries`."""
        ...

    def guards(self, area: Area = Area.STEPS) -> Guards:
        """Return what protects steps, or publications, now."""
        ...

    def superseded(self) -> tuple[str, ...]:
        """Return the names of superseded folders."""
        ...

    def trash(self, area: Area = Area.STEPS) -> tuple[str, ...]:
        """Return the names of hidden folders, which may be destroyed."""
        ...

    def reasons_to_go_back(self, folder: FolderName, guards: Guards) -> str:
        """Return why a hidden folder must be shown again; empty if it may be destroyed."""
        ...

    def retirement(
        self, incarnation: int, *, trash_grace_s: float, trashed: Collection[str]
    ) -> Retirement:
        """Return a `Retirement`: it hides steps, checks them again, and destroys or shows them."""
        ...

    def repair_latest(self, run_id: str) -> None:
        """Make the advisory `latest` name the newest step, if it names one that is gone."""
        ...

    def sweep(self, incarnation: int) -> None:
        """Remove leftovers of earlier incarnations."""
        ...
