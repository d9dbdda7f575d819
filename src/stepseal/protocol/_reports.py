"""What participants report in messages: of a component that was captured, and of a part."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["ComponentReport", "PartReport"]


class ComponentReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One component as a participant captured it."""

    name: str
    kind: str
    sharing: str
    fingerprint: str
    payload: str | None = None
    """Coordinate of the non-tensor payload that the participant reads; None if it reads none."""
    writes: bool = False
    """Whether the participant writes that payload."""
    options: dict[str, Any] = {}
    """What the manifest says about the component besides; the first participant's counts."""
    sets: str = ""
    """Text about the sets of participants that share its payloads; differs where they differ."""
    axes: dict[str, int] = {}
    """Name and size of each axis along which these sets differ."""
    required: bool = True
    """False for a component without which the step may be committed."""
    validate: str = "none"
    """How replicas are compared."""
    replicas: dict[str, int] = {}
    """Name and size of each set of participants whose digests must be equal to this one's."""
    digests: dict[str, str] = {}
    """Digest of each of these sets, where they are compared before anything is written."""
    failed: str = ""
    """Why a component that is not required could not be captured."""


class PartReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Path of a participant's part document in the attempt, and its digest."""

    path: str
    size_bytes: int
    sha256: str
