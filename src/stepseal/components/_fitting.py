"""Whether the sharing and the ranks of a saved component fit the live one, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.components._advice import leave_out
from stepseal.layout import Division, can_read, fits_world

if TYPE_CHECKING:
    from stepseal.components._types import AnySharing, SavedComponent, Topology

__all__ = ["changed_world", "declaration_of", "range_problem", "sharing_problem"]


def declaration_of(sharing: AnySharing) -> str:
    """Return how a user declares a sharing."""
    call = "per_group(same_on=...)" if sharing.name == "PER_GROUP" else sharing.name
    return f"sharing=ss.{call}"


def changed_world(live: AnySharing, num_live: int, saved: AnySharing, num_saved: int) -> str:
    """Return in what the ranks of the save differ, if the ranks now cannot read; else nothing.

    Args:
        live: sharing of the component now, one that can read `saved`.
        num_live: number of ranks now.
        saved: sharing that was saved.
        num_saved: number of ranks that saved it.
    """
    if fits_world(live, num_live, saved, num_saved):
        return ""
    if isinstance(live, Division) and isinstance(saved, Division):
        return f"{saved.shown_axes()} at the save, now {live.shown_axes()}"
    return f"{num_saved} participants at the save, now {num_live}"


def range_problem(key: str, dtype: str, found: object) -> list[str]:
    """Return the text about an element that its live dtype cannot hold, if one was found."""
    if found is None:
        return []
    return [f"{key}: expected values in the range of (live) {dtype}, found {found}"]


def sharing_problem(
    saved: SavedComponent, live: AnySharing, kind: str, topology: Topology
) -> str | None:
    """Return why a saved component cannot be read with a sharing and on these ranks, if so.

    Args:
        saved: what the step holds.
        live: sharing of the component now.
        kind: kind of the component now.
        topology: who takes part.
    """
    if not can_read(live, saved.sharing, kind):
        return (
            f"saved with sharing {saved.sharing.value}, now {live.value}: declare "
            f"{declaration_of(saved.sharing)}{_or_function(saved)}"
        )
    num_saved, now = saved.num_participants, topology.world_size
    if not (change := changed_world(live, now, saved.sharing, num_saved)):
        return None
    what, way = f"saved per rank by {num_saved} participants, now {now}", f"with {num_saved}"
    if isinstance(saved.sharing, Division):
        each = "node" if saved.sharing.name == "PER_NODE" else "set of ranks"
        what, way = f"saved for each {each} ({change})", f"on {saved.sharing.shown_axes()}"
    return (
        f"{what}: restore {way}, or add it with on_world_change='fresh'{_or_function(saved)}; "
        f"{leave_out(saved.name)} leaves it as it is now"
    )


def _or_function(saved: SavedComponent) -> str:
    """Return what else can be declared, if the state is in trees, which a function can take."""
    return (
        ", or with on_world_change=reshard, a function (states, old, new) that returns this rank's "
        "state"
        if saved.kind == "tree"
        else ""
    )
