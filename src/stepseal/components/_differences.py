"""By how much live elements differ from those that were written: a sink that only looks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from stepseal.components._live_data import tensor_over
from stepseal.layout import CHUNK_BYTES

if TYPE_CHECKING:
    from stepseal.layout import Box, TensorSource

__all__ = ["DifferenceSink"]


class DifferenceSink:
    """Compares stored elements with a live tensor, bit by bit, one MiB at a time; writes nothing.

    Args:
        live: the tensor, frozen while the sink is used.
    """

    __slots__ = ("_first", "_largest", "_live", "_num", "_scratch", "wanted")

    def __init__(self, live: TensorSource) -> None:
        self.wanted = live.box
        self._live = live
        self._scratch = memoryview(bytearray(min(CHUNK_BYTES, live.data.size_bytes)))
        self._num = 0
        self._first = -1
        self._largest = 0.0

    def write(self, stored: Box, start: int, data: memoryview) -> None:
        """Look at verified elements of a box; replicas hold equal boxes. See `TensorSink`."""
        assert stored == self.wanted, "replicas hold the same box"
        dtype: torch.dtype = getattr(torch, self._live.dtype)
        for begin in range(0, data.nbytes, CHUNK_BYTES):
            part = data[begin : begin + CHUNK_BYTES]
            mine = self._scratch[: part.nbytes]
            self._live.data.fill(mine, start * dtype.itemsize + begin)
            if mine != part:
                self._count(mine, part, dtype, start + begin // dtype.itemsize)

    def _count(self, mine: memoryview, other: memoryview, dtype: torch.dtype, start: int) -> None:
        pair = [tensor_over(one, torch.uint8).view(-1, dtype.itemsize) for one in (mine, other)]
        where = (pair[0] != pair[1]).any(1).nonzero().flatten()
        self._num += len(where)
        if self._first < 0:
            self._first = start + int(where[0])
        values = [_as_numbers(one[where].view(-1), dtype) for one in pair]
        found = (values[0] - values[1]).abs().nan_to_num(math.inf, math.inf, math.inf)
        self._largest = max(self._largest, float(found.max()))

    def text(self) -> str:
        """Return by how much the tensors differ, in words; empty if they are equal."""
        if not self._num:
            return ""
        total = math.prod(self.wanted.sizes)
        return (
            f"{self._num} of {total} elements differ, by at most {self._largest:g}, the first at "
            f"index {self._first}"
        )


def _as_numbers(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = data.view(dtype)
    if dtype.is_complex:
        return values.to(torch.complex128)
    if dtype.itemsize == 1 and dtype.is_floating_point:
        values = values.to(torch.float32)  # float8 has few conversions
    return values.to(torch.float64)
