"""Where an actor keeps its participant."""

from __future__ import annotations

from stepseal.actors._participant import Participant
from stepseal.errors import InvalidInput

__all__ = ["participant_of"]


def participant_of(owner: object, attribute: str) -> Participant:
    """Return the participant that an actor keeps in an attribute.

    Raises:
        InvalidInput: there is none.
    """
    found = getattr(owner, attribute, None)
    if not isinstance(found, Participant):
        raise InvalidInput(
            f"the actor {type(owner).__name__} has no ss.Participant in {attribute!r}, found "
            f"{found!r:.80}. Make it in the actor's constructor, or name its attribute= in members."
        )
    return found
