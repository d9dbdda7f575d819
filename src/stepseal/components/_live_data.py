"""The bytes of live tensors and arrays as `DataSource`s: in place where they lie so, or copied out.

Nothing is touched before it is asked for. A tensor is copied bit for bit, from any device, with any
strides, and with its conj or neg bit resolved.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from typing import TYPE_CHECKING, Any

from stepseal.components._torch_in_use import is_tensor
from stepseal.layout import BufferData, linear_boxes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import torch

    from stepseal.layout import DataSource

__all__ = ["TensorData", "byte_view", "carriers", "data_of", "tensor_over", "wait_for"]

# Above this size torch's copy uses several threads; below it the call itself is what costs.
_PARALLEL_BYTES = 1 << 20


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, in place; the view keeps it alive."""
    size_bytes = tensor.numel() * tensor.element_size()
    if size_bytes == 0:
        return memoryview(bytearray())
    # Not through numpy, which is no dependency and has no bfloat16.
    memory = (ctypes.c_ubyte * size_bytes).from_address(tensor.data_ptr())
    memory.owner = tensor  # type: ignore[attr-defined]
    return memoryview(memory).cast("B")


def tensor_over(
    data: memoryview, dtype: torch.dtype, shape: Sequence[int] | None = None
) -> torch.Tensor:
    """Return a CPU tensor over `data`, which it keeps alive; read-only memory is copied.

    Args:
        data: whole elements.
        dtype: element type.
        shape: shape of the result, None for one dim.
    """
    import torch

    if data.nbytes == 0:
        flat = torch.empty(0, dtype=dtype, device="cpu")
    else:
        flat = torch.frombuffer(bytearray(data) if data.readonly else data, dtype=torch.uint8)
        flat = flat.view(dtype)
    return flat if shape is None else flat.view(tuple(shape))


@functools.cache
def carriers() -> Mapping[int, torch.dtype]:
    """Return the integer type that carries elements of a size in bytes.

    Not every dtype has a copy kernel, and so no bit of a NaN changes.
    """
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def wait_for(device: torch.device) -> None:
    """Wait until the copies from a CUDA device have landed; see `TensorData.start_fill`."""
    import torch

    torch.cuda.current_stream(device).synchronize()


class TensorData:
    """The elements of a live tensor in C order; see `DataSource`.

    Args:
        tensor: strided, detached or not.
    """

    __slots__ = ("_tensor", "size_bytes")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.size_bytes = tensor.numel() * tensor.element_size()

    @property
    def on_cpu(self) -> bool:
        """Whether the bytes can be had on any thread, without a device that may still compute."""
        return self._tensor.is_cpu

    def view(self) -> memoryview | None:
        """Return the bytes in place where the tensor lies contiguous on the CPU."""
        return byte_view(self._tensor) if _is_plain(self._tensor) else None

    def fill(self, target: memoryview, start: int = 0) -> None:
        """Copy bytes out; any range."""
        device = self.start_fill(target, start)
        if device is not None:
            wait_for(device)

    def start_fill(self, target: memoryview, start: int = 0) -> torch.device | None:
        """Begin to copy bytes out.

        Returns:
            The CUDA device whose current stream must be waited for; None where the copy has landed.
        """
        tensor, size_bytes = self._tensor, target.nbytes
        if not size_bytes:
            return None
        if _is_plain(tensor):
            if size_bytes < _PARALLEL_BYTES:
                address = ctypes.addressof(ctypes.c_ubyte.from_buffer(target))
                ctypes.memmove(address, tensor.data_ptr() + start, size_bytes)
            else:
                source = byte_view(tensor)[start : start + size_bytes]
                carrier = carriers()[1]
                tensor_over(target, carrier).copy_(tensor_over(source, carrier))
            return None
        itemsize = tensor.element_size()
        first, stop = start // itemsize, -(-(start + size_bytes) // itemsize)
        if start % itemsize or size_bytes % itemsize:  # whole elements first, then what was asked
            around = memoryview(bytearray((stop - first) * itemsize))
            self.fill(around, first * itemsize)
            target[:] = around[start - first * itemsize :][:size_bytes]
            return None
        return self._copy_elements(target, first, stop)

    def _copy_elements(self, target: memoryview, first: int, stop: int) -> torch.device | None:
        import torch

        on_cuda = self._tensor.device.type == "cuda"
        with torch.no_grad():
            carrier = carriers().get(self._tensor.element_size(), self._tensor.dtype)
            flat, position = tensor_over(target, carrier), 0
            for part in _parts(self._tensor.detach(), first, stop):
                source = part.resolve_conj().resolve_neg().view(carrier)
                place = flat[position : position + part.numel()].view(part.shape)
                place.copy_(source, non_blocking=on_cuda)
                position += part.numel()
        return self._tensor.device if on_cuda else None


class _NdarrayData:
    """The elements of a live NumPy array in C order; see `DataSource`."""

    __slots__ = ("_array", "size_bytes")

    def __init__(self, live: np.ndarray[Any, Any]) -> None:
        self._array = live
        self.size_bytes = live.nbytes

    def view(self) -> memoryview | None:
        if not self.size_bytes or not self._array.flags.c_contiguous:
            return None if self.size_bytes else memoryview(b"")
        return self._array.reshape(-1).view("u1").data

    def fill(self, target: memoryview, start: int = 0) -> None:
        import numpy as np

        live, in_place = self._array, self.view()
        if in_place is not None:
            target[:] = in_place[start : start + target.nbytes]
            return
        opaque = live.view(f"V{live.itemsize}")  # else a copy skips the padding of records
        if target.nbytes == self.size_bytes:
            np.copyto(np.ndarray(live.shape, opaque.dtype, buffer=target), opaque)
        else:
            target[:] = opaque.tobytes()[start : start + target.nbytes]


def data_of(
    leaf: torch.Tensor | np.ndarray[Any, Any] | array[Any] | bytes | bytearray,
) -> DataSource:
    """Return the bytes of an array leaf of a tree, without copying or touching them."""
    if isinstance(leaf, (bytes, bytearray)):
        return BufferData(leaf)
    if isinstance(leaf, array):
        return BufferData(memoryview(leaf).cast("B"))
    if is_tensor(leaf):
        return TensorData(leaf)
    return _NdarrayData(leaf)


def _parts(tensor: torch.Tensor, first: int, stop: int) -> Iterator[torch.Tensor]:
    """Yield views that hold a C-order range of elements, one after the other."""
    if first == 0 and stop == tensor.numel():
        yield tensor
        return
    if tensor.is_contiguous():
        yield tensor.view(-1)[first:stop]
        return
    for box in linear_boxes(tensor.shape, first, stop):
        part = tensor
        for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
            part = part.narrow(dim, offset, size)
        yield part


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether the tensor's memory holds exactly its elements in C order."""
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
