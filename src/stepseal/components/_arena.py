"""Private memory for captured bytes.

The arena is touched once and used again by every save, so that a capture costs about one memcpy of
the state. Nothing here knows what the bytes mean. Memory that the system would kill for is not
touched: `_Region` asks before each chunk how much is left (docs/design/0022-room-and-memory.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from typing import TYPE_CHECKING, Any

from stepseal.components._headroom import find_headroom, out_of_memory
from stepseal.components._torch_in_use import torch_in_use
from stepseal.errors import InvalidInput, StorageUnavailable
from stepseal.layout import size_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.components._headroom import Headroom

__all__ = ["Arena", "new_memory", "slot_bytes"]

_ALIGNMENT = 64
_MIN_REGION_BYTES = 16 << 20
_CHUNK_BYTES = 16 << 20
"""What is touched at once, at least; a large region is touched in `_MAX_CHUNKS`."""
_MAX_CHUNKS = 64
_SPARE_BYTES = 16 << 20
"""What a refusal leaves to each sharer: the writer, and training, need some memory, too."""
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
    """One page-aligned piece of anonymous memory, touched, and pinned where CUDA is in use.

    Args:
        size_bytes: its length.
        check: called with what is left to touch, and how much of that comes next, before that is
            touched; raises where it must not be.
    """

    __slots__ = ("__weakref__", "memory", "used", "view")

    def __init__(self, size_bytes: int, check: Callable[[int, int], None]) -> None:
        memory = new_memory(size_bytes)
        self.memory = memory
        self.view = memoryview(memory)
        self.used = 0
        chunk = max(_CHUNK_BYTES, _round_up(size_bytes // _MAX_CHUNKS, mmap.PAGESIZE))
        # Touch every page now, and not during a save.
        for start in range(0, size_bytes, chunk):
            check(size_bytes - start, chunk)
            self._touch(start, min(start + chunk, size_bytes))
        if torch_in_use():
            self._pin_for_cuda()

    def _touch(self, start: int, stop: int) -> None:
        if torch_in_use():
            import torch

            torch.frombuffer(self.view[start:stop], dtype=torch.uint8).zero_()  # on all threads
        else:
            first = ctypes.c_ubyte.from_buffer(self.memory, start)
            ctypes.memset(ctypes.addressof(first), 0, stop - start)

    def _pin_for_cuda(self) -> None:
        import torch

        # A CUDA context must not come to life only because of a save.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            whole = torch.frombuffer(self.view, dtype=torch.uint8)
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
        num_sharers: number of processes on this host that may grow an arena at the same time.
        headroom: returns how much memory is left, None where this is not known.
    """

    def __init__(
        self,
        *,
        max_staging_bytes: int | None = None,
        num_sharers: int = 1,
        headroom: Callable[[], Headroom | None] = find_headroom,
    ) -> None:
        self._max_bytes = max_staging_bytes
        self.num_sharers = num_sharers
        """See `num_sharers` above; may change between two saves."""
        self._headroom = headroom
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
            StorageUnavailable: the system has no memory, or would kill for it; all is let go of.
        """
        size_bytes = _round_up(size_bytes, _ALIGNMENT)
        if not self._regions or self._regions[-1].used + size_bytes > len(self._regions[-1].view):
            self._grow(size_bytes)

    def take(self, size_bytes: int) -> memoryview:
        """Return the next `size_bytes` of private memory, 64-byte aligned and writable.

        Raises:
            InvalidInput, StorageUnavailable: see `reserve`.
        """
        if not self._regions or self._regions[-1].used + size_bytes > len(self._regions[-1].view):
            self._grow(size_bytes)
        region = self._regions[-1]
        start = region.used
        region.used = _round_up(start + size_bytes, _ALIGNMENT)
        return region.view[start : start + size_bytes]

    def shortage(self, size_bytes: int) -> str:
        """Return why not all sharers can hold as much; empty where they can, for all we know.

        Args:
            size_bytes: what each of them would hold in all.
        """
        found, more = self._headroom(), max(0, size_bytes - self._held_bytes)
        enough = self.num_sharers * more + (self._spare_bytes if more else 0)
        if found is None or found.left_bytes >= enough:
            return ""
        return f"{size_text(found.left_bytes)} are left until {found.limit}"

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
        found = self._headroom()
        if found is not None and found.left_bytes < 2 * wanted + self._spare_bytes:
            wanted = needed
        if found is not None and found.left_bytes < needed + self._spare_bytes:
            raise self._refused(needed, found)
        self._regions.append(_Region(wanted, self._check_left))
        self._held_bytes += wanted

    def _check_left(self, size_bytes: int, chunk_bytes: int) -> None:
        """Refuse to touch the next chunk unless one is left for each of those who share memory.

        So whatever of them touches next, all that was allowed fits: nobody is killed, without a
        word between them.
        """
        found = self._headroom()
        enough = self.num_sharers * chunk_bytes + self._spare_bytes
        if found is not None and found.left_bytes < enough:
            raise self._refused(size_bytes, found)

    @property
    def _spare_bytes(self) -> int:
        return self.num_sharers * _SPARE_BYTES

    def _refused(self, size_bytes: int, found: Headroom) -> StorageUnavailable:
        self.release()
        who = "" if self.num_sharers == 1 else f" {self.num_sharers} ranks share it."
        return out_of_memory(
            size_bytes,
            found,
            f"Nothing was staged.{who} Use mode='sync', which stages little, or raise the limit; "
            "max_staging_bytes sets a bound of your own.",
        )


def slot_bytes(size_bytes: int) -> int:
    """Return what `take` uses up of an arena for `size_bytes`."""
    return _round_up(size_bytes, _ALIGNMENT)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
