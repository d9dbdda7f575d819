"""What a restore fills, as one participant sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.components import Component, Topology

__all__ = ["Targets"]


@dataclass(frozen=True, slots=True)
class Targets:
    """The live state that a restore fills."""

    components: Sequence[Component]
    skip: frozenset[str]
    """Names to leave as they are, live or saved."""
    known: frozenset[str]
    """Names of all live components, skipped ones included."""
    topology: Topology
