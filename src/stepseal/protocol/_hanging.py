"""What is told of a save or a publication when the coordinator's own storage hangs."""

from __future__ import annotations

from stepseal import errors
from stepseal.protocol import _messages as messages

__all__ = ["NEXT_SAVE", "publication_hangs", "staging_hangs"]

NEXT_SAVE = (
    "Nothing was committed and older steps are untouched; the next save starts a new attempt."
)


def staging_hangs(call: int, step: int, what: str, limit_s: float) -> messages.Aborted:
    """Return the end of a save whose staging folder was not made in time; `what` names it."""
    text = (
        f"{what}: the coordinator's storage did not make the staging folder within {limit_s:g} s. "
        f"{NEXT_SAVE}"
    )
    return messages.Aborted(call, step, errors.StorageUnavailable.kind, text, {})


def publication_hangs(call: int, attempt: str, step: int, what: str) -> messages.Unresolved:
    """Return what the one who opened a save is told when its publication does not end."""
    text = f"{what}: the coordinator's storage did not answer in time; it may still be committed"
    return messages.Unresolved(call, attempt, step, text)
