"""Incarnations: which start of the job owns a root, and which steps are in its lineage.

A job claims one incarnation per life, by an exclusive `link`; numbers only grow. The claim's record
names the step that the job resumed from. Together, the records define the lineage: for each older
incarnation, the last step that counts.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt, NotCurrent
from stepseal.layout import CONTROL, MAX_STEP, StepRef, seal, unix_time, unseal, utc_text
from stepseal.storage import KeyNotFound, put_if_absent, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepseal.storage import Storage

__all__ = [
    "INCARNATIONS",
    "ClaimRecord",
    "Doubt",
    "check_current",
    "claim",
    "claim_key",
    "highest_claim",
    "in_lineage",
    "left_lineage_at",
    "lineage_doubt",
    "lineage_limits",
    "newest_claim",
    "read_claims",
]

INCARNATIONS = f"{CONTROL}/incarnations"
"""One record per claim."""
_NAME = re.compile(r"([1-9][0-9]{0,15})\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_CLAIM_BYTES = 16384
_ATTEMPTS = 64


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """One claimed incarnation."""

    incarnation: int
    parent: StepRef | None
    """Step it resumed from; None for a fresh start."""
    damaged: bool = False
    """The record exists but is damaged, so its parent is not known."""
    claimed_at_s: float | None = field(default=None, compare=False)
    """Unix time by the claimant's clock; None if the record is damaged."""


def read_claims(storage: Storage) -> tuple[ClaimRecord, ...]:
    """Return all claims, oldest first; empty if there are none."""
    return tuple(_read_claim(storage, number) for number in _numbers(storage))


def newest_claim(storage: Storage) -> ClaimRecord | None:
    """Return the claim that owns the root, None if there is none; reads one record."""
    numbers = _numbers(storage)
    return _read_claim(storage, numbers[-1]) if numbers else None


def claim_key(incarnation: int) -> str:
    """Return the key of the record of a claim."""
    return f"{INCARNATIONS}/{incarnation}.json"


def highest_claim(storage: Storage) -> int:
    """Return the incarnation that owns the root, 0 if there is none; reads no record."""
    return max(_numbers(storage), default=0)


def _numbers(storage: Storage) -> list[int]:
    """Return every claimed number, ascending, also of damaged records; skips other names."""
    try:
        entries = storage.list_dir(INCARNATIONS)
    except KeyNotFound:
        return []
    return sorted(int(m[1]) for e in entries if (m := _NAME.fullmatch(e.name)))


def _read_claim(storage: Storage, number: int) -> ClaimRecord:
    try:
        data = read_bytes(storage, claim_key(number), _MAX_CLAIM_BYTES)
        body = unseal(data, what=claim_key(number), max_bytes=_MAX_CLAIM_BYTES)
        parent = _parent_of(body, number)
    except Corrupt:
        return ClaimRecord(number, None, damaged=True)
    return ClaimRecord(number, parent, claimed_at_s=_claimed_at(body))


def _claimed_at(body: object) -> float | None:
    assert isinstance(body, dict)
    try:
        return unix_time(body["claimed_at"])
    except ValueError:
        return None


def _parent_of(body: object, number: int) -> StepRef | None:
    """Return the parent in a claim's record; raise Corrupt if the record is not valid."""
    match body:
        case {
            "incarnation": found,
            "parent": parent,
            "claimed_at": str(),
            "host": str(),
            "pid": int(),
            **other,
        } if type(found) is int and found == number and not other:
            if parent is None:
                return None
            if (lineage := _lineage_of(parent)) is not None:
                return lineage
    raise Corrupt(f"{INCARNATIONS}/{number}.json: not the record of incarnation {number}")


def _lineage_of(parent: object) -> StepRef | None:
    match parent:
        case {"step": step, "manifest_sha256": str(sha256), "incarnation": by, **other}:
            numbers = type(step) is int and 0 <= step <= MAX_STEP and type(by) is int and by > 0
            if numbers and _SHA256.fullmatch(sha256) and not other:
                return StepRef(step, sha256, by)
        case _:
            pass
    return None


def claim(storage: Storage, parent: StepRef | None, *, now_s: float, above: int = 0) -> int:
    """Claim the next incarnation and return its number.

    Coordinator only, once per life of a job. The number is above all claims, and above the parent's
    incarnation, whose claim may be lost.

    Args:
        storage: the root, with its control folders made.
        parent: step that this incarnation resumes from; None for a fresh start.
        now_s: Unix time; the grace of steps that this claim excludes begins now.
        above: highest incarnation of the steps that this claim excludes; its claim may be lost,
            too.

    Raises:
        NotCurrent: other jobs kept claiming at the same time.
        StorageUnavailable: the storage refused; a harmless record may be left.

    Durability: on return the claim survives power loss.
    """
    number = max([above, 0 if parent is None else parent.incarnation, *_numbers(storage)])
    for _ in range(_ATTEMPTS):
        number += 1
        if put_if_absent(storage, claim_key(number), _record(number, parent, now_s)):
            return number
    raise NotCurrent(
        f"claim: other jobs took {_ATTEMPTS} incarnations up to {number} at the same time. "
        "Are several jobs started on one root? Stop all but one.",
        found=number,
    )


def _record(number: int, parent: StepRef | None, now_s: float) -> bytes:
    described = None
    if parent is not None:
        described = {
            "step": parent.step,
            "manifest_sha256": parent.manifest_sha256,
            "incarnation": parent.incarnation,
        }
    return seal(
        {
            "incarnation": number,
            "parent": described,
            "claimed_at": utc_text(now_s),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
    )


def check_current(storage: Storage, incarnation: int) -> None:
    """Raise unless `incarnation` is still the highest claim.

    Raises:
        NotCurrent: a newer incarnation owns the root; `found` is its number.
    """
    highest = highest_claim(storage)
    if highest == incarnation:
        return
    if highest > incarnation:
        why = (
            f"incarnation {highest} claimed this root after ours: another start of the job runs, "
            "or another program of it. A program that only reads uses stepseal.load; one that "
            "saves has a root of its own"
        )
    else:
        why = f"our claim is gone, the highest is {highest}: its file was removed"
    raise NotCurrent(
        f"expected incarnation {incarnation} to own this root, but {why}. "
        "This job must stop; it can no longer commit or remove steps.",
        expected=incarnation,
        found=highest,
    )


def lineage_limits(claims: Iterable[ClaimRecord]) -> dict[int, int | None]:
    """Return, per incarnation in the newest one's ancestry, the last step that counts (None: all).

    Walks from the newest claim to its parent's incarnation and so on. If a record is damaged, the
    parent of its incarnation is not known. Then all older incarnations count, because excluding
    them could leave the job without a step to resume from.
    """
    by_number = {record.incarnation: record for record in claims}
    if not by_number:
        return {}
    number = max(by_number)
    limits: dict[int, int | None] = {number: None}
    while True:
        record = by_number.get(number)
        if record is None or record.damaged:
            limits.update((older, None) for older in by_number if older < number)
            return limits
        parent = record.parent
        if parent is None or parent.incarnation >= number:
            return limits
        limits[parent.incarnation] = parent.step
        number = parent.incarnation


def in_lineage(limits: Mapping[int, int | None], incarnation: int, step: int) -> bool:
    """Return whether a step that `incarnation` committed is in the lineage of the newest claim.

    Claims come before commits. So if the step's incarnation is above all claims, its claim is lost.
    The step counts, because excluding it could leave the job without a step to resume from.
    """
    if not limits or incarnation > max(limits):
        return True
    if incarnation not in limits:
        return False
    limit = limits[incarnation]
    return limit is None or step <= limit


@dataclass(frozen=True, slots=True)
class Doubt:
    """Incarnations for which it is not certain which of their steps are in the lineage."""

    below: int
    """The doubt covers all incarnations below this number."""
    why: str
    """The record at fault, such as `incarnations/2.json is damaged`."""

    def covers(self, incarnation: int) -> bool:
        """Return whether the doubt concerns the steps of an incarnation."""
        return incarnation < self.below


def lineage_doubt(claims: Iterable[ClaimRecord], highest: int) -> Doubt | None:
    """Return the incarnations for which the records do not show for certain which steps count.

    In doubt, `lineage_limits` and `in_lineage` count a step, so that a job can always resume. A
    prune must not remove a step that is in doubt.

    Args:
        claims: all claims.
        highest: highest incarnation among the committed steps, zero for none. Claims come before
            commits: if it is above all claims, the newest claim is lost, and the step that it
            resumed from is not known. Steps must be listed before the claims are read.
    """
    by_number = {record.incarnation: record for record in claims}
    number = max(by_number, default=0)
    if highest > number:
        return Doubt(highest + 1, f"incarnations/{highest}.json is missing")
    while number:
        record = by_number.get(number)
        if record is None or record.damaged:
            what = "missing" if record is None else "damaged"
            return Doubt(number, f"incarnations/{number}.json is {what}")
        if record.parent is None:
            return None
        if record.parent.incarnation >= number:
            return Doubt(number, f"incarnations/{number}.json resumed from no older incarnation")
        number = record.parent.incarnation
    return None


def left_lineage_at(claims: Iterable[ClaimRecord], incarnation: int, step: int) -> float | None:
    """Return when a step that is now outside the lineage last left it.

    A claim excluded it then. Unix time; None if the record of that claim is missing or damaged.
    """
    records = sorted(claims, key=lambda record: record.incarnation)
    leaver = next(
        number
        for number in reversed(range(len(records)))
        if in_lineage(lineage_limits(records[:number]), incarnation, step)
    )
    return records[leaver].claimed_at_s
