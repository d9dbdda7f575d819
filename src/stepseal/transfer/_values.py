"""What the transfer wing hands out and takes in, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stepseal.layout import StoredTensor, TensorSink

__all__ = ["Finding", "ReadRequest", "StoredBox"]


@dataclass(frozen=True, slots=True)
class StoredBox:
    """One stored box of a global tensor, and where it is."""

    participant: str
    """Who wrote it."""
    path: str
    """Payload file, relative to the step folder."""
    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Wish to have in a sink what it wants of one stored box."""

    stored: StoredBox
    sink: TensorSink


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a step folder."""

    severity: Literal["damage", "extra"]
    """`damage`: the step must not be used; `extra`: something that the step does not name."""
    path: str
    """Relative to the step folder; empty for the folder itself."""
    message: str
    """What was expected and what was found."""
