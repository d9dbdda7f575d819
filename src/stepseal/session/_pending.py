"""The handle of a save: what it became, and its failure, which is never lost."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, OutcomeUnknown
from stepseal.layout import Area
from stepseal.process import Home
from stepseal.protocol import ParticipantDriver, resolve_save

if TYPE_CHECKING:
    from stepseal.protocol import ResolveAttempt

__all__ = ["PendingSave", "Saved"]


@dataclass(frozen=True, slots=True)
class Saved:
    """A committed, durable step, or a publication."""

    step: int
    """Number of the step, or version of the publication."""
    path: str
    """Its folder."""
    manifest_sha256: str


class PendingSave:
    """A save whose state is captured and whose bytes are being written.

    Made by `Checkpointer.save`, and by `publish`. A failure that nobody saw raises at the next
    `save`, `publish`, `step` or `close`.
    """

    def __init__(
        self,
        call: int,
        step: int,
        root: str,
        driver: ParticipantDriver,
        steps: ResolveAttempt,
        area: Area = Area.STEPS,
    ) -> None:
        self.step = step
        """Number of the step, or version of the publication."""
        self.area = area
        self._call = call
        self._path = f"{root}/{area.key(step)}"
        self._driver = driver
        self._steps = steps
        self._home = Home()
        self._lock = threading.Lock()
        self._saved: Saved | None = None
        self._error: CheckpointError | None = None
        self._observed = False

    @property
    def call(self) -> int:
        """Number of the call, for the control plane."""
        return self._call

    def committed(self) -> bool:
        """Return True when the step is known to be committed; does not block."""
        return self._saved is not None

    def forget(self) -> None:
        """Let the control plane drop the call once its outcome is known for good; it stays here."""
        if self._saved is not None or self._final_error():
            self._driver.forget(self._call)

    def done(self) -> bool:
        """Return True when the outcome is known; does not block."""
        return self._poll(0.0)

    def wait(self, timeout_s: float | None = None) -> Saved:
        """Block until the step is committed and durable.

        In a job of several ranks, call it on all of them or on none: a failure that one rank has
        seen here is not raised there again, while the others still raise it at their next call.

        Args:
            timeout_s: seconds to wait at most; None waits until the save's own deadline.

        Raises:
            ParticipantFailed: some participant failed; nothing was committed. Other errors of the
                tree likewise.
            OutcomeUnknown: `timeout_s` passed, or the coordinator is gone and storage does not
                tell.

        Durability: on return the step survives power loss, where the file system honours fsync.
        """
        if not self._poll(timeout_s):
            raise OutcomeUnknown(
                f"{self.area.title(self.step)}: still being written after {timeout_s:g} s. Call "
                "wait() again.",
                step=self.step,
            )
        self._observed = True
        if self._error is not None:
            raise self._error
        assert self._saved is not None
        return self._saved

    def raise_unobserved(self) -> None:
        """Wait for the outcome; raise its failure unless somebody saw it already."""
        self._poll(None)
        if not self._observed:
            self.wait()

    def _poll(self, timeout_s: float | None) -> bool:
        self._home.check("this PendingSave")
        if self._saved is not None or self._final_error():
            return True
        state = self._driver.wait_outcome(self._call, timeout_s)
        if state is None:
            return False
        with self._lock:
            try:
                committed = resolve_save(state, self.step, self._steps, self.area)
                self._saved = Saved(self.step, self._path, committed.manifest_sha256)
                self._error = None
            except CheckpointError as error:
                self._error = error
        return True

    def _final_error(self) -> bool:
        return self._error is not None and not isinstance(self._error, OutcomeUnknown)
