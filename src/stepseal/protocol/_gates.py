"""Saves that writers make by themselves, at different times: who is waited for, and what is open.

A *gate* is a component of a role that one step cannot do without; the coordinator names all of
them. Each participant of the role is its writer. The coordinator opens the call of a step when the
first writer asks, or when the controller wants the step. Pure values and decisions. Invariants:

- A save counts for one gate of one participant in one call, by name; nothing is counted.
- Steps are committed in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.errors import InvalidInput
from stepseal.layout import check_component_name, role_of, step_name
from stepseal.protocol._granting import SaveAsked, SaveRefused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.protocol import _actions as actions
    from stepseal.protocol._gated_round import GatedRound

__all__ = ["Gate", "Gates", "as_gates"]


@dataclass(frozen=True, slots=True)
class Gate:
    """A component that writers of a role save by themselves."""

    role: str
    name: str

    @classmethod
    def parse(cls, text: object) -> Gate:
        """Return the gate that `ROLE/NAME` states, or `ROLE` where both are the same.

        Raises:
            InvalidInput: the text is no gate.
        """
        if not isinstance(text, str):
            raise InvalidInput(f"gates: expected 'ROLE' or 'ROLE/NAME', found {text!r:.80}")
        role, _, name = text.rpartition("/")
        role = role or name
        for segment in (*role.split("/"), name):
            check_component_name(segment)
        return cls(role, name)

    def __str__(self) -> str:
        return self.role if self.role == self.name else f"{self.role}/{self.name}"


def as_gates(texts: Iterable[str]) -> tuple[Gate, ...]:
    """Return the gates that texts state.

    Raises:
        InvalidInput: one is no gate, or two have the same component name.
    """
    if isinstance(texts, str):
        raise InvalidInput("gates: expected a list of str, found one str")
    gates = tuple(map(Gate.parse, texts))
    owners: dict[str, Gate] = {}
    for one in gates:
        if (other := owners.setdefault(one.name, one)) is not one:
            raise InvalidInput(
                f"gates: {other} and {one} are both component {one.name}: a step has each name "
                "once. Use 'ROLE/NAME' with another name.",
                component=one.name,
            )
    return gates


@dataclass(slots=True)
class _Failed:
    """The last attempt of a step that failed."""

    kind: str
    message: str
    asked: set[tuple[str, str]]
    """Who has asked for what in that attempt, or was told of its end since."""
    outcome: actions.Told | None
    """The outcome, until the controller is told."""


@dataclass(slots=True)
class Gates:
    """The gates of a coordinator, and the calls that are open or have ended."""

    gates: tuple[Gate, ...]
    open: dict[int, GatedRound] = field(default_factory=dict)
    """Step to its call."""
    newest: int | None = None
    """Newest step that was restored or committed."""
    _failed: dict[int, _Failed] = field(default_factory=dict)

    def names_of(self, participant: str) -> list[str]:
        """Return what a participant is expected to write for each step."""
        return [gate.name for gate in self.gates if gate.role == role_of(participant)]

    def without_writer(self, roster: Iterable[str]) -> list[str]:
        """Return the gates that nobody on the roster can write."""
        roles = {role_of(one) for one in roster}
        return [str(gate) for gate in self.gates if gate.role not in roles]

    def refusal(self, participant: str, asked: SaveAsked) -> SaveRefused | None:
        """Return why a writer cannot save this; None if it can.

        A writer that has not asked in an attempt that failed is late, not a new attempt.
        """
        step = asked.step
        if asked.name not in (names := self.names_of(participant)):
            expected = ", ".join(map(str, self.gates)) or "none at all"
            text = (
                f"the coordinator does not expect it: expected one of {', '.join(names)}"
                if names
                else f"the coordinator expects nothing of this role; its gates are {expected}"
            )
            kind = errors.InvalidInput.kind
            return _refused(participant, asked, kind, f"{text}. See gates=.", is_late=False)
        if self.newest is not None and step <= self.newest:
            text = f"{step_name(self.newest)} was committed or restored before"
            return _refused(participant, asked, errors.StepExists.kind, text, is_late=True)
        failed = self._failed.get(step)
        if step in self.open or failed is None or (participant, asked.name) in failed.asked:
            return None
        return self.too_late(participant, asked)

    def too_late(self, participant: str, asked: SaveAsked) -> SaveRefused:
        """Refuse a save for an attempt that has ended, or began before the writer was admitted."""
        failed = self._failed.get(asked.step)
        if failed is None or asked.step in self.open:
            text = "the save began before this participant was admitted"
            return _refused(participant, asked, errors.ParticipantFailed.kind, text, is_late=True)
        failed.asked.add((participant, asked.name))
        text = f"it comes too late: {failed.message}"
        return _refused(participant, asked, failed.kind, text, is_late=True)

    def untold(self, step: int) -> actions.Told | None:
        """Return and forget the failure of a step that the controller was not told yet.

        None if the writers have begun a new attempt since.
        """
        failed = self._failed.get(step)
        if failed is None or step in self.open:
            return None
        outcome, failed.outcome = failed.outcome, None
        return outcome

    def ended(self, found: GatedRound) -> None:
        """Remember how a call ended."""
        self.open.pop(found.step, None)
        told = found.told
        assert told is not None
        if (failure := found.failure) is None:
            self.went_on_from(max(found.step, -1 if self.newest is None else self.newest))
        else:
            outcome = None if found.wanted else told
            self._failed[found.step] = _Failed(*failure, found.asked, outcome)

    def went_on_from(self, step: int | None) -> None:
        """Remember the newest step; failures of older ones do not matter any more."""
        self.newest = step
        self._failed = {n: one for n, one in self._failed.items() if step is not None and n > step}

    def give_up_all(self, why: str) -> list[actions.Action]:
        """Abort all calls that are not being published."""
        todo: list[actions.Action] = []
        for found in self.open.values():
            todo += found.give_up(errors.ParticipantFailed.kind, why)
        return todo

    def publish(self, now: float) -> list[actions.Action]:
        """Publish what is ready, oldest first; give up what a newer step has overtaken.

        An older step that only needs its digests is waited for.
        """
        found = [self.open[step] for step in sorted(self.open)]
        newest = max((one.step for one in found if one.is_ready), default=-1)
        todo: list[actions.Action] = []
        for one in found:
            if one.is_ready:
                todo += one.publish(now)
            elif one.step < newest and one.is_finishing:
                break
            elif one.step < newest:
                text = f"{step_name(newest)} is complete, and steps are committed in order"
                todo += one.give_up(errors.StepExists.kind, text)
        return todo


def _refused(
    participant: str, asked: SaveAsked, kind: str, why: str, *, is_late: bool
) -> SaveRefused:
    text = f"save of step {asked.step}: {participant}: component {asked.name}: {why}"
    return SaveRefused(asked.step, asked.name, kind, text, is_late)
