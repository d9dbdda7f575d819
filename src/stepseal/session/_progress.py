"""What one participant knows of its job's history, and what that forbids."""

from __future__ import annotations

from dataclasses import dataclass

from stepseal.errors import StepExists, Tainted

__all__ = ["Progress"]


@dataclass(slots=True)
class Progress:
    """The same on all participants."""

    newest: int | None = None
    """Newest step that this job restored or committed; steps only grow from it."""
    started: bool = False
    """A save or restore was called: no more components may be added."""
    tainted: bool = False
    """Live state is a mix of two states."""

    def check_grows(self, step: int) -> None:
        """Refuse a step number at or below the newest one.

        Raises:
            StepExists: it does not grow.
        """
        if self.newest is not None and step <= self.newest:
            raise StepExists(
                f"save of step {step}: expected a step above {self.newest}, the newest one that "
                "this job restored or committed. Steps are never overwritten.",
                step=step,
                expected=f"> {self.newest}",
                found=step,
            )

    def check_not_tainted(self) -> None:
        """Refuse to go on with live state that a restore left half changed.

        Raises:
            Tainted: it did.
        """
        if self.tainted:
            raise Tainted(
                "a restore failed after it had begun to change live state: saving or training on "
                "would spread a mix of two states. Call restore() again until it succeeds, or "
                "restart the job."
            )
