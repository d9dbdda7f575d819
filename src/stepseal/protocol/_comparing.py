"""Which replicas differ at a save, and where: decided by the coordinator from digests alone.

Invariants: a digest that is missing differs from all others; a set counts as equal only if as many
participants told a digest as the set has. The lowest participant of a set is what the others are
compared with, because it writes, or wrote until validation shared the writing out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import Failure, named

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from stepseal.protocol._messages import Captured, ComponentReport, PartReport

__all__ = ["Comparison"]

_MAX_OPINIONS = 4
"""Most participants of a set that are asked for the digests of all tensors."""
_MAX_PATHS = 100
"""Most paths that a failure lists one by one."""
_NUM_SHOWN = 3
"""Paths that a message names; it only counts the others."""
_ADVICE = (
    "make it equal before the save, leave parts out with add(..., exclude=...), or declare "
    "sharing=ss.PER_RANK"
)


@dataclass(frozen=True, slots=True)
class _Set:
    """One set of one component whose participants do not all agree."""

    component: str
    name: str
    level: str
    size: int
    opinions: tuple[tuple[str, ...], ...]
    """Participants with equal digests together; those of the lowest one come first."""

    def asked(self) -> tuple[str, ...]:
        """Return one participant of each opinion, as many as are asked."""
        return tuple(held[0] for held in self.opinions[:_MAX_OPINIONS])


class Comparison:
    """The sets of one save whose participants differ, and what is still asked about them.

    Args:
        captured: reports of all participants, in ordinal order.
        digests: of each participant: component, name of the set, digest.
        names: the components to compare.
        parts: of all participants, in ordinal order; None before anything was written.
    """

    def __init__(
        self,
        captured: Mapping[str, Captured],
        digests: Mapping[str, Mapping[str, Mapping[str, str]]],
        names: Collection[str],
        parts: Mapping[str, PartReport] | None = None,
    ) -> None:
        self._differing: list[_Set] = []
        self._warned: list[_Set] = []
        """Those that may differ."""
        self._full: dict[str, list[str]] = {}
        """Participant to the components that it compares with what was written."""
        self._parts = dict(parts or {})
        self._told: dict[str, messages.Compared] = {}
        facts = {p: {f.name: f for f in c.components} for p, c in captured.items()}
        for name in sorted(names):
            held = {p: found[name] for p, found in facts.items() if name in found}
            self._compare(name, held, digests)

    def _compare(
        self,
        name: str,
        reports: Mapping[str, ComponentReport],
        digests: Mapping[str, Mapping[str, Mapping[str, str]]],
    ) -> None:
        holders: dict[str, list[str]] = {}
        for participant, report in reports.items():
            if report.validate == "full" and report.replicas and self._parts:
                self._full.setdefault(participant, []).append(name)
            for at in report.replicas:
                holders.setdefault(at, []).append(participant)
        for at, held in holders.items():
            opinions: dict[str, list[str]] = {}
            for participant in held:
                told = digests.get(participant, {}).get(name, {}).get(at, "")
                # Who told none has an opinion of its own.
                opinions.setdefault(told or f"none of {participant}", []).append(participant)
            first = reports[held[0]]
            size = first.replicas[at]
            if len(opinions) > 1 or len(held) != size or f"none of {held[0]}" in opinions:
                grouped = tuple(map(tuple, opinions.values()))
                found = self._warned if first.validate == "warn" else self._differing
                found.append(_Set(name, at, first.validate, size, grouped))

    @property
    def differing(self) -> frozenset[str]:
        """The components of which replicas differ."""
        return frozenset(one.component for one in self._differing)

    def asks(self, call: int) -> dict[str, messages.Compare]:
        """Return, per participant, what it is asked, so that the tensors can be named."""
        wanted: dict[str, dict[str, list[str]]] = {}
        for one in self._differing:
            if one.level == "quick" or len(one.opinions) < 2:
                continue
            for participant in one.asked():
                wanted.setdefault(participant, {}).setdefault(one.component, []).append(one.name)
        for participant in self._full:
            wanted.setdefault(participant, {})
        return {p: self._ask(call, p, sets) for p, sets in wanted.items()}

    def _ask(self, call: int, participant: str, sets: dict[str, list[str]]) -> messages.Compare:
        full = self._full.get(participant, [])
        return messages.Compare(call, sets, full, self._parts if full else {})

    def take(self, participant: str, message: messages.Compared) -> None:
        """Take an answer."""
        self._told.setdefault(participant, message)

    def missing(self, call: int) -> tuple[str, ...]:
        """Return who has not answered."""
        return tuple(p for p in self.asks(call) if p not in self._told)

    def failures(self) -> dict[str, Failure]:
        """Return, per participant that differs from the lowest of its set, how it does."""
        found: dict[str, Failure] = {}
        for one in self._differing:
            lowest, *others = one.opinions
            blamed = [p for held in others for p in held] or list(lowest)
            cause = self._cause(one.component, self._paths(one), functools.partial(_text, one))
            for participant in blamed:
                found.setdefault(participant, cause)
        for participant, told in self._told.items():
            for name, amounts in told.amounts.items():
                if amounts and name not in self.differing:
                    found.setdefault(participant, self._cause(name, sorted(amounts), _unlike(name)))
        return found

    def _cause(
        self, name: str, paths: Sequence[str], text: Callable[[Sequence[str]], str]
    ) -> Failure:
        """Return the failure of who differs at these paths."""
        amounts: dict[str, str] = {}
        for told in self._told.values():
            amounts = told.amounts.get(name, {}) | amounts
        full = [f"{path} ({amounts[path]})" if path in amounts else path for path in paths]
        return Failure(
            errors.StateMismatch.kind,
            text(full),
            path=paths[0] if paths else None,
            component=name,
            problems=[f"component {name}: {path}" for path in full[:_MAX_PATHS]],
        )

    def reasons(self) -> dict[str, str]:
        """Return, per component that differs, who differs and where, in words."""
        texts: dict[str, list[str]] = {}
        for one in self._differing:
            texts.setdefault(one.component, []).append(_text(one, self._paths(one)))
        return {name: "; ".join(found) for name, found in texts.items()}

    def warnings(self) -> list[str]:
        """Return, of each set that differs and may, who does."""
        return [_text(one, ()) for one in self._warned]

    def _paths(self, one: _Set) -> list[str]:
        """Return the paths whose digests differ between those who answered, sorted."""
        answers = [
            self._told[p].digests.get(one.component, {}).get(one.name, {})
            for p in one.asked()
            if p in self._told
        ]
        paths = sorted({path for answer in answers for path in answer})
        return [path for path in paths if len({answer.get(path) for answer in answers}) > 1]


def _unlike(name: str) -> Callable[[Sequence[str]], str]:
    return lambda paths: (
        f"component {name}: what was written is not what this participant holds: "
        f"{_few(paths)}; its digests were equal: is the storage sound?"
    )


def _few(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NUM_SHOWN} more" if len(paths) > _NUM_SHOWN else ""
    return f"{', '.join(paths[:_NUM_SHOWN])}{more}"


def _text(one: _Set, paths: Sequence[str]) -> str:
    ranks = one.name if one.name.startswith("ranks ") else f"ranks of {one.name or 'the job'}"
    which = f"the {ranks} must hold equal state"
    lowest, *others = one.opinions
    holders = [p for held in one.opinions for p in held]
    if len(holders) != one.size:
        return (
            f"component {one.component}: {which}: expected digests of {one.size} participants, "
            f"found those of {named(holders)}"
        )
    if not others:
        return f"component {one.component}: {which}: {named(lowest)} told no digest"
    what = f"{_few(paths) or 'it'} {'differ' if len(paths) > 1 else 'differs'}"
    sides = "; ".join(named(held) for held in others[:_MAX_OPINIONS])
    more = f" and {len(others) - _MAX_OPINIONS} more" if len(others) > _MAX_OPINIONS else ""
    return (
        f"component {one.component}: {which}: {what}: {named(lowest)} against "
        f"{sides}{more}: {_ADVICE}"
    )
