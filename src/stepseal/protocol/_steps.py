"""What the protocol asks of the step store, in its own verbs.

`steps` implements these Protocols; the protocol imports nothing of it, and so reaches no storage.
Every verb may raise `StorageUnavailable`. What is said of durability holds where the storage
honours sync.
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
        """Where the attempt grows."""
        ...

    @property
    def nonce(self) -> str:
        """What a participant must find there, to know that it sees the same root."""
        ...


class Selection(Protocol):
    """The step to restore, and why newer ones were passed over."""

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
        """At least one step was committed here, whatever became of it."""
        ...

    @property
    def reasons(self) -> Mapping[str, str]:
        """Step name to why it was passed over."""
        ...

    @property
    def unverified(self) -> bool:
        """The candidate is a foreign folder that no digest covers."""
        ...


class DiscardAttempts(Protocol):
    """Removes what aborted saves left."""

    def discard(self, attempt_key: str) -> None:
        """Remove an aborted attempt. Idempotent; safe beside everything else."""
        ...


class CoordinatorSteps(DiscardAttempts, Protocol):
    """The steps of a root, for the coordinator of one incarnation.

    Used by one thread, except for `discard`.
    """

    @property
    def run_id(self) -> str:
        """Run that the root belongs to."""
        ...

    @property
    def durability(self) -> Durability:
        """What a manifest may say about power loss on this root."""
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
        """Make room for a new attempt.

        Raises:
            NotCurrent: a newer incarnation owns the root.
            StepExists: the number is taken by a step that must stay.
        """
        ...

    def publish(
        self, attempt_key: str, draft: Manifest, *, deadline_passed: Callable[[], bool]
    ) -> str:
        """Commit an attempt that everybody prepared; return the SHA-256 of its manifest.

        Args:
            attempt_key: where the attempt grew.
            draft: the manifest without the coordinator's own files.
            deadline_passed: asked right before the commit point.

        Raises:
            OutcomeUnknown: the commit point may have been passed; nothing was deleted.
            Corrupt, StepExists, NotCurrent, CommitTimeout: nothing was committed.

        Durability: on return the step survives power loss.
        """
        ...

    def select(self, *, step: int | None, exclude: Collection[int], unverified: bool) -> Selection:
        """Choose the step to restore, and protect it until `claim` or `release`.

        Args:
            step: exactly this one; None for the newest resumable step of the lineage.
            exclude: steps that were tried and failed.
            unverified: a foreign folder will do where there is no step.
        """
        ...

    def release(self) -> None:
        """End the protection of a selected step that was not claimed. Raises nothing."""
        ...

    def point_latest(self, step: int) -> None:
        """Make the advisory `latest` name this step."""
        ...


class Resolution(Protocol):
    """What storage shows of an attempt."""

    @property
    def state(self) -> Literal["committed", "not committed", "unknown"]:
        """Unknown where storage does not tell yet."""
        ...

    @property
    def manifest_sha256(self) -> str:
        """Of the committed step; else empty."""
        ...


class ResolveAttempt(Protocol):
    """Tells what became of an attempt when the coordinator cannot be asked."""

    def resolve(self, step: int, attempt: str, attempt_key: str) -> Resolution:
        """Look for an attempt whose outcome is not known.

        Durability: a step that is found is made durable, because the coordinator may have died
        before it did so.
        """
        ...
