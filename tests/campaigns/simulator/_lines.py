"""Lines between a coordinator and its participants that delay, repeat and lose messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.steps._kit import DEADLINES

from stepseal import errors
from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.simulator._world import Node, World

__all__ = ["Line"]

_RESTORING = (
    messages.Candidate,
    messages.Apply,
    messages.Restored,
    messages.RestoreFailed,
    messages.Checked,
    messages.Applied,
    messages.Rejected,
)
_ONCE = (
    messages.Hello,
    messages.AskSafePoint,
    messages.SafePoint,
    messages.Target,
    messages.Lapsed,
    messages.Fired,
)
"""Each is said once, in order, as TCP does it: a question that comes again would hold a rank."""


class Line:
    """What connects one participant with its coordinator; once cut, it stays cut.

    Args:
        world: time and randomness.
        head: process of the coordinator.
        node: process of the participant.
        reorders: messages of saves may overtake each other.
        wired: messages are encoded and decoded.
        life: of the participant, where it has one.
    """

    def __init__(
        self, world: World, head: Node, node: Node, *, reorders: bool, wired: bool, life: str = ""
    ) -> None:
        self.world = world
        self.head = head
        self.node = node
        self.reorders = reorders
        self.wired = wired
        self.life = life
        self.dead = False
        self.on_up: Callable[[messages.FromParticipant], None] = lambda _message: None
        self.on_down: Callable[[messages.FromCoordinator], None] = lambda _message: None
        self.on_lost_up: Callable[[messages.Failure], None] = lambda _cause: None
        self.on_lost_down: Callable[[messages.Failure], None] = lambda _cause: None
        self._free_at = {True: 0.0, False: 0.0}

    def up(self, message: messages.FromParticipant) -> None:
        """Carry a message to the coordinator."""
        if self.wired:
            message = messages.decode_from_participant(messages.encode_message(message))
        self._carry(message, True, lambda: self.on_up(message))

    def down(self, message: messages.FromCoordinator) -> None:
        """Carry a message to the participant."""
        if self.wired:
            message = messages.decode_from_coordinator(messages.encode_message(message))
        self._carry(message, False, lambda: self.on_down(message))

    def _carry(self, message: object, up: bool, arrive: Callable[[], None]) -> None:
        world, faults = self.world, self.world.faults
        if self.dead:
            return
        if world.chance(faults.loss):
            self.cut()
            return
        late = world.roll() * (30.0 if world.chance(faults.delay) else 0.01)
        arrival = world.now + late
        if not (self.reorders and not isinstance(message, (*_RESTORING, *_ONCE))):
            arrival = self._free_at[up] = max(arrival, self._free_at[up])
        target = self.head if up else self.node
        world.at(arrival - world.now, arrive, target)
        if world.chance(faults.repeat):
            again = arrival - world.now + world.roll() ** 4 * 30.0
            if not isinstance(message, _ONCE):
                world.at(again, arrive, target)

    def cut(self) -> None:
        """End the line: both ends notice, each in its own time."""
        if self.dead:
            return
        self.dead = True
        gone = messages.Failure(errors.ParticipantFailed.kind, f"line cut {self.life}")
        self.world.at(self.wait_s(), lambda: self.on_lost_up(gone), self.head)
        lost = messages.Failure(errors.CoordinatorLost.kind, "line cut")
        self.world.at(self.wait_s(), lambda: self.on_lost_down(lost), self.node)

    def wait_s(self) -> float:
        """Return how long an end may take to notice."""
        return self.world.roll() * DEADLINES.lost_s
