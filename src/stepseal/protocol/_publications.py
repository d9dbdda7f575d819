"""What differs in a publication from a save: who takes part, and what it is called. Pure values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import Area
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from stepseal.protocol._opening import Opening

__all__ = ["unknown_components"]


def unknown_components(call: int, opening: Opening, unknown: tuple[str, ...]) -> actions.Told:
    """Return the outcome of a publication of components that nobody holds."""
    assert opening.step is not None
    text = (
        f"{Area.PUBLISHED.title(opening.step)}: no participant that was admitted holds "
        f"{', '.join(unknown)}. Name components as their owners added them, and admit these first."
    )
    kind = errors.InvalidInput.kind
    return actions.Told(messages.Aborted(call, opening.step, kind, text, {}))
