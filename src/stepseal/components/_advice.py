"""What messages advise about a component that cannot be restored, in the same words everywhere."""

from __future__ import annotations

__all__ = ["leave_out", "other_world"]


def leave_out(name: str) -> str:
    """Return the call that leaves a component as it is, saved or not."""
    return f"restore(policies={{{name!r}: 'skip'}})"


def other_world(name: str, saved: int, now: int) -> str:
    """Say why state of each rank cannot be restored by another number of ranks, and what helps."""
    return (
        f"saved per rank by {saved} participants, now {now}: restore with {saved}, or add it with "
        f"on_world_change='fresh'; {leave_out(name)} leaves it as it is now"
    )
