"""The operations that the protocol needs from the step store.

`steps` implements these Protocols. The protocol does not import `steps`, and so never accesses
storage. Every operation may raise `StorageUnavailable`. Statements about durability hold if the
storage honours sync.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from stepseal.layout import Durability, Manifest, StepRef

__all__ = [
    "CoordinatorSteps",
    "DiscardAttempts",
    "ResolveAttempt",
    "Resolution",
    "Selection",
    "StartedAttempt",
]


class StartedAttempt(Protocol):
    """An attempt that participants may write to."""

    @property
    def key(self) -> str:
        """Key of the attempt's folder."""
        ...

    @property
    def nonce(self) -> str:
        """Random text in the folder; a participant that finds it sees the same root."""
        ...


class Selection(Protocol):
    """The step to restore, and why newer steps were not chosen."""

    @property
    def ref(self) -> StepRef | None:
        """The candidate; None if there is none."""
        ...

    @property
    def attempt(self) -> str:
        """Attempt that committed the candidate; empty for a foreign folder."""
        ...

    @property
    def has_commits(self) -> bool:
        """At least one step was committed on this root, even if it is damaged or removed now."""
        ...

    @property
    def reasons(self) -> Mapping[str, str]:
        """Step name to the reason why the step was not chosen."""
        ...

    @property
    def unverified(self) -> bool:
        """The candidate is a foreign folder that no digest covers."""
        ...

    @property
    def roles(self) -> Mapping[str, str]:
        """Component of the candidate to the role that saved it."""
        ...


class DiscardAttempts(Protocol):
    """Removes aborted attempts."""

    def discard(self, attempt_key: str) -> None:
        """Remove an aborted attempt. Idempotent; may run concurrently with all other operations."""
        ...


class CoordinatorSteps(DiscardAttempts, Protocol):
    """The steps of a root, for the coordinator of one incarnation.

    Used by one thread, except for `discard`.
    """

    @property
    def run_id(self) -> str:
        """Id of the run that the root belongs to."""
        ...

    @property
    def durability(self) -> Durability:
        """The durability on this root, for manifests."""
        ...

    def claim(self, parent: StepRef | None) -> int:
        """Claim the next incarnation, which descends from `parent`; return its number.

        Raises:
            NotCurrent: other jobs kept claiming at the same time.

        Durability: on return the claim survives power loss.
        """
        ...

    def claim_unrestored(self) -> int:
        """Claim the first incarnation of a root without steps.

        Raises:
            NotRestored: the root has steps.
        """
        ...

    def begin(self, step: int, incarnation: int, attempt: str) -> StartedAttempt:
        """Create the folder of a new attempt.

        Raises:
            NotCurrent: a newer incarnation owns the root.
            StepExists: a step that must stay has this number.
        """
        ...

    def begin_publication(self, version: int, incarnation: int, attempt: str) -> StartedAttempt:
        """Create the folder of a new attempt to publish; from now on, readers see a publisher.

        Raises:
            NotCurrent: a newer incarnation owns the root.
            StepExists: a version was published that is not lower.
        """
        ...

    def publish(
        self, attempt_key: str, draft: Manifest, *, deadline_passed: Callable[[], bool]
    ) -> str:
        """Commit an attempt that all participants have prepared; return its manifest's SHA-256.

        The kind in the draft says whether it becomes a step or a publication.

        Args:
            attempt_key: key of the attempt's folder.
            draft: the manifest without the coordinator's own files.
            deadline_passed: called right before the commit point; True aborts the commit.

        Raises:
            OutcomeUnknown: the commit point may have been passed; nothing was deleted.
            Corrupt, StepExists, NotCurrent, CommitTimeout: nothing was committed.

        Durability: on return the step survives power loss.
        """
        ...

    def select(self, *, step: int | None, exclude: Collection[int], unverified: bool) -> Selection:
        """Choose the step to restore, and protect it until `claim` or `release`.

        Args:
            step: number of the step; None for the newest resumable step of the lineage.
            exclude: steps that were tried and failed.
            unverified: also accept a foreign folder if there is no step.
        """
        ...

    def release(self) -> None:
        """End the protection of a selected step that was not claimed. Never raises."""
        ...

    def close(self) -> None:
        """Do what `release` does, and show readers that no more is published. Never raises."""
        ...

    def point_latest(self, step: int) -> None:
        """Make the advisory `latest` name this step."""
        ...


class Resolution(Protocol):
    """The state of an attempt on storage."""

    @property
    def state(self) -> Literal["committed", "not committed", "unknown"]:
        """Unknown if storage does not show the outcome yet."""
        ...

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the committed manifest; empty if there is none."""
        ...


class ResolveAttempt(Protocol):
    """Finds out whether an attempt was committed, without the coordinator."""

    def resolve(self, step: int, attempt: str, attempt_key: str) -> Resolution:
        """Find out whether an attempt was committed.

        Durability: a committed step is synced again, because the coordinator may have died before
        it synced it.
        """
        ...
