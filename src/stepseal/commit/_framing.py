"""Frames of the control plane: a 4-byte big-endian length, and that many bytes of JSON."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from stepseal import errors

__all__ = ["MAX_FRAME_BYTES", "MAX_HELLO_BYTES", "Address", "FrameReader", "frame"]

MAX_FRAME_BYTES = 64 << 20
"""Largest frame of a participant that said Hello, and of the coordinator."""
MAX_HELLO_BYTES = 4096
"""Largest frame of anybody else."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the coordinator listens, and the secret that lets a participant in."""

    host: str
    port: int
    token: str = field(repr=False)


def frame(data: bytes) -> bytes:
    """Return `data` with its length before it.

    Raises:
        InvalidInput: the other side would refuse so long a frame.
    """
    _check_size(len(data), MAX_FRAME_BYTES)
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Cuts a byte stream into frames; holds at most one frame and what was received with its end.

    Args:
        max_bytes: largest frame; may be raised between two frames.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next frame if it is complete, else None.

        Raises:
            InvalidInput: a frame announces more than `max_bytes`.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (size_bytes,) = _LENGTH.unpack_from(self._buffer)
        _check_size(size_bytes, self.max_bytes)
        end = _LENGTH.size + size_bytes
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return body


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise errors.InvalidInput(
            f"control plane: expected a frame of at most {max_bytes} bytes, found {size_bytes}. "
            "Is something else talking to the coordinator's port?",
            expected=max_bytes,
            found=size_bytes,
        )
