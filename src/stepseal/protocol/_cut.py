"""What participants of several roles must agree on, beyond what holds within each role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import role_of
from stepseal.protocol._failures import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepseal.protocol._messages import Captured
    from stepseal.protocol._opening import Opening, Scalar

__all__ = ["CONTROLLER", "by_role", "merged_cut", "role_problems"]

CONTROLLER = "the controller"
"""Stands for the one who opened the call, in messages."""


def by_role(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the participants of each role, in the given order."""
    found: dict[str, list[str]] = {}
    for one in names:
        found.setdefault(role_of(one), []).append(one)
    return found


def merged_cut(captured: Mapping[str, Captured], opening: Opening | None) -> dict[str, Scalar]:
    """Return the fields of the cut of all roles; those of the controller come first."""
    found: dict[str, Scalar] = {} if opening is None else dict(opening.cut)
    for message in captured.values():
        for name, value in message.cut.items():
            found.setdefault(name, value)
    return found


def role_problems(captured: Mapping[str, Captured], opening: Opening | None) -> dict[str, Failure]:
    """Return, per participant, how it contradicts another role; empty if all roles fit.

    A component belongs to one role. A field of the cut has one value. Declared relations hold.

    Args:
        captured: reports of all participants, in ordinal order; alike within each role.
        opening: what the controller said; None where the ranks made the call.
    """
    told_by = by_role(captured)
    first = {role: captured[names[0]] for role, names in told_by.items()}
    found = _in_two_roles(first, told_by)
    sources: dict[str, list[str]] = {}
    values: dict[str, Scalar] = {}
    if opening is not None:
        values = dict(opening.cut)
        sources = {name: [CONTROLLER] for name in values}
    for role, message in first.items():
        for name, value in message.cut.items():
            known = values.setdefault(name, value)
            if not _same(known, value):
                text = (
                    f"field {name} of the cut is {value!r} here, but {known!r} according to "
                    f"{', '.join(sources[name][:4])}"
                )
                found.setdefault(told_by[role][0], Failure(errors.StateMismatch.kind, text))
            else:
                sources.setdefault(name, []).extend(told_by[role][:1])
    return found or _broken_relations(values, sources, opening, next(iter(captured)))


def _same(one: Scalar, other: Scalar) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _in_two_roles(
    first: Mapping[str, Captured], told_by: Mapping[str, list[str]]
) -> dict[str, Failure]:
    owners: dict[str, str] = {}
    found: dict[str, Failure] = {}
    for role, message in first.items():
        for report in message.components:
            owner = owners.setdefault(report.name, role)
            if owner != role:
                text = (
                    f"component {report.name}: also a component of role {owner} "
                    f"({told_by[owner][0]}): a step has each name once. Add it under another name"
                )
                cause = Failure(errors.StateMismatch.kind, text, component=report.name)
                found.setdefault(told_by[role][0], cause)
    return found


def _broken_relations(
    values: Mapping[str, Scalar],
    sources: Mapping[str, list[str]],
    opening: Opening | None,
    anybody: str,
) -> dict[str, Failure]:
    """Return who reports a field of a relation that does not hold."""
    found: dict[str, Failure] = {}
    for relation in () if opening is None else opening.relations:
        names = (relation.left, relation.right)
        missing = [name for name in names if name not in values]
        if missing:
            text = f"relation {relation}: nobody reports {' and '.join(missing)}"
        elif relation.holds(values[names[0]], values[names[1]]):
            continue
        else:
            told = (f"{name} is {values[name]!r} on {sources[name][0]}" for name in names)
            text = f"relation {relation} does not hold: {', '.join(told)}"
        whom = [one for name in names for one in sources.get(name, ()) if one != CONTROLLER]
        for one in whom or [anybody]:
            found.setdefault(one, Failure(errors.StateMismatch.kind, text))
    return found
