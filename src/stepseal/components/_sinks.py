"""Writing verified bytes of stored boxes into live tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stepseal.components._live_data import tensor_over
from stepseal.components._ranges import RangeScan, narrows
from stepseal.layout import Box, intersect, linear_boxes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.components._dtensors import Leaf
    from stepseal.components._types import SavedTensor

__all__ = ["DenseSink", "scans_for", "sinks_for"]


class DenseSink:
    """Fills one live local tensor in place; any device and stride.

    Stored elements of another type are cast. Autograd sees one more in-place change of the tensor
    and records no graph.

    Args:
        local: the tensor to fill, with the shape of `wanted`.
        wanted: box of the global tensor that `local` holds.
        dtype: element type of the stored bytes.
    """

    __slots__ = ("_dtype", "_flat", "_local", "wanted")

    def __init__(self, local: torch.Tensor, wanted: Box, dtype: torch.dtype) -> None:
        self.wanted = wanted
        self._local = local.detach()
        self._dtype = dtype
        plain = (
            local.device.type == "cpu"
            and local.dtype == dtype
            and local.is_contiguous()
            and not local.is_conj()
            and not local.is_neg()
        )
        self._flat = self._local.view(-1).view(torch.uint8) if plain else None

    def write(self, stored: Box, start: int, data: memoryview) -> None:
        """Copy the part of `data` that lies inside `wanted`; see `TensorSink`."""
        # Only inference mode may write to what was made in it.
        with torch.inference_mode() if self._local.is_inference() else torch.no_grad():
            if self._flat is not None and stored == self.wanted:
                begin = start * self._dtype.itemsize
                source = tensor_over(data, torch.uint8)
                self._flat[begin : begin + data.nbytes].copy_(source)
                return
            self._scatter(stored, start, tensor_over(data, self._dtype))

    def _scatter(self, stored: Box, start: int, chunk: torch.Tensor) -> None:
        """Copy what `chunk` and `wanted` share, one rectangle of the chunk at a time."""
        position = 0
        for piece in linear_boxes(stored.sizes, start, start + chunk.numel()):
            values = chunk[position : position + piece.num_elements].view(piece.sizes)
            position += piece.num_elements
            placed = Box(
                tuple(map(int.__add__, stored.offsets, piece.offsets)),
                piece.sizes,
            )
            shared = intersect(placed, self.wanted)
            if shared is not None:
                _at(self._local, self.wanted, shared).copy_(_at(values, placed, shared))


def sinks_for(leaves: list[Leaf], stored: Mapping[str, SavedTensor]) -> dict[str, DenseSink]:
    """Return a sink for each leaf that holds elements here, by the key in the step.

    Args:
        leaves: what to fill.
        stored: what each is filled from, by the key of the leaf.
    """
    sinks = {}
    for leaf in leaves:
        if leaf.box is not None and leaf.box.num_elements:
            one = stored[leaf.key]
            sinks[one.key] = DenseSink(leaf.local, leaf.box, getattr(torch, one.dtype))
    return sinks


def scans_for(leaves: list[Leaf], stored: Mapping[str, SavedTensor]) -> dict[str, RangeScan]:
    """Return a scan for each leaf whose dtype has a smaller range than what is stored for it."""
    scans = {}
    for leaf in leaves:
        one, live = stored[leaf.key], leaf.local.dtype
        saved = getattr(torch, one.dtype)
        if leaf.box is not None and leaf.box.num_elements and narrows(saved, live):
            scans[one.key] = RangeScan(leaf.key, leaf.box, saved, live)
    return scans


def _at(tensor: torch.Tensor, holder: Box, part: Box) -> torch.Tensor:
    """Return the view of `part` in a tensor that holds the box `holder`."""
    for dim, (base, offset, size) in enumerate(
        zip(holder.offsets, part.offsets, part.sizes, strict=True)
    ):
        tensor = tensor.narrow(dim, offset - base, size)
    return tensor
