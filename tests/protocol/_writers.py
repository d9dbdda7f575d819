"""Writers of gated saves and their coordinator, without threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.protocol._opened import Actors

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._gates import as_gates
from stepseal.protocol._opening import Opening, Relation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ALL", "Writers", "opened"]

ALL = ("actor/0", "actor/1", "critic/0")


class Writers(Actors):
    """Two actors and a critic; both roles write the component of their name for each step."""

    def __init__(self, *participants: str, gates: Sequence[str] = ("actor", "critic")) -> None:
        super().__init__(*(participants or ALL), gates=as_gates(gates))

    def take(self, todo: Sequence[actions.Action]) -> None:
        super().take(todo)
        super().take(self.coordinator.on_time(1.0))  # as the driver does after all events

    def ask(self, participant: str, step: int = 10, name: str = "") -> Any:  # noqa: ANN401
        """Ask, and return the answer."""
        num = len(self.told)
        self.hear(participant, messages.SaveAsked(step, name or participant.partition("/")[0]))
        answers = (messages.SaveGranted, messages.SaveRefused)
        (answer,) = (m for _, m in self.told[num:] if isinstance(m, answers))
        return answer

    def want(self, step: int = 10, relations: Sequence[str] = (), **changes: Any) -> int:  # noqa: ANN401
        parsed = tuple(map(Relation.parse, relations))
        return self.open(Opening("save", step, (), parsed, **changes))

    def attempt(self, call: int) -> str:
        """Return the attempt of a call that is staged."""
        return next(m.attempt for _, m in self.told if self.is_write(m, call))  # type: ignore[union-attr]

    def write(self, participant: str, call: int) -> None:
        """Report that all files of a participant are complete."""
        self.hear(participant, messages.EnginesReturned(call, self.attempt(call)))

    def finish(self, participant: str, call: int) -> None:
        self.write(participant, call)
        self.prepare(participant, call)

    def finish_all(self, call: int) -> None:
        for one in ALL:
            self.write(one, call)
        for one in ALL:
            self.prepare(one, call)

    def published(self) -> list[int]:
        """Return the steps whose publication was ordered."""
        return [a.step for a in self.others if isinstance(a, actions.Publish)]

    def inventories(self) -> list[str]:
        return [to for to, m in self.told if isinstance(m, messages.TakeInventory)]

    def aborted(self, call: int) -> messages.Aborted:
        """Return why a call failed, as its writers were told."""
        kinds = (messages.Aborted,)
        return next(m for _, m in self.told if isinstance(m, kinds) and m.call == call)


def opened(step: int = 10, **options: Any) -> tuple[Writers, int]:  # noqa: ANN401
    """Return writers whose first one has opened the call of a step."""
    writers = Writers(**options)
    call: int = writers.ask("actor/0", step).call
    writers.stage(call)
    return writers, call
