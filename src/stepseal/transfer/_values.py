"""Values that `transfer` takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stepseal.layout import StoredTensor, TensorSink

__all__ = ["Finding", "ReadRequest", "StoredBox"]


@dataclass(frozen=True, slots=True)
class StoredBox:
    """One stored box of a global tensor, and its location."""

    participant: str
    """The participant that wrote the box."""
    path: str
    """Payload file, relative to the step folder."""
    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Request to copy the wanted elements of one stored box into a sink."""

    stored: StoredBox
    sink: TensorSink


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of a step folder."""

    severity: Literal["damage", "extra"]
    """`damage`: the step must not be used; `extra`: a file that the step does not list."""
    path: str
    """Relative to the step folder; empty for the folder itself."""
    message: str
    """What was expected and what was found."""
