"""The one save in flight of a participant: its handle, its writer, and the private memory it reads.

Invariant: memory that a writer may still read is never handed out again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.components import Arena
from stepseal.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.process import Behind
    from stepseal.session._pending import PendingSave
    from stepseal.session._saving import PartWriter

__all__ = ["InFlight"]

_IDLE_S = 5.0
"""How long a save that was given up may read its buffers before they are left to it."""


class InFlight:
    """Holds the save in flight and the staging memory of a participant.

    Args:
        max_staging_bytes: bound of the private memory; None for no bound.
    """

    def __init__(self, max_staging_bytes: int | None) -> None:
        self._max_staging_bytes = max_staging_bytes
        self._arena = Arena(max_staging_bytes=max_staging_bytes)
        self._writer: PartWriter | None = None
        self._reads_live = False
        self.pending: PendingSave | None = None

    def staging(self, num_sharers: int) -> Arena:
        """Return the private memory, empty; only after `settle`.

        Args:
            num_sharers: number of participants on this host.

        Raises:
            StorageUnavailable: see `Arena.reserve`.
        """
        assert self.pending is None
        self._arena.num_sharers = num_sharers
        self._arena.reset()
        return self._arena

    def shortage(self, size_bytes: int, num_sharers: int) -> str:
        """Return why saves of this size will not fit into memory; empty where they will."""
        self._arena.num_sharers = num_sharers
        return self._arena.shortage(size_bytes)

    def let_go(self) -> None:
        """Free the private memory of a save that ended before it was written.

        Another participant may have refused for want of memory.
        """
        self._arena.release()

    def start(
        self, pending: PendingSave, writer: PartWriter, behind: Behind, *, reads_live: bool
    ) -> None:
        """Let the writer go on behind.

        Args:
            pending: the handle.
            writer: not yet started.
            behind: where it writes.
            reads_live: it reads live memory, which is frozen only while the caller waits.

        Raises:
            ParticipantFailed: a thread is needed, and cannot be had; nothing is in flight.
        """
        writer.start(behind)
        self.pending = pending
        self._writer = writer
        self._reads_live = reads_live

    def title(self) -> str | None:
        """Return what is being written, such as `save of step 5`; None if nothing is."""
        pending = self.pending
        return pending._title() if pending is not None and pending._is_in_flight() else None

    def freed(self) -> None:
        """Note that the owner goes on only now; it was frozen after its capture."""
        if self._writer is not None:
            self._writer.teller.freed()

    def thaw(self) -> None:
        """Let live memory change: a writer that reads it reports nothing from here on."""
        if self._reads_live and self._writer is not None:
            self._writer.give_up()

    def settle(self) -> PendingSave | None:
        """Wait for the save in flight; raise its failure unless it was seen.

        Interrupted, it leaves the save in flight, and the next call settles it.

        Returns:
            The save, if there was one and it is committed; None for a publication.
        """
        pending = self.pending
        if pending is None:
            return None
        try:
            pending._raise_unobserved()
        except CheckpointError:
            self._end(pending)
            raise
        self._end(pending)
        return pending if pending._is_committed_step() else None

    def end(self, close: Callable[[], None]) -> None:
        """Wait for the save in flight, call `close`, and free the private memory.

        Raises:
            CheckpointError: the save in flight failed, and nobody saw it yet.
        """
        try:
            self.settle()
        finally:
            close()
            self._arena.release()

    def _end(self, pending: PendingSave) -> None:
        idle = self._writer is None
        try:
            if self._writer is not None:
                idle = self._writer.wait_idle(_IDLE_S)
        finally:  # also when this wait is interrupted
            if not idle:
                # The blocked writer keeps the old memory alive; the next save gets its own.
                self._arena = Arena(max_staging_bytes=self._max_staging_bytes)
            self._writer = None
            self.pending = None
            pending._forget()
