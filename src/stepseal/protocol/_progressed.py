"""The message by which a participant tells how far it is in a call; nothing is decided by it.

Invariant: it says what is true so far, so that one that is lost or late does no harm.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["Progressed"]

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Progressed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The participant has written or read so many bytes; nothing depends on it."""

    call: _Number
    size_bytes: _Number
    """Bytes written or read so far."""
    of_bytes: _Number = 0
    """Bytes that it is going to write; 0 where that is not known."""
    called_s: _Seconds = 0.0
    """Seconds since the call began here."""
    blocked_s: _Seconds | None = None
    """Seconds for which the call blocked its owner; None while it still does."""
