"""Protects a committed step while it is read offline, concurrently with a prune."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from stepseal.errors import (
    CheckpointError,
    Corrupt,
    InvalidInput,
    StepNotFound,
    StorageUnavailable,
)
from stepseal.layout import Area
from stepseal.process import Home
from stepseal.steps._attempts import attempt_at
from stepseal.steps._hidden import find_pruned
from stepseal.steps._leases import release_lease, renew_lease, take_lease
from stepseal.storage import KeyNotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from stepseal.layout import Manifest
    from stepseal.steps._leases import Lease
    from stepseal.storage import Storage

__all__ = ["Reading"]

_log = logging.getLogger("stepseal")
_TTL_S = 900.0
_NUM_WAITS = 100
_WAIT_S = 0.1
"""Seconds between two checks for a step that a prune should put back."""

T = TypeVar("T")


class Reading:
    """Protects one committed step while it is read; a context manager.

    Takes no lease if the root cannot be written or if other users can change it. If the step was
    pruned or superseded, the reader gets `StepNotFound`, never a part of a step.

    Args:
        storage: the root.
        manifest: manifest of the step.
        clock: Unix time.
        sleep: waits; tests pass their own.

    Raises:
        StepNotFound: on entry: the step is gone, or another attempt has replaced it; on exit: the
            block failed because the step was removed.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._storage = storage
        self._manifest = manifest
        self._area = manifest.area
        self._key = manifest.key
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._renew_at_s = 0.0
        self._lease: Lease | None = None
        self._home = Home()

    @property
    def is_leased(self) -> bool:
        """True while a lease keeps the step from being pruned."""
        return self._lease is not None

    def _take(self) -> Lease | None:
        now_s = self._clock()
        try:
            step, area = self._manifest.step, self._area
            lease = take_lease(self._storage, step, ttl_s=_TTL_S, now_s=now_s, area=area)
        except (StorageUnavailable, InvalidInput) as error:  # read-only, full, or shared
            self._go_unleased(error)
            return None
        self._renew_at_s = now_s + _TTL_S / 3
        return lease

    def _go_unleased(self, error: CheckpointError) -> None:
        name = self._key
        _log.info("stepseal: reading %s without a lease, so a prune may remove it: %s", name, error)

    def tick(self, *_: object) -> None:
        """Renew the lease if it is due; called regularly while reading, by any thread."""
        now_s = self._clock()
        if now_s < self._renew_at_s or not self._home.is_here:
            return
        with self._lock:
            if self._lease is None or now_s < self._renew_at_s:
                return
            self._renew_at_s = now_s + _TTL_S / 3
            try:
                self._lease = renew_lease(self._storage, self._lease, ttl_s=_TTL_S, now_s=now_s)
            except (StorageUnavailable, InvalidInput) as error:
                self._go_unleased(error)

    def look(
        self,
        look: Callable[[Callable[[int], None]], T],
        *,
        is_damaged: Callable[[T], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> T:
        """Read the step; if it seems damaged, make sure that it is in place and read it again.

        A prune that began before the lease moves the step away until it sees the lease.

        Args:
            look: reads the step; receives a callback for the number of bytes read since the last
                call.
            is_damaged: checks the result of `look`; without it, only an error counts as damage.
            progress: receives the same numbers; in the second read only those beyond the end of
                the first one.

        Raises:
            StepNotFound: the step was pruned or superseded.
            StorageUnavailable: it is not known whether the step was pruned or superseded.
        """
        seen_bytes = 0

        def look_through() -> T:
            done_bytes = 0

            def advance(num_bytes: int) -> None:
                nonlocal done_bytes, seen_bytes
                self.tick()
                done_bytes += num_bytes
                if progress is not None and done_bytes > seen_bytes:
                    progress(done_bytes - seen_bytes)
                seen_bytes = max(done_bytes, seen_bytes)

            return look(advance)

        def seems_damaged(found: T) -> bool:
            return is_damaged is not None and is_damaged(found)

        with suppress(Corrupt, KeyNotFound):
            found = look_through()
            if not seems_damaged(found):
                return found
        self.require_standing()
        found = look_through()
        if seems_damaged(found):
            self.require_standing()
        return found

    def require_standing(self) -> None:
        """Raise if the step is not at its final name any more.

        If the step is leased and a prune has moved it, wait for at most ten seconds: the prune
        reads the leases after the move, and puts the step back.

        Raises:
            StepNotFound: the step was pruned or superseded, or was not put back.
            StorageUnavailable: the root cannot be read.
        """
        why = "it was pruned or superseded"
        for _ in range(_NUM_WAITS):
            if self._stands():
                return
            if self._lease is None:
                break
            step, attempt = self._manifest.step, self._manifest.attempt
            if find_pruned(self._storage, step, attempt, self._area) is None:
                if self._stands():  # it was put back between the two checks
                    return
                break
            self._sleep(_WAIT_S)
        else:
            why = (
                f"it was pruned, is in the trash, and was not put back within "
                f"{_NUM_WAITS * _WAIT_S:g} s"
            )
            if self._area is Area.STEPS:
                why += f"; restore(step={self._manifest.step}) may find it there"
        name = self._key
        raise StepNotFound(
            f"{self._area.noun} {self._manifest.step}: attempt {self._manifest.attempt} is no "
            f"longer in {name}: {why}. List the steps again.",
            step=self._manifest.step,
            path=name,
        )

    def _stands(self) -> bool:
        return attempt_at(self._storage, self._key) == self._manifest.attempt

    def __enter__(self) -> Self:
        self._home = Home()
        self._lease = self._take()
        try:
            if self._lease is not None:
                self.require_standing()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if isinstance(exc, (Corrupt, KeyNotFound)):
                self.require_standing()
        finally:
            self._release()

    def _release(self) -> None:
        if not self._home.is_here:  # the parent of a forked child reads on
            return
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            release_lease(self._storage, lease)
        except StorageUnavailable as error:
            _log.warning("stepseal: a lease was not released and will expire: %s", error)
