"""Many small arrays or scalars that are alike, as one array leaf.

One leaf has one name, one entry and one copy, whatever the number of its items; what a tensor costs
otherwise is mostly Python. Nothing is copied before it is asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stepseal.components._live_data import tensor_over
from stepseal.layout import ITEMSIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["Stack"]


class Stack:
    """Items of one dtype and shape, one after the other; see `DataSource`.

    Args:
        of: `tensor`, `ndarray`, `scalar` (of NumPy) or `bool`.
        items: the live objects.
        dtype: torch name of the element type.
        item_shape: shape of each item.
    """

    __slots__ = ("_items", "dtype", "of", "shape", "size_bytes")

    def __init__(
        self, of: str, items: Sequence[Any], dtype: str, item_shape: Sequence[int]
    ) -> None:
        self.of = of
        self.dtype = dtype
        self.shape = (len(items), *item_shape)
        self.size_bytes = math.prod(self.shape) * ITEMSIZE[dtype]
        self._items = items

    def view(self) -> memoryview | None:
        """Return None: the items lie apart."""
        return None

    def fill(self, target: memoryview, start: int = 0) -> None:
        """Copy bytes out; a range copies all of them first."""
        if target.nbytes != self.size_bytes:
            whole = memoryview(bytearray(self.size_bytes))
            self.fill(whole)
            target[:] = whole[start : start + target.nbytes]
        elif self.of == "tensor":
            self._fill_tensors(target)
        elif self.of == "bool":
            target[:] = bytes(self._items)
        else:
            self._fill_arrays(target)

    def _fill_tensors(self, target: memoryview) -> None:
        import torch

        items: list[torch.Tensor] = list(self._items)
        with torch.inference_mode(False), torch.no_grad():
            whole = tensor_over(target, items[0].dtype, self.shape)
            if items[0].is_cpu:
                torch.stack(items, out=whole)
            else:
                whole.copy_(torch.stack(items))

    def _fill_arrays(self, target: memoryview) -> None:
        import numpy as np

        items = self._items
        whole = np.ndarray(self.shape, items[0].dtype, buffer=target)
        if len(self.shape) == 1:
            whole[:] = np.array(items, items[0].dtype)
        else:
            rows, columns, *rest = self.shape
            np.concatenate(items, out=whole.reshape(rows * columns, *rest))
