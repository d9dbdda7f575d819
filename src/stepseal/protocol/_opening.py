"""Calls that the coordinator opens: what it asks for, of whom, and in which order.

In an SPMD job the ranks make the calls. Where participants have no loop in common, the coordinator
opens each call: it fixes the roster, and tells every life on it to begin. Pure values and
decisions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from stepseal.errors import InvalidInput
from stepseal.layout import role_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = [
    "Begin",
    "BeginRestore",
    "BeginSave",
    "Dismiss",
    "Holds",
    "Opening",
    "Relation",
    "Scalar",
    "Thaw",
    "check_frozen",
    "stages",
]

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Scalar = str | int | float | bool | None
"""A value of a cut field."""
_FIELD = r"[A-Za-z_][A-Za-z0-9_.-]*"
_RELATION = re.compile(rf"\s*({_FIELD})\s*(<=|==)\s*({_FIELD})\s*")


class BeginSave(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Capture your components for this call; nothing may change them meanwhile."""

    call: _Number
    life: str
    """The life that is meant; every other one refuses."""
    participants: list[str]
    """The participants of the receiver's role that take part, in ordinal order."""
    step: _Number
    freeze: bool = False
    """Change nothing either from your capture on until `Thaw`, or until the call has ended."""
    publish: list[str] = []
    """Components that are published, with `step` as the version; none for a step of all."""


class Thaw(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """All participants have captured: whoever is frozen goes on."""

    call: _Number


class Holds(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The participant holds these components; sent when it is admitted, and after each addition."""

    components: list[str]


class BeginRestore(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Join this restore."""

    call: _Number
    life: str
    participants: list[str]
    step: _Number | None = None
    fresh: bool = False
    policies: dict[str, str] = {}
    """Component to a policy that comes before the one it was added with."""
    only: list[str] | None = None
    """Components to restore; None for all."""
    check_only: bool = False


class Dismiss(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The coordinator does not need this participant any more; no goodbye is waited for."""


Begin = BeginSave | BeginRestore
"""A call that the coordinator opens."""


@dataclass(frozen=True, slots=True)
class Relation:
    """What must hold between two fields of a cut."""

    left: str
    sign: Literal["<=", "=="]
    right: str

    @classmethod
    def parse(cls, text: object) -> Relation:
        """Return the relation that a text such as `watermark <= position` states.

        Raises:
            InvalidInput: the text is no relation.
        """
        found = _RELATION.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidInput(
                f"relations: expected 'FIELD <= FIELD' or 'FIELD == FIELD', found {text!r:.80}",
                found=text,
            )
        return cls(found[1], "<=" if found[2] == "<=" else "==", found[3])

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right}"

    def holds(self, left: Scalar, right: Scalar) -> bool:
        """Return whether the relation holds; `<=` compares numbers, or texts, with each other."""
        if self.sign == "==":
            return left == right
        if isinstance(left, str) and isinstance(right, str):
            return left <= right
        return _is_number(left) and _is_number(right) and left <= right  # type: ignore[operator]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Opening:
    """A call as the coordinator's user asks for it."""

    kind: Literal["save", "restore"]
    step: int | None = None
    """Number of the step, or version of the publication."""
    order: tuple[str, ...] = ()
    """Roles in the order in which they are captured: consumers before producers."""
    relations: tuple[Relation, ...] = ()
    cut: Mapping[str, Scalar] = field(default_factory=dict)
    """Fields of the cut that the controller knows."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    fresh: bool = False
    policies: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] | None = None
    """Components to restore; None for all."""
    check_only: bool = False
    freeze: tuple[str, ...] = ()
    """Roles that stay frozen from their capture until all have captured."""
    publish: tuple[str, ...] = ()
    """Components that are published, with `step` as the version; none for a step of all."""

    def begins(self, call: int, names: Iterable[str], lives: Mapping[str, str]) -> dict[str, Begin]:
        """Return what some participants are told, so that they begin.

        Args:
            call: number of the call.
            names: whom to tell.
            lives: every participant of the call and its life, in ordinal order.
        """
        participants: dict[str, list[str]] = {}
        for name in lives:
            participants.setdefault(role_of(name), []).append(name)
        return {one: self._begin(call, lives[one], participants[role_of(one)]) for one in names}

    def _begin(self, call: int, life: str, participants: list[str]) -> Begin:
        if self.kind == "save":
            assert self.step is not None
            freeze = role_of(participants[0]) in self.freeze
            return BeginSave(call, life, participants, self.step, freeze, [*self.publish])
        return BeginRestore(
            call,
            life,
            participants,
            self.step,
            self.fresh,
            dict(self.policies),
            None if self.only is None else [*self.only],
            self.check_only,
        )


def stages(roster: Sequence[str], order: Collection[str]) -> list[tuple[str, ...]]:
    """Return the participants of each stage of a capture; a stage begins after the one before it.

    Roles that `order` does not name make the last stage together.
    """
    ranks = {role: number for number, role in enumerate(order)}
    held: dict[int, list[str]] = {}
    for one in roster:
        held.setdefault(ranks.get(role_of(one), len(ranks)), []).append(one)
    return [tuple(held[number]) for number in sorted(held)]


def check_frozen(freeze: Sequence[str], order: Collection[str]) -> tuple[str, ...]:
    """Return the roles that are frozen until all have captured.

    Raises:
        InvalidInput: one has no place in the order, so nobody knows whom it might hold up.
    """
    unordered = [role for role in freeze if role not in order]
    if unordered:
        raise InvalidInput(
            f"freeze: expected roles that order= names, found {', '.join(unordered)}. Name them "
            "there, consumers before producers: a frozen producer may hold up its consumers.",
            expected=tuple(order),
            found=tuple(freeze),
        )
    return tuple(freeze)
