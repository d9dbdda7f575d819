"""Elements that a cast would lose, because they are outside the range of the new dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stepseal.components._live_data import tensor_over

if TYPE_CHECKING:
    from stepseal.layout import Box

__all__ = ["RangeScan", "lost_in_cast", "narrows"]


class RangeScan:
    """Looks for elements that a cast would lose, and fills nothing.

    Args:
        name: live key of the tensor, for messages.
        wanted: box of the global tensor that is going to be filled.
        saved: element type of the stored bytes.
        live: element type that they are cast to.
    """

    __slots__ = ("_live", "_saved", "found", "name", "wanted")

    def __init__(self, name: str, wanted: Box, saved: torch.dtype, live: torch.dtype) -> None:
        self.name = name
        self.wanted = wanted
        self.found: float | int | complex | None = None
        """First element that was found, None so far."""
        self._saved = saved
        self._live = live

    @property
    def live(self) -> str:
        """Name of the live dtype, as in `layout`."""
        return str(self._live).removeprefix("torch.")

    def write(self, stored: Box, start: int, data: memoryview) -> None:
        """Look at all of `data`, wherever it lies; see `TensorSink`."""
        if self.found is None:
            self.found = lost_in_cast(tensor_over(data, self._saved), self._live)


def lost_in_cast(values: torch.Tensor, live: torch.dtype) -> float | int | complex | None:
    """Return the first element that lies outside the range of `live`, or None.

    Args:
        values: real, complex or integer elements.
        live: dtype of the same kind of number.
    """
    if not narrows(values.dtype, live):
        return None
    if values.is_complex():
        parts = torch.view_as_real(values)
        lost = _is_outside(parts, live.to_real()).any(dim=-1)
    elif values.is_floating_point():
        lost = _is_outside(values, live)
    else:
        lost = _is_wrapped(values, live)
    found = values[lost]
    return found[0].item() if found.numel() else None


def narrows(saved: torch.dtype, live: torch.dtype) -> bool:
    """Return whether some element of `saved` lies outside the range of `live`."""
    if saved == live or torch.bool in (saved, live):
        return False
    if saved.is_floating_point or saved.is_complex:
        return torch.finfo(live).max < torch.finfo(saved).max or live.itemsize == 1
    wide, narrow = torch.iinfo(saved), torch.iinfo(live)
    return narrow.max < wide.max or narrow.min > wide.min


def _is_outside(values: torch.Tensor, live: torch.dtype) -> torch.Tensor:
    """Return which elements `live` cannot hold: too large, or an infinity that it does not have."""
    before, after = values.double(), values.to(live).double()
    changed = (before != after) & ~(before.isnan() & after.isnan())
    return torch.where(before.isfinite(), before.abs() > torch.finfo(live).max, changed)


def _is_wrapped(values: torch.Tensor, live: torch.dtype) -> torch.Tensor:
    """Return which integers change their value, also where bits stay and the sign does not."""
    before, after = values.long(), values.to(live).long()
    negative = (before < 0) & values.dtype.is_signed, (after < 0) & live.is_signed
    return (before != after) | (negative[0] != negative[1])
