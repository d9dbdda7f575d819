"""The handle of a save: what it became, and its failure, which is never lost."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, OutcomeUnknown, WaitTimeout
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
    size_bytes: int | None = field(compare=False)
    """Bytes of the files of all participants. This and the next two are None where the coordinator
    died before it told, and storage showed the commit; and for a step that was restored."""
    blocked_s: float | None = field(compare=False)
    """Seconds for which training stood still: the longest of all participants."""
    committed_s: float | None = field(compare=False)
    """Seconds from the first call of `save` to the commit."""


class PendingSave:
    """A save whose state is captured and whose bytes are being written.

    Made by `Checkpointer.save`, and by `publish`. A failure that nobody saw raises at the next
    `save`, `publish`, `step` or `close`.
    """

    __slots__ = (
        "_area", "_call", "_driver", "_error", "_home", "_lock", "_observed", "_saved", "_step",
        "_steps", "path",
    )  # fmt: skip

    def __init__(
        self,
        call: int,
        step: int,
        root: str,
        driver: ParticipantDriver,
        steps: ResolveAttempt,
        area: Area = Area.STEPS,
    ) -> None:
        self.path = f"{root}/{area.key(step)}"
        """Folder of the step once it is committed."""
        self._step = step
        self._area = area
        self._call = call
        self._driver = driver
        self._steps = steps
        self._home = Home()
        self._lock = threading.Lock()
        self._saved: Saved | None = None
        self._error: CheckpointError | None = None
        self._observed = False

    @classmethod
    def _of_restored(
        cls, saved: Saved, root: str, driver: ParticipantDriver, steps: ResolveAttempt
    ) -> PendingSave:
        """Return the handle of a step that an earlier life of the job has committed."""
        found = cls(0, saved.step, root, driver, steps)
        found._saved = saved
        return found

    @property
    def step(self) -> int:
        """Number of the step, or version of the publication."""
        return self._step

    def __repr__(self) -> str:
        """Return the number and what is known of the outcome; does not block."""
        state = "in flight" if self._is_in_flight() else "decided"
        if self._saved is not None:
            state = "committed"
        elif self._error is not None:
            state = type(self._error).__name__
        return f"<PendingSave of {self._area.noun} {self._step}: {state}>"

    def _is_in_flight(self) -> bool:
        """Return whether the coordinator has not decided yet; looks at no storage."""
        known = self._saved is not None or self._error is not None
        return not known and self._driver.wait_outcome(self._call, 0.0) is None

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
            WaitTimeout: `timeout_s` passed; the save goes on.
            OutcomeUnknown: the coordinator is gone and storage does not tell.

        Durability: on return the step survives power loss, where the file system honours fsync.
        """
        if not self._poll(timeout_s):
            raise WaitTimeout(
                f"{self._title()}: still being written after {timeout_s:g} s; it "
                "goes on. Call wait() again.",
                step=self._step,
            )
        self._observed = True
        if self._error is not None:
            raise self._error
        assert self._saved is not None
        return self._saved

    def _title(self) -> str:
        return self._area.title(self._step)

    def _is_committed_step(self) -> bool:
        """Return True when it is known to be committed, and no publication; does not block."""
        return self._area is Area.STEPS and self._saved is not None

    def _forget(self) -> None:
        """Let the control plane drop the call once its outcome is known for good; it stays here."""
        if self._saved is not None or self._final_error():
            self._driver.forget(self._call)

    def _raise_unobserved(self) -> None:
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
                found = resolve_save(state, self._step, self._steps, self._area)
                figures = (found.size_bytes, found.blocked_s, found.committed_s)
                self._saved = Saved(self._step, self.path, found.manifest_sha256, *figures)
                self._error = None
            except CheckpointError as error:
                self._error = error
        return True

    def _final_error(self) -> bool:
        return self._error is not None and not isinstance(self._error, OutcomeUnknown)
