"""What one participant knows of its job's history, and what that forbids."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, StepExists, Tainted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stepseal.session._pending import PendingSave
    from stepseal.session._reports import Restored

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
    last: PendingSave | None = None
    """The handle of `newest`; None where it was restored from a foreign folder."""
    _at: int | None = None
    """The step that the loop told last; None since a restore."""
    fresh: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Component that began anew in this life to what each manifest records of it."""

    @contextlib.contextmanager
    def tainting(self) -> Iterator[None]:
        """Remember of what fails inside whether it left live state half changed."""
        try:
            yield
        except CheckpointError as error:
            self.tainted = self.tainted or error.tainted
            raise
        except BaseException:  # interrupted, perhaps between two tensors
            self.tainted = True
            raise

    def went_on_from(self, restored: Restored | None, last: PendingSave | None = None) -> None:
        """Begin a life that goes on from what was restored, None for a fresh start.

        Args:
            restored: what was restored.
            last: the handle of that step.
        """
        self.tainted = False
        self.last, self._at = last, None
        self.newest = None if restored is None else restored.step
        self.fresh = {} if restored is None else restored.fresh

    def committed(self, pending: PendingSave) -> None:
        """Note a committed save."""
        self.newest, self.last = pending.step, pending

    def told(self, step: int) -> None:
        """Note that a training step is done."""
        self._at = step

    def saved_already(self, step: int) -> PendingSave | None:
        """Return the handle of a step that is committed, or was restored, if the loop is there."""
        return self.last if step == self.newest and self._at in (None, step) else None

    def check_grows(self, step: int) -> None:
        """Refuse a step number at or below the newest one.

        Raises:
            StepExists: it does not grow.
        """
        if self.newest is not None and step <= self.newest:
            raise StepExists(
                f"save of step {step}: expected a step above {self.newest}, the newest one that "
                "this job restored or committed. Steps are never overwritten. Count on from the "
                "restored one: step = resumed.step + 1.",
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
