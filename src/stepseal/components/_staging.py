"""Private memory for captured bytes, and the copy of tensors into it.

The arena is touched once and used again by every save, so that a capture costs about one memcpy of
the state. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from typing import TYPE_CHECKING, Any

import torch

from stepseal.errors import InvalidInput, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.components._types import Staging

__all__ = ["Arena", "byte_view", "copy_out", "tensor_over"]

_ALIGNMENT = 64
_MIN_BLOCK_BYTES = 16 << 20
# Above this size torch's copy uses several threads; below it the call itself is what costs.
_PARALLEL_BYTES = 1 << 20
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every CUDA context


class _Block:
    """One page-aligned piece of anonymous memory, touched, and pinned where CUDA is in use."""

    __slots__ = ("__weakref__", "memory", "used", "view")

    def __init__(self, size_bytes: int) -> None:
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
        self.memory = memory
        self.view = memoryview(memory)
        self.used = 0
        whole = torch.frombuffer(self.view, dtype=torch.uint8)
        whole.zero_()  # touch every page now, on all threads, and not during a save
        # A CUDA context must not come to life only because of a save.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._pin(whole.data_ptr(), size_bytes)

    def _pin(self, address: int, size_bytes: int) -> None:
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
        self._blocks: list[_Block] = []
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
        if not self._blocks or self._blocks[-1].used + size_bytes > len(self._blocks[-1].view):
            self._grow(size_bytes)

    def take(self, size_bytes: int) -> memoryview:
        """Return the next `size_bytes` of private memory, 64-byte aligned and writable.

        Raises:
            InvalidInput: `max_staging_bytes` does not allow it.
            StorageUnavailable: the system has no memory.
        """
        if not self._blocks or self._blocks[-1].used + size_bytes > len(self._blocks[-1].view):
            self._grow(size_bytes)
        block = self._blocks[-1]
        start = block.used
        block.used = _round_up(start + size_bytes, _ALIGNMENT)
        return block.view[start : start + size_bytes]

    def reset(self) -> None:
        """Give all slices back; if the last save needed several blocks, join them into one."""
        if len(self._blocks) > 1:
            used = sum(block.used for block in self._blocks)
            self.release()
            self._grow(used)
        for block in self._blocks:
            block.used = 0

    def release(self) -> None:
        """Let go of all memory; it is freed when the last slice is dropped."""
        self._blocks = []
        self._held_bytes = 0

    def _grow(self, size_bytes: int) -> None:
        needed = _round_up(max(size_bytes, 1), mmap.PAGESIZE)
        # Few blocks for a first save of unknown size, and at most a quarter too much memory.
        wanted = max(needed, _MIN_BLOCK_BYTES, _round_up(self._held_bytes // 4, mmap.PAGESIZE))
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
        self._blocks.append(_Block(wanted))
        self._held_bytes += wanted


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, in place; the view keeps it alive."""
    size_bytes = tensor.numel() * tensor.element_size()
    if size_bytes == 0:
        return memoryview(bytearray())
    # Not through numpy, which is no dependency and has no bfloat16.
    array = (ctypes.c_ubyte * size_bytes).from_address(tensor.data_ptr())
    array.owner = tensor  # type: ignore[attr-defined]
    return memoryview(array).cast("B")


def tensor_over(
    data: memoryview, dtype: torch.dtype, shape: Sequence[int] | None = None
) -> torch.Tensor:
    """Return a CPU tensor over `data`, which it keeps alive; read-only memory is copied.

    Args:
        data: whole elements.
        dtype: element type.
        shape: shape of the result, None for one dim.
    """
    if data.nbytes == 0:
        flat = torch.empty(0, dtype=dtype, device="cpu")
    else:
        flat = torch.frombuffer(bytearray(data) if data.readonly else data, dtype=torch.uint8)
        flat = flat.view(dtype)
    return flat if shape is None else flat.view(tuple(shape))


def copy_out(tensors: Sequence[torch.Tensor], staging: Staging | None) -> list[memoryview]:
    """Return the elements of each tensor in C order, as bytes.

    Blocks until the copies have landed. Any device, stride, and conj or neg bit will do.

    Args:
        tensors: strided tensors, detached or not.
        staging: private memory to copy into; None gives views of live memory where a tensor lies
            contiguous on the CPU, and a private copy elsewhere.
    """
    views: list[memoryview] = []
    busy: set[torch.device] = set()
    if isinstance(staging, Arena):  # one block at most, also for the first save
        staging.reserve(sum(map(_slot_bytes, tensors)))
    with torch.no_grad():
        for tensor in tensors:
            plain = _is_plain(tensor)
            if staging is None:
                source = tensor if plain else _private_copy(tensor)
                views.append(byte_view(source.detach()))
                continue
            size_bytes = tensor.numel() * tensor.element_size()
            view = staging.take(size_bytes)
            views.append(view)
            if size_bytes == 0:
                continue
            if plain and size_bytes < _PARALLEL_BYTES:
                address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
                ctypes.memmove(address, tensor.data_ptr(), size_bytes)
                continue
            on_cuda = tensor.device.type == "cuda"
            target = tensor_over(view, tensor.dtype, tensor.shape)
            target.copy_(tensor.detach(), non_blocking=on_cuda)
            if on_cuda:
                busy.add(tensor.device)
        for device in busy:
            torch.cuda.current_stream(device).synchronize()
    return views


def _slot_bytes(tensor: torch.Tensor) -> int:
    return _round_up(tensor.numel() * tensor.element_size(), _ALIGNMENT)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether the tensor's memory holds exactly its elements in C order."""
    return (
        tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _private_copy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
