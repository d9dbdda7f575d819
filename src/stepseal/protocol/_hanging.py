"""What is told of a save or a publication that ends early, and of the ones after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.protocol._failures import Failure

__all__ = ["NEXT_SAVE", "after_loss", "publication_hangs", "staging_hangs"]

_NOTHING = "Nothing was committed and older steps are untouched"
NEXT_SAVE = f"{_NOTHING}; the next save starts a new attempt."
_RESTART = f"{_NOTHING}. A lost rank stays lost, and no save succeeds without it: restart the job."
_ADMIT = f"{NEXT_SAVE} Admit those again whose process is gone."


def after_loss(causes: Iterable[Failure], *, opened: bool) -> str:
    """Return what becomes of later saves once participants are gone.

    Args:
        causes: why each is gone; of some other kind where it lives, and this save alone goes on
            without it.
        opened: the coordinator opens the calls, and can admit them again.
    """
    if opened:
        return _ADMIT
    lives = {errors.StateMismatch.kind, errors.CommitTimeout.kind}
    return NEXT_SAVE if lives.issuperset(cause.kind for cause in causes) else _RESTART


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
