"""How live state takes a saved component of kind `tensors`, and the error where it does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import StateMismatch
from stepseal.layout import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepseal.components._ranges import RangeScan
    from stepseal.components._stages import Taken
    from stepseal.components._types import AnySharing
    from stepseal.layout import TensorSink

__all__ = ["LeafPlan", "kind_of", "mismatch"]

_SHOWN = 3


def kind_of(sharing: AnySharing | None) -> str:
    """Return the kind of a component with this declared sharing.

    Tensors that differ per participant have no place in the payload that stock readers see: they
    become a tree.
    """
    return "tensors" if sharing is None or rule_of(sharing).tensors_are_global else "tree"


class LeafPlan:
    """Sinks of the leaves, and what is left to do after they were filled; see `RestorePlan`."""

    __slots__ = ("_finish", "note", "scans", "sinks", "taken")

    def __init__(
        self,
        sinks: Mapping[str, TensorSink],
        finish: Callable[[], None],
        note: str = "",
        scans: Mapping[str, RangeScan] | None = None,
        taken: Taken | None = None,
    ) -> None:
        self.sinks = sinks
        self.scans = scans or {}
        self.note = note
        self.taken = taken
        self._finish = finish

    def apply(self) -> None:
        """Install everything that sinks cannot take; changes live state."""
        self._finish()


def mismatch(component: str, problems: Sequence[str]) -> StateMismatch:
    """Return the error that lists every difference; its text shows the first few."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return StateMismatch(
        f"saved state does not fit: component {component}: {'; '.join(problems[:_SHOWN])}{more}. "
        "Restore into objects built as they were at the save.",
        component=component,
        problems=tuple(problems),
    )
