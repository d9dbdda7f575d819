"""What messages advise about a component that cannot be restored, in the same words everywhere."""

from __future__ import annotations

__all__ = ["leave_out"]


def leave_out(name: str) -> str:
    """Return the call that leaves a component as it is, saved or not."""
    return f"restore(policies={{{name!r}: 'skip'}})"
