"""What the ranks of a load settle with each other, through the process group's store alone.

No collective, no coordinator: each settlement is one `Rendezvous`, in which rank 0 hears all and
answers all alike. A single process settles everything with itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from stepseal.errors import CheckpointError
from stepseal.protocol import error_from, failure_of
from stepseal.session._job import Rendezvous
from stepseal.session._verdicts import error_of, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepseal.components import Topology
    from stepseal.protocol import Deadlines

__all__ = ["Together"]


class Together:
    """Settles what all ranks of the default process group must do alike.

    Args:
        topology: who takes part.
        deadlines: how long a rank waits for the others.
        duty: what every rank must do to take part, for messages.
    """

    def __init__(self, topology: Topology, deadlines: Deadlines, duty: str) -> None:
        self._topology = topology
        self._deadlines = deadlines
        self._duty = duty

    def from_rank_0(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what rank 0 finds, JSON; what it raises is raised on all ranks."""
        if self._topology.world_size == 1:
            return find()
        meeting = self._meeting(self._deadlines.connect_s)
        if self._topology.rank:
            return _taken(meeting.ask(None))
        try:
            found = find()
            meeting.gather()
        except Exception as error:
            meeting.refuse(error)
            raise
        meeting.tell(found)
        return found

    def agree(self, error: Exception | None, *, limit_s: float, touched: bool) -> None:
        """Return if nothing failed on any rank; else raise, on all ranks an error of one kind.

        Args:
            error: what failed here.
            limit_s: how long to wait for the slowest rank.
            touched: live state may have been changed by now.
        """
        if self._topology.world_size == 1:
            if error is not None:
                raise _marked(error, touched)
            return
        mine = None if error is None else msgspec.to_builtins(failure_of(error))
        meeting = self._meeting(limit_s)
        if self._topology.rank:
            answer = meeting.ask(mine)
        else:
            try:
                notes = {0: mine, **meeting.gather()}
            except CheckpointError as lost:
                meeting.refuse(lost)
                raise _marked(lost, touched) from error
            state = "Live state was changed: load again." if touched else "Nothing was changed."
            answer = verdict(notes, self._duty, state)
            meeting.tell(answer)
        if answer:
            raise _marked(error_of(answer), touched) from error

    def left_by_all(self, left: Mapping[str, str], *, limit_s: float) -> dict[str, str]:
        """Return what no rank takes, of what each leaves to others; the same on all ranks.

        Args:
            left: component to the entries that are left here, as bits in hex; all name the same.
            limit_s: how long to wait for the slowest rank.
        """
        if self._topology.world_size == 1:
            return dict(left)
        meeting = self._meeting(limit_s)
        if self._topology.rank:
            return meeting.ask(dict(left))
        try:
            others = meeting.gather()
        except CheckpointError as lost:
            meeting.refuse(lost)
            raise
        found = {name: int(bits, 16) for name, bits in left.items()}
        for other in others.values():
            found = {name: bits & int(other[name], 16) for name, bits in found.items()}
        answer = {name: f"{bits:x}" for name, bits in found.items()}
        meeting.tell(answer)
        return answer

    def _meeting(self, limit_s: float) -> Rendezvous:
        limits = replace(self._deadlines, connect_s=limit_s)
        return Rendezvous(self._topology, limits, duty=self._duty)


def _taken(answer: dict[str, Any]) -> dict[str, Any]:
    if "kind" in answer:
        raise error_from(answer["kind"], answer["message"])
    return answer


def _marked(error: Exception, touched: bool) -> Exception:
    if isinstance(error, CheckpointError):
        error.tainted = error.tainted or touched
    return error
