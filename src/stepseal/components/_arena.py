"""Private memory for captured bytes.

The arena is touched once and used again by every save, so that a capture costs about one memcpy of
the state. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from typing import Any

from stepseal.components._torch_in_use import torch_in_use
from stepseal.errors import InvalidInput, StorageUnavailable

__all__ = ["Arena", "new_memory", "slot_bytes"]

_ALIGNMENT = 64
_MIN_REGION_BYTES = 16 << 20
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every CUDA context


def new_memory(size_bytes: int) -> mmap.mmap:
    """Return page-aligned anonymous memory of at least one byte, not touched yet.

    Raises:
        StorageUnavailable: the system has no memory.
    """
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise StorageUnavailable(
            f"staging memory cannot be allocated: {size_bytes} bytes: {error}. Free memory, or "
            "use mode='sync', which stages little.",
            errno=error.errno,
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # only an optimisation
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class _Region:
    """One page-aligned piece of anonymous memory, touched, and pinned where CUDA is in use."""

    __slots__ = ("__weakref__", "memory", "used", "view")

    def __init__(self, size_bytes: int) -> None:
        memory = new_memory(size_bytes)
        self.memory = memory
        self.view = memoryview(memory)
        self.used = 0
        # Touch every page now, and not during a save.
        if torch_in_use():
            self._touch_and_pin()
        else:
            ctypes.memset(ctypes.addressof(ctypes.c_ubyte.from_buffer(memory)), 0, size_bytes)

    def _touch_and_pin(self) -> None:
        import torch

        whole = torch.frombuffer(self.view, dtype=torch.uint8)
        whole.zero_()  # on all threads
        # A CUDA context must not come to life only because of a save.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._pin(whole.data_ptr(), len(self.view))

    def _pin(self, address: int, size_bytes: int) -> None:
        import torch

        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(address, size_bytes, _PORTABLE)) == 0:
            release = weakref.finalize(self, runtime.cudaHostUnregister, address)
            release.atexit = False  # the CUDA runtime may be gone by then


class Arena:
    """Staging memory that grows by need and is kept from save to save.

    Slices stay valid, and their memory alive, as long as somebody holds them; `reset` hands the
    same memory out again, so the caller calls it only when nobody reads the slices of the last save
    any more. Not thread-safe.

    Args:
        max_staging_bytes: most bytes to hold, None for no limit.
    """

    def __init__(self, *, max_staging_bytes: int | None = None) -> None:
        self._max_bytes = max_staging_bytes
        self._regions: list[_Region] = []
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of memory held, used or not."""
        return self._held_bytes

    def reserve(self, size_bytes: int) -> None:
        """Make sure that `size_bytes` more can be taken without touching new memory.

        Raises:
            InvalidInput: `max_staging_bytes` does not allow it.
            StorageUnavailable: the system has no memory.
        """
        size_bytes = _round_up(size_bytes, _ALIGNMENT)
        if not self._regions or self._regions[-1].used + size_bytes > len(self._regions[-1].view):
            self._grow(size_bytes)

    def take(self, size_bytes: int) -> memoryview:
        """Return the next `size_bytes` of private memory, 64-byte aligned and writable.

        Raises:
            InvalidInput: `max_staging_bytes` does not allow it.
            StorageUnavailable: the system has no memory.
        """
        if not self._regions or self._regions[-1].used + size_bytes > len(self._regions[-1].view):
            self._grow(size_bytes)
        region = self._regions[-1]
        start = region.used
        region.used = _round_up(start + size_bytes, _ALIGNMENT)
        return region.view[start : start + size_bytes]

    def reset(self) -> None:
        """Give all slices back; if the last save needed several regions, join them into one."""
        if len(self._regions) > 1:
            used = sum(region.used for region in self._regions)
            self.release()
            self._grow(used)
        for region in self._regions:
            region.used = 0

    def release(self) -> None:
        """Let go of all memory; it is freed when the last slice is dropped."""
        self._regions = []
        self._held_bytes = 0

    def _grow(self, size_bytes: int) -> None:
        needed = _round_up(max(size_bytes, 1), mmap.PAGESIZE)
        # Few regions for a first save of unknown size, and at most a quarter too much memory.
        wanted = max(needed, _MIN_REGION_BYTES, _round_up(self._held_bytes // 4, mmap.PAGESIZE))
        if self._max_bytes is not None:
            room = (self._max_bytes - self._held_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if needed > room:
                raise InvalidInput(
                    "staging memory is too small for this save: expected at most "
                    f"{self._max_bytes} bytes "
                    f"(max_staging_bytes), found at least {self._held_bytes + needed}. Raise "
                    "max_staging_bytes, or use mode='sync', which stages little.",
                    expected=self._max_bytes,
                    found=self._held_bytes + needed,
                )
            wanted = min(wanted, room)
        self._regions.append(_Region(wanted))
        self._held_bytes += wanted


def slot_bytes(size_bytes: int) -> int:
    """Return what `take` uses up of an arena for `size_bytes`."""
    return _round_up(size_bytes, _ALIGNMENT)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
