"""What participants were told by their calls, and what must hold of it when the storage fails."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Call", "check_told"]

_GRACE_S = 5.0


@dataclass(frozen=True)
class Call:
    """What one participant was told by one call."""

    name: str
    outcome: str
    """`ok`, or the type of the error with its step."""
    text: str = ""
    errno: int | None = None
    path: str | None = None
    seconds: float = 0.0


def check_told(
    calls: Sequence[Sequence[Call]], wanted: int, *, interruptible: bool, deadline_s: float
) -> list[str]:
    """Return what is wrong with the outcomes, each with its kind and a colon before it.

    Args:
        calls: of each participant, in their order; participant 0 also made the job.
        wanted: errno of the fault.
        interruptible: an EINTR must not reach the caller.
        deadline_s: of every phase.
    """
    found = []
    for call in [call for each in calls for call in each]:
        if call.seconds > deadline_s + _GRACE_S:
            found.append(f"slow: {call.name} took {call.seconds:.1f} s: {call.outcome}")
        if call.outcome != "ok" and not hasattr(errors, call.outcome.split()[0]):
            found.append(f"untyped: {call.name}: {call.outcome}: {call.text}")
        if call.name.startswith("again") and call.outcome != "ok":
            found.append(f"stuck: {call.name}: {call.outcome}: {call.text}")
    found += _differences(calls)
    for rank, each in enumerate(calls):
        found += _first_failure(rank, each, wanted, interruptible=interruptible)
    return found


def _differences(calls: Sequence[Sequence[Call]]) -> list[str]:
    """All are told the same of each call, with the same errno and the same path."""
    (world, *first), *others = calls
    if world.outcome != "ok":
        return []
    found = []
    for rank, other in enumerate(others, 1):
        told = [[(call.name, call.outcome) for call in each] for each in (first, other)]
        if told[0] != told[1]:
            found.append(f"differ: {told[0]} and {told[1]}")
            continue
        for one, two in zip(first, other, strict=True):
            if (one.errno, one.path) != (two.errno, two.path):
                found.append(
                    f"differ: {one.name}: {one.outcome}: errno and path are {one.errno}, "
                    f"{one.path} for participant 0 and {two.errno}, {two.path} for {rank}"
                )
    return found


def _first_failure(
    rank: int, calls: Sequence[Call], wanted: int, *, interruptible: bool
) -> list[str]:
    """The first call that failed says why."""
    first = next((call for call in calls if call.outcome != "ok"), None)
    if first is None:
        return []
    if interruptible and wanted == errno.EINTR:
        return [f"interrupted: {first.name} of participant {rank}: {first.text}"]
    code = errno.errorcode[wanted]
    if first.errno == wanted or code in first.text:
        return []
    return [
        f"no errno: {first.name} of participant {rank}: expected {code}: "
        f"{first.outcome}: {first.text}"
    ]
