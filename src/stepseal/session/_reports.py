"""What a restore or a load did with each component: the load report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LoadReport", "Restored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What was taken from a step, and what was not; the same on all participants."""

    step: int
    path: str
    """Folder of the step."""
    report: Mapping[str, str]
    """Component to what was done with it: restored, left as it was, or begun anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored(LoadReport):
    """What `Checkpointer.restore` brought back, or would bring back where it only checks."""

    incarnation: int | None
    """Number of this life of the job; None where the root was not claimed (`check_only`)."""
    skipped: Mapping[str, str]
    """Newer steps that were passed over, by folder name, each with the reason."""
    fresh: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Component that begins anew to what the manifests of this life record of it."""
    manifest_sha256: str | None = None
    """Of the step; None for a foreign folder, which has no manifest."""
    unverified: bool = False
    """It came from a foreign DCP folder: no digest says that its bytes are what was written."""
