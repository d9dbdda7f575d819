"""One table with a row per sharing: who writes what, who reads what, and what must agree.

A *coordinate* names one payload of a component's non-tensor state. Participants with the same
coordinate share that payload, and exactly one of them writes it. Each participant reports its
coordinate and whether it writes; the coordinator builds the map of all owners from the reports.

A new sharing needs a new row, and participants that report its coordinate; nothing else changes.
Where participants alone know their coordinates, a `Division` holds them.
"""

from __future__ import annotations

import binascii
import heapq
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stepseal.layout._sharing import Division, Sharing, coordinates_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepseal.layout._sharing import AnySharing

__all__ = [
    "PayloadReport",
    "SharingRule",
    "agreeing",
    "can_read",
    "fits_world",
    "holds_own_keys",
    "payload_owner",
    "payload_owners",
    "payload_problems",
    "payload_report",
    "rule_of",
    "shared_out",
    "writes_plain",
    "writes_replica",
]


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
    agrees_in_sets: bool = False
    """Whether they must be equal on all that read one payload."""
    has_replicas: bool
    """Whether several participants may hold equal state, which a save can compare."""
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
    has_replicas=True,
    tensors_are_global=True,
    is_for_trees=True,
    reads=frozenset({Sharing.GLOBAL, Sharing.REPLICATED, Sharing.SHARDED}),
    any_world=True,
)
_TABLE = {
    Sharing.GLOBAL.value: replace(_ONE_FOR_ALL, has_replicas=False),
    Sharing.REPLICATED.value: _ONE_FOR_ALL,
    Sharing.SHARDED.value: replace(_ONE_FOR_ALL, is_for_trees=False),
    Sharing.PER_RANK.value: SharingRule(
        coordinate=_of_participant,
        agrees=False,
        has_replicas=False,
        tensors_are_global=False,
        is_for_trees=True,
        reads=frozenset({Sharing.PER_RANK}),
        any_world=False,
    ),
}
for _divided in (Sharing.PER_GROUP, Sharing.PER_NODE):
    _TABLE[_divided.value] = replace(
        _TABLE[Sharing.PER_RANK.value],
        coordinate=None,
        has_replicas=True,
        reads=frozenset({_divided}),
    )
# Sharded with sets: the sets hold different keys, and each has a payload.
_STAGES = replace(_TABLE[Sharing.SHARDED.value], coordinate=None, agrees=False, agrees_in_sets=True)


def rule_of(sharing: AnySharing) -> SharingRule:
    """Return the row of a sharing."""
    return _STAGES if holds_own_keys(sharing) else _TABLE[sharing.value]


def holds_own_keys(sharing: AnySharing) -> bool:
    """Return whether each set of ranks holds keys of its own, as the stages of a pipeline do."""
    return isinstance(sharing, Division) and sharing.sharing is Sharing.SHARDED


def _rule(sharing: str, *, has_sets: bool) -> SharingRule | None:
    return _STAGES if has_sets and sharing == Sharing.SHARDED.value else _TABLE.get(sharing)


def agreeing(sharing: str, coordinate: str | None, *, has_sets: bool = False) -> str | None:
    """Return a word that is the same for all whose fingerprints must be equal; None for nobody.

    Args:
        sharing: sharing of the component; with an unknown one all must agree.
        coordinate: of the payload that a participant reads.
        has_sets: whether sets of participants share its payloads.
    """
    rule = _rule(sharing, has_sets=has_sets)
    if rule is None or rule.agrees:
        return ""
    return coordinate if rule.agrees_in_sets else None


def can_read(live: AnySharing, saved: AnySharing, kind: str) -> bool:
    """Return whether a live component of a kind and a sharing can read a saved sharing."""
    found = Sharing(saved.value)
    return found in rule_of(live).reads and (kind != "tree" or rule_of(found).is_for_trees)


def fits_world(live: AnySharing, num_live: int, saved: AnySharing, num_saved: int) -> bool:
    """Return whether the participants of a job can read what those of the save wrote.

    Sets of participants may have other sizes, if the axes along which they differ are the same.

    Args:
        live: sharing of the component now, one that can read `saved`.
        num_live: number of participants now.
        saved: sharing that was saved.
        num_saved: number of participants that saved it.
    """
    if isinstance(live, Division) and isinstance(saved, Division) and not rule_of(live).any_world:
        return live.axes == saved.axes
    return rule_of(saved).any_world or num_saved == num_live


def payload_report(sharing: AnySharing, rank: int, participants: Sequence[str]) -> PayloadReport:
    """Return a participant's report; the first participant with a coordinate writes its payload.

    Args:
        sharing: sharing of the component, with its sets where it has some.
        rank: position of the participant in `participants`.
        participants: all participants, in ordinal order.
    """
    if isinstance(sharing, Division):
        mine = sharing.coordinates()[rank]
        return PayloadReport(mine, sharing.ranks_at(mine)[0] == rank)
    coordinate_of = rule_of(sharing).coordinate
    assert coordinate_of is not None, "a participant that alone knows its coordinate reports it"
    mine = coordinate_of(participants[rank])
    first = next(number for number, one in enumerate(participants) if coordinate_of(one) == mine)
    return PayloadReport(mine, first == rank)


def payload_problems(
    sharing: str, reports: Mapping[str, PayloadReport | None], axes: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Return, per participant, what is wrong with its report.

    It is empty if each participant reads exactly one payload, each payload has one owner, and there
    is a payload for each coordinate of the axes.

    Args:
        sharing: sharing of the component.
        reports: report of every participant; None means that it reads no payload.
        axes: name and size of each axis along which sets differ; None where there are no sets.
    """
    rule = _rule(sharing, has_sets=bool(axes))
    if rule is None:
        return dict.fromkeys(reports, f"expected a known sharing, found {sharing!r:.80}")
    if rule.tensors_are_global and not any(reports.values()):
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
    if rule.coordinate is None and not found:
        return _off_axes(readers, axes or {})
    return found


def _off_axes(readers: Mapping[str, Sequence[str]], axes: Mapping[str, int]) -> dict[str, str]:
    """Return who reads a coordinate that the axes lack; all, where one of the axes has no reader.

    There are no more sets than participants, so long products are never built.
    """
    if math.prod(axes.values()) != len(readers):
        text = f"expected a set for each coordinate of {dict(axes)}, found {len(readers)} sets"
        return {one: text for names in readers.values() for one in names}
    wrong = readers.keys() - coordinates_on(axes)
    text = f"expected a coordinate on {dict(axes)}"
    return {one: f"{text}, found {name!r:.80}" for name in wrong for one in readers[name]}


def payload_owners(reports: Mapping[str, PayloadReport | None]) -> dict[str, str]:
    """Map each participant to the owner of the payload that it reads; needs valid reports."""
    held = [(one, report) for one, report in reports.items() if report is not None]
    owners = {report.coordinate: one for one, report in held if report.writes}
    return {one: owners[report.coordinate] for one, report in held}


def payload_owner(
    saved: AnySharing,
    payloads: Mapping[str, str],
    participant: str,
    *,
    coordinate: str | None = None,
    participants: Sequence[str] = (),
) -> str | None:
    """Return the owner of the saved payload that a participant reads; None if there is none.

    A participant that did not take part in the save reads the payload of the whole job. Where sets
    share payloads, the coordinate decides, whoever was in the set at the save.

    Args:
        saved: sharing of the saved component, with its sets where it has some.
        payloads: participant of the save to the owner of its payload.
        participant: the participant that reads now.
        coordinate: its coordinate now, where sets share payloads.
        participants: all participants of the save, in ordinal order, where sets share payloads.
    """
    if isinstance(saved, Division):
        ranks = saved.ranks_at(coordinate) if coordinate is not None else ()
        return payloads[participants[ranks[0]]] if ranks else None
    owner = payloads.get(participant)
    if owner is None and rule_of(saved).any_world:
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


def shared_out(sizes: Mapping[str, int], num_ranks: int) -> dict[str, int]:
    """Return the rank that writes each tensor, so that all ranks write about the same bytes.

    The largest comes first, and each goes to the rank with the least so far. Only for tensors that
    are proven equal on all ranks; all compute the same.

    Args:
        sizes: key to size in bytes, equal on all ranks.
        num_ranks: number of ranks that hold all tensors.
    """
    loads = [(0, rank) for rank in range(num_ranks)]
    owners = {}
    for key in sorted(sizes, key=lambda one: (-sizes[one], one)):
        load, rank = loads[0]
        owners[key] = rank
        heapq.heapreplace(loads, (load + sizes[key], rank))
    return owners


def _shown(coordinate: str) -> str:
    return f"the payload {coordinate!r:.80}" if coordinate else "the payload of the job"
