"""The step store: a root in domain verbs, which every kind of storage must be able to implement.

What coordinators ask is `protocol.CoordinatorSteps`. How an object store maps each verb is in
docs/design/0009-step-store.md. Every verb may raise `StorageUnavailable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from stepseal.layout import Manifest
    from stepseal.steps._catalog import StepEntry
    from stepseal.steps._claims import ClaimRecord
    from stepseal.steps._folders import FolderName
    from stepseal.steps._guards import Guards
    from stepseal.steps._owned import OwnedSteps
    from stepseal.steps._pins import Pins
    from stepseal.steps._publish import Indexer
    from stepseal.steps._reading import Reading
    from stepseal.steps._resolve import Resolved
    from stepseal.steps._retire import Retirement
    from stepseal.storage import Storage

__all__ = ["ReadSteps", "RemoveSteps", "StepStore"]


class ReadSteps(Protocol):
    """The steps of a root, for readers."""

    @property
    def storage(self) -> Storage:
        """Where the files of steps and attempts lie."""
        ...

    def writable_problem(self) -> str | None:
        """Return who besides its owner can change names in the root; None for nobody."""
        ...

    @property
    def pins(self) -> Pins:
        """Steps that are kept by hand."""
        ...

    def run_id(self) -> str:
        """Return the run that the root belongs to.

        Raises:
            RootNotFound: there is neither a format marker nor a step.
            IncompatibleFormat: a newer format version made the root.
            Corrupt: the marker is damaged, or missing although there are steps.
        """
        ...

    def entries(self, run_id: str | None = None) -> tuple[StepEntry, ...]:
        """Return everything with a step's name, ascending; a root with steps never looks empty.

        Args:
            run_id: run that the manifests must name; None accepts any.
        """
        ...

    def entry(self, step: int, run_id: str | None = None) -> StepEntry:
        """Return what stands in the place of one step; damage is an answer, not an error.

        Raises:
            StepNotFound: nothing has this name.
        """
        ...

    def foreign(self) -> tuple[str, ...]:
        """Return names that look like checkpoints of somebody else."""
        ...

    def lineage_limits(self) -> dict[int, int | None]:
        """Return, per incarnation of the newest claim's lineage, the last step that counts."""
        ...

    def reading(self, manifest: Manifest) -> Reading:
        """Return a context manager that keeps a step in place while it is read."""
        ...


class StepStore(ReadSteps, Protocol):
    """The steps of a root, for participants and for what they start."""

    def find_nonce(self, attempt_key: str) -> str | None:
        """Return the nonce of an attempt, by which a participant knows that it sees the same root.

        Returns:
            None where there is no such attempt.
        """
        ...

    def resolve(self, step: int, attempt: str, attempt_key: str) -> Resolved:
        """Look for an attempt whose outcome is not known; see `protocol.ResolveAttempt`."""
        ...

    def own(self, indexer: Indexer, *, lease_s: float) -> OwnedSteps:
        """Make the root if it is missing, and return it for its coordinator.

        Args:
            indexer: writes the index and inspects files.
            lease_s: longest time from the selection of a candidate to the claim.
        """
        ...

    def removal(self) -> RemoveSteps:
        """Return the root for whoever removes steps."""
        ...


class RemoveSteps(Protocol):
    """The steps of a root, for whoever removes them."""

    def now_s(self) -> float:
        """Return Unix time, against which graces and leases are judged."""
        ...

    def entries(self, run_id: str) -> tuple[StepEntry, ...]:
        """Return everything with a step's name, ascending."""
        ...

    def claims(self) -> tuple[ClaimRecord, ...]:
        """Return all claims, oldest first; ask after `entries`."""
        ...

    def guards(self) -> Guards:
        """Return what protects steps now."""
        ...

    def superseded(self) -> tuple[str, ...]:
        """Return the names of what commits and prunes put aside."""
        ...

    def trash(self) -> tuple[str, ...]:
        """Return the names of what is hidden and may be destroyed."""
        ...

    def reasons_to_go_back(self, folder: FolderName, guards: Guards) -> str:
        """Return why something hidden must be shown again; empty when it may be destroyed."""
        ...

    def retirement(
        self, incarnation: int, *, trash_grace_s: float, trashed: Collection[str]
    ) -> Retirement:
        """Return what hides steps, looks again, and destroys or shows them."""
        ...

    def sweep(self, incarnation: int) -> None:
        """Remove what crashes of earlier incarnations left."""
        ...
