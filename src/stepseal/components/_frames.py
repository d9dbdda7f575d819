"""Genuine `torch.save` records without their data: the bytes around a tensor's raw elements.

Stock readers open head + data + tail as a file that `torch.save` wrote; stepseal reads only the
data. The zip container's CRC of the data is not valid, because a frame is made before the data is
known; `torch.load` does not check it. Frames depend on dtype and shape alone, so they are made once
and kept.
"""

from __future__ import annotations

import functools
import io
import math
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.serialization import config as serialization_config

from stepseal.errors import InternalError
from stepseal.layout import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

__all__ = ["frame_for"]

_ALIGNMENT = 64
_CACHE_SIZE = 4096  # about 1.6 KB each, so at most some 10 MB

# The CRC switch is global to torch, so two threads must not flip it at once.
_lock = threading.Lock()


class _HoleSink(io.RawIOBase):
    """Keeps what is written and remembers the one hole that `skip_data` leaves by seeking ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.before = bytearray()
        self.after = bytearray()
        self.hole: int | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data)
        (self.before if self.hole is None else self.after).extend(view)
        return view.nbytes

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return len(self.before) + (self.hole or 0) + len(self.after)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        ahead = offset if whence == io.SEEK_CUR else offset - self.tell()
        if ahead:
            if self.hole is not None or ahead < 0:
                raise InternalError(
                    f"frame of a tensor cannot be made: expected torch to skip the data once, "
                    f"found a second seek by {ahead} bytes. Please report this torch version."
                )
            self.hole = ahead
        return self.tell()


def frame_for(dtype: torch.dtype, shape: Sequence[int]) -> Frame:
    """Return the frame of a contiguous CPU tensor; equal arguments give equal bytes.

    Costs no memory for the data. Thread-safe.

    Args:
        dtype: element type.
        shape: shape of the box that the record holds, in elements.
    """
    return _frame(dtype, tuple(shape))


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _frame(dtype: torch.dtype, shape: tuple[int, ...]) -> Frame:
    size_bytes = math.prod(shape) * dtype.itemsize
    # Memory that is never touched is never backed by pages. `torch.empty` could fill it
    # (deterministic mode).
    storage = torch.UntypedStorage(size_bytes, device="cpu")  # type: ignore[no-untyped-call]
    strides = [math.prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape))]
    tensor = torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, strides)
    sink: Any = _HoleSink()  # torch wants a file, and needs write, seek and tell of it
    settings: Any = serialization_config
    with _lock, settings.patch({"save.storage_alignment": _ALIGNMENT}):
        crc32 = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            with torch.serialization.skip_data():
                torch.save(tensor, sink)
        finally:
            torch.serialization.set_crc32_options(crc32)
    head, tail = bytes(sink.before), bytes(sink.after)
    if size_bytes == 0:  # no hole, so any cut is right; ours keeps the promise about the head
        cut = len(head) // _ALIGNMENT * _ALIGNMENT
        head, tail = head[:cut], head[cut:]
    if len(head) % _ALIGNMENT or (sink.hole or 0) != size_bytes:
        raise InternalError(
            f"frame of a tensor cannot be made: {dtype} {list(shape)}: expected a hole of "
            f"{size_bytes} bytes at a multiple of {_ALIGNMENT}, found {sink.hole} at {len(head)}. "
            "Please report this torch version."
        )
    return Frame(head, tail)
