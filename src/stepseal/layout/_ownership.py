"""One table with a row per sharing: who writes what, who reads what, and what must agree.

A *coordinate* names one payload of a component's non-tensor state. Participants with the same
coordinate share that payload, and exactly one of them writes it. Each participant reports its
coordinate and whether it writes; the coordinator builds the map of all owners from the reports.

A new sharing needs a new row, and participants that report its coordinate; nothing else changes.
"""

from __future__ import annotations

import binascii
import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "PayloadReport",
    "Sharing",
    "SharingRule",
    "can_read",
    "must_agree",
    "payload_owner",
    "payload_owners",
    "payload_problems",
    "payload_report",
    "rule_of",
    "writes_plain",
    "writes_replica",
]


class Sharing(str, enum.Enum):
    """How a component's state relates across participants; one payload per ..."""

    GLOBAL = "global"
    """... job: one participant owns it, the others have none or an equal copy."""
    REPLICATED = "replicated"
    """... job: every participant holds the same."""
    SHARDED = "sharded"
    """... box of a global tensor."""
    PER_RANK = "per_rank"
    """... participant."""


@dataclass(frozen=True, slots=True)
class PayloadReport:
    """Which payload one participant reads, and whether it writes it."""

    coordinate: str
    """Name of the payload among those of its component."""
    writes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingRule:
    """One row of the table."""

    coordinate: Callable[[str], str] | None
    """Maps a participant to the coordinate of its payload; None if only that participant knows."""
    agrees: bool
    """Whether keys, shapes and dtypes must be equal on all participants."""
    tensors_are_global: bool
    """Whether tensors are boxes of global tensors; otherwise they are stored in trees."""
    is_for_trees: bool
    """Whether a component of kind `tree` can have this sharing."""
    reads: frozenset[Sharing]
    """Saved sharings that a live component with this sharing can read."""
    any_world: bool
    """Whether a job with another number of participants can read the component."""


def _of_job(_participant: str) -> str:
    return ""


def _of_participant(participant: str) -> str:
    return participant


_ONE_FOR_ALL = SharingRule(
    coordinate=_of_job,
    agrees=True,
    tensors_are_global=True,
    is_for_trees=True,
    reads=frozenset({Sharing.GLOBAL, Sharing.REPLICATED, Sharing.SHARDED}),
    any_world=True,
)
_TABLE = {
    Sharing.GLOBAL.value: _ONE_FOR_ALL,
    Sharing.REPLICATED.value: _ONE_FOR_ALL,
    Sharing.SHARDED.value: replace(_ONE_FOR_ALL, is_for_trees=False),
    Sharing.PER_RANK.value: SharingRule(
        coordinate=_of_participant,
        agrees=False,
        tensors_are_global=False,
        is_for_trees=True,
        reads=frozenset({Sharing.PER_RANK}),
        any_world=False,
    ),
}


def rule_of(sharing: Sharing) -> SharingRule:
    """Return the row of a sharing."""
    return _TABLE[sharing.value]


def must_agree(sharing: str) -> bool:
    """Return whether keys, shapes and dtypes must be equal; true for an unknown sharing."""
    rule = _TABLE.get(sharing)
    return rule is None or rule.agrees


def can_read(live: Sharing, saved: Sharing, kind: str) -> bool:
    """Return whether a live component of a kind and a sharing can read a saved sharing."""
    return saved in rule_of(live).reads and (kind != "tree" or rule_of(saved).is_for_trees)


def payload_report(sharing: Sharing, rank: int, participants: Sequence[str]) -> PayloadReport:
    """Return a participant's report; the first participant with a coordinate writes its payload.

    Args:
        sharing: sharing of the component.
        rank: position of the participant in `participants`.
        participants: all participants, in ordinal order.
    """
    coordinate_of = rule_of(sharing).coordinate
    assert coordinate_of is not None, "a participant that alone knows its coordinate reports it"
    mine = coordinate_of(participants[rank])
    first = next(number for number, one in enumerate(participants) if coordinate_of(one) == mine)
    return PayloadReport(mine, first == rank)


def payload_problems(sharing: str, reports: Mapping[str, PayloadReport | None]) -> dict[str, str]:
    """Return, per participant, what is wrong with its report; empty if each payload has one owner.

    Args:
        sharing: sharing of the component.
        reports: report of every participant; None means that it reads no payload.
    """
    rule = _TABLE.get(sharing)
    if rule is None:
        return dict.fromkeys(reports, f"expected a known sharing, found {sharing!r:.80}")
    if not any(reports.values()):
        return {}
    found: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    for one, report in reports.items():
        if report is None:
            found[one] = "expected a payload that it reads, as the others have, found none"
            continue
        expected = report.coordinate if rule.coordinate is None else rule.coordinate(one)
        if report.coordinate != expected:
            read = _shown(report.coordinate)
            found[one] = f"expected to read {_shown(expected)}, found that it reads {read}"
        else:
            readers.setdefault(expected, []).append(one)
    for coordinate, names in readers.items():
        writers = [one for one in names if (report := reports[one]) and report.writes]
        if len(writers) != 1:
            told = " and ".join(writers[:4]) or "none"
            text = f"expected one participant that writes {_shown(coordinate)}, found {told}"
            found |= dict.fromkeys(writers or names, text)
    return found


def payload_owners(reports: Mapping[str, PayloadReport | None]) -> dict[str, str]:
    """Map each participant to the owner of the payload that it reads; needs valid reports."""
    held = [(one, report) for one, report in reports.items() if report is not None]
    owners = {report.coordinate: one for one, report in held if report.writes}
    return {one: owners[report.coordinate] for one, report in held}


def payload_owner(sharing: Sharing, payloads: Mapping[str, str], participant: str) -> str | None:
    """Return the owner of the saved payload that a participant reads; None if there is none.

    A participant that did not take part in the save reads the payload of the whole job.

    Args:
        sharing: sharing of the saved component.
        payloads: participant of the save to the owner of its payload.
        participant: the participant that reads now.
    """
    owner = payloads.get(participant)
    if owner is None and rule_of(sharing).any_world:
        return next(iter(payloads.values()), None)
    return owner


def writes_plain(rank: int, lowest: int = 0) -> bool:
    """Return whether a rank writes plain (non-DTensor) tensors; the lowest rank writes them.

    Args:
        rank: own rank.
        lowest: lowest rank that holds the same tensors.
    """
    return rank == lowest


def writes_replica(key: str, coordinates: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return whether a rank writes a replicated box; exactly one of the replicas does.

    Args:
        key: key of the tensor; a stable hash of it spreads the work over the replicas.
        coordinates: coordinates of the rank on each mesh axis along which the box is replicated.
        sizes: sizes of these axes.
    """
    index, count = 0, 1
    for coordinate, size in zip(coordinates, sizes, strict=True):
        index = index * size + coordinate
        count *= size
    return binascii.crc32(key.encode()) % count == index


def _shown(coordinate: str) -> str:
    return f"the payload {coordinate!r:.80}" if coordinate else "the payload of the job"
