"""Messages as bytes: a 4-byte big-endian length, followed by that many bytes of JSON."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal import errors

if TYPE_CHECKING:
    import socket

__all__ = [
    "MAX_HELLO_BYTES",
    "MAX_MESSAGE_BYTES",
    "Address",
    "MessageReader",
    "address_of",
    "pack_message",
    "prove",
]

MAX_MESSAGE_BYTES = 64 << 20
"""Largest message from the coordinator, or from a participant after its Hello."""
MAX_HELLO_BYTES = 4096
"""Largest first message on a connection."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the coordinator listens, and the secret that participants must send."""

    host: str
    port: int
    token: str = field(repr=False)


def address_of(listener: socket.socket, token: str) -> Address:
    """Return where a socket listens."""
    host, port = listener.getsockname()[:2]
    return Address(host, port, token)


def prove(token: str, nonce: str) -> str:
    """Return what shows that its maker knows the token, without giving the token away."""
    return hmac.new(token.encode(), nonce.encode(), hashlib.sha256).hexdigest()


def pack_message(data: bytes) -> bytes:
    """Return `data` with its length in front.

    Raises:
        InvalidInput: the message is too long for the receiver.
    """
    _check_size(len(data), MAX_MESSAGE_BYTES)
    return _LENGTH.pack(len(data)) + data


class MessageReader:
    """Splits a byte stream into messages; buffers at most one message and the bytes after it.

    Args:
        max_bytes: largest message; may be raised between two messages.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next message if it is complete, else None.

        Raises:
            InvalidInput: a message is longer than `max_bytes`.
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
            f"control plane: expected a message of at most {max_bytes} bytes, found {size_bytes}. "
            "Is something else talking to the coordinator's port?",
            expected=max_bytes,
            found=size_bytes,
        )
