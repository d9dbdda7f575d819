"""Whether all participants of a role take part in a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.components import Topology

__all__ = ["check_roster"]


def check_roster(topology: Topology, participants: Sequence[str]) -> None:
    """Refuse a call without some of the role.

    Args:
        topology: the role.
        participants: those of the role who take part.

    Raises:
        InvalidInput: others than the role has.
    """
    me, expected = topology.me, topology.participants
    if tuple(participants) != expected:
        raise InvalidInput(
            f"{me}: expected all of {', '.join(expected)} to take part, found "
            f"{', '.join(participants)}. Admit them all, or give Participant the right size=.",
            participant=me,
        )
