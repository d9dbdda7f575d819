"""What a writer of a gated save and the coordinator say to each other before it writes."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["SaveAnswer", "SaveAsked", "SaveGranted", "SaveRefused"]

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class SaveAsked(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The participant has something to write for this step, into the folder of this component."""

    step: _Number
    name: str


class SaveGranted(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The call of this step is open; the order to write follows, or has come before."""

    call: _Number
    step: _Number
    name: str
    names: list[str]
    """All that the receiver is expected to write for the step."""
    participants: list[str]
    """The participants of its role that take part, in ordinal order."""


class SaveRefused(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The step cannot take this save."""

    step: _Number
    name: str
    kind: str
    message: str
    is_late: bool
    """The step was decided without it: that is no mistake of the writer."""


SaveAnswer = SaveGranted | SaveRefused
"""Answers `SaveAsked`."""
