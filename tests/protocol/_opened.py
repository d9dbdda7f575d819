"""A coordinator that opens its calls, without threads: admissions, calls and what it tells whom."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tests.steps._kit import DEADLINES, attempt_id, component, part_report

from stepseal.layout import StepRef
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._opening import Opening, Relation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.protocol._gates import Gate

__all__ = ["ORDER", "Actors", "opening"]

ORDER = ("trainer", "buffer")
NAMES = {"trainer": "model", "buffer": "samples", "reward": "judge"}


def opening(step: int = 10, relations: Sequence[str] = (), **changes: Any) -> Opening:  # noqa: ANN401
    """Return the opening of a save, trainers before the buffer."""
    parsed = tuple(map(Relation.parse, relations))
    return Opening("save", step, ORDER, parsed, **changes)


class Actors:
    """Admits participants and answers for them; `told` holds everything that was sent."""

    def __init__(self, *participants: str, gates: tuple[Gate, ...] = ()) -> None:
        numbers = itertools.count(1)
        self.coordinator = Coordinator((), DEADLINES, lambda: attempt_id(next(numbers)), gates)
        self.told: list[tuple[str, messages.FromCoordinator]] = []
        self.others: list[actions.Action] = []
        self.lives: dict[str, str] = {}
        for participant in participants:
            self.admit(participant)

    def take(self, todo: Sequence[actions.Action]) -> None:
        for action in todo:
            if isinstance(action, actions.Send):
                self.told.append((action.to, action.message))
            else:
                self.others.append(action)

    def admit(self, participant: str, *, connects: bool = True) -> str:
        """Admit a participant as a new life; return the life."""
        life = self.lives[participant] = f"life{len(self.lives)}.{len(self.told)}"
        self.take(self.coordinator.admit(participant, life))
        if connects:
            self.hear(participant, messages.Hello(participant, "", "", life))
        return life

    def hear(
        self, participant: str, message: messages.FromParticipant, life: str | None = None
    ) -> None:
        """Let the coordinator hear a message, by default from the current life."""
        life = self.lives[participant] if life is None else life
        self.take(self.coordinator.on_message(participant, message, 1.0, life))

    def lose(self, participant: str, life: str | None = None) -> None:
        """Let the connection of a life end."""
        life = self.lives[participant] if life is None else life
        cause = messages.Failure("participant_failed", "connection closed")
        self.take(self.coordinator.on_lost(participant, cause, life))

    def open(self, what: Opening) -> int:
        call, todo = self.coordinator.open(what, 0.0)
        self.take(todo)
        return call

    def capture(self, participant: str, call: int, step: int = 10, **changes: Any) -> None:  # noqa: ANN401
        """Report a capture; by default of the component that belongs to the role."""
        role = participant.partition("/")[0]
        values = {"components": [component(NAMES[role])], "cut": {}, "metrics": {}, "tags": []}
        self.hear(participant, messages.Captured(call, step, **(values | changes)))

    def prepare(self, participant: str, call: int) -> None:
        (write,) = (m for to, m in self.told if to == participant and self.is_write(m, call))
        assert isinstance(write, messages.Write)
        part = part_report(participant)
        self.hear(participant, messages.Prepared(call, write.attempt, part))

    @staticmethod
    def is_write(message: messages.FromCoordinator, call: int) -> bool:
        return isinstance(message, messages.Write) and message.call == call

    def stage(self, call: int) -> None:
        self.take(self.coordinator.on_driver(actions.Staged(call, "staging", "nonce"), 1.0))

    def publish(self, call: int) -> None:
        self.take(self.coordinator.on_driver(actions.Published(call, "a" * 64), 1.0))

    def select(self, call: int, **roles: str) -> None:
        """Let the coordinator's driver choose a step with these components."""
        ref = StepRef(10, "a" * 64, 1)
        event = actions.Selected(call, ref, attempt_id(1), True, roles=roles)
        self.take(self.coordinator.on_driver(event, 1.0))

    def begun(self, call: int) -> list[str]:
        """Return who was told to begin a call, in order."""
        kinds = (messages.BeginSave, messages.BeginRestore)
        return [to for to, m in self.told if isinstance(m, kinds) and m.call == call]

    def outcome(self, call: int) -> Any:  # noqa: ANN401 - any outcome
        """Return the one outcome of a call that its opener was told; None without one."""
        found = [
            a.outcome for a in self.others if isinstance(a, actions.Told) and a.outcome.call == call
        ]
        assert len(found) <= 1
        return found[0] if found else None
