"""Buffers of any shape as plain bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["byte_view"]


def byte_view(buffer: Buffer, offset: int, key: str, *, writable: bool) -> memoryview:
    """Return `buffer` as plain bytes.

    Raises:
        InvalidInput: the buffer is not contiguous or not writable, or the offset is negative.
    """
    view = memoryview(buffer)
    problem = None
    if not view.c_contiguous:
        problem = "a buffer with gaps"
    elif writable and view.readonly:
        problem = "a read-only buffer"
    elif offset < 0:
        problem = f"the offset {offset}"
    if problem:
        raise InvalidInput(
            f"bytes of {key!r} refused: expected a contiguous buffer and an offset >= 0, "
            f"found {problem}. Pass a copy, or check the offset.",
            path=key,
        )
    if view.nbytes == 0:
        return view[:0] if view.ndim == 1 else memoryview(b"")
    return view.cast("B")
