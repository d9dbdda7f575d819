"""Which step a job resumes from: chosen by the coordinator alone, newest first, with reasons.

Every step that is passed over is named with its reason. A step that cannot be read now is passed
over like a damaged one; none of this ever deletes anything. Where nothing is left to choose, a
whole step that a prune moved, and did not delete yet, comes back.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import (
    Corrupt,
    NoResumableStep,
    StepNotFound,
    StorageUnavailable,
)
from stepseal.layout import step_name
from stepseal.steps._catalog import StepEntry, read_step, refuse_newer, step_numbers
from stepseal.steps._claims import in_lineage, lineage_limits, read_claims
from stepseal.steps._hidden import hidden_commits, put_back_resumable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from stepseal.layout import StepRef
    from stepseal.steps._hidden import Inspect
    from stepseal.storage import Storage

__all__ = ["Selection", "highest_incarnation", "select"]

_LOOKS = 8


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidate, and why others were not chosen."""

    entry: StepEntry | None
    has_commits: bool
    """At least one step was committed here by stepseal, by this run or another, sound or not, and
    stands in its place or was moved out of it and not deleted."""
    reasons: dict[str, str] = field(default_factory=dict)


def select(
    storage: Storage,
    run_id: str,
    *,
    step: int | None,
    exclude: Collection[int],
    inspect: Inspect,
) -> Selection:
    """Choose the step to restore.

    Args:
        storage: the root.
        run_id: run that steps must belong to.
        step: restore exactly this one, whatever its lineage; None for the newest resumable step of
            the lineage.
        exclude: steps that were tried and failed.
        inspect: level-1 check of a step's files (types, sizes).

    Raises:
        StepNotFound: `step` was given and is not there.
        NoResumableStep: `step` was given and is no resume point.
        Corrupt: `step` was given and is damaged.
        IncompatibleFormat: a newer release wrote `step`, or the newest step.
        StorageUnavailable: the root cannot be listed, or `step` was given and cannot be read; or
            steps kept vanishing while they were looked at.
    """
    place = functools.partial(
        put_back_resumable, storage, run_id, step=step, exclude=exclude, inspect=inspect
    )
    try:
        found = _select(storage, run_id, step, exclude, inspect)
    except StepNotFound:
        if not place():
            raise
        return _select(storage, run_id, step, exclude, inspect)
    if found.entry is None and place():
        return _select(storage, run_id, step, exclude, inspect)
    return found


def _select(
    storage: Storage, run_id: str, step: int | None, exclude: Collection[int], inspect: Inspect
) -> Selection:
    if step is not None:
        return _exactly(storage, run_id, step, inspect)
    for _ in range(_LOOKS):
        found = _newest(storage, run_id, exclude, inspect)
        if found is not None:
            return found
    raise StorageUnavailable(
        f"restore: in {_LOOKS} looks at the root a step vanished before it could be read. Is "
        "another job or `stepseal prune` at work on this root? Stop it."
    )


def _newest(
    storage: Storage, run_id: str, exclude: Collection[int], inspect: Inspect
) -> Selection | None:
    """Choose the newest; None if a step vanished since it was listed.

    What was pruned was pruned for a newer step, which the same listing may not show yet.
    """
    limits = lineage_limits(read_claims(storage))
    reasons: dict[str, str] = {}
    has_commits = bool(exclude)
    numbers = step_numbers(storage)
    for number in reversed(numbers):
        if number in exclude:
            continue
        try:
            entry, reason = _look_at(storage, number, run_id, limits, inspect)
        except StepNotFound:
            return None
        if reason is None:
            return Selection(entry, has_commits=True, reasons=reasons)
        has_commits = has_commits or entry is None or entry.is_commit
        reasons[step_name(number)] = reason
    if not has_commits:
        reasons = hidden_commits(storage)
        if step_numbers(storage) != numbers:  # one was put back between the two looks
            return None
    return Selection(None, has_commits or bool(reasons), reasons)


def _look_at(
    storage: Storage,
    number: int,
    run_id: str,
    limits: Mapping[int, int | None],
    inspect: Inspect,
) -> tuple[StepEntry | None, str | None]:
    """Return what stands there, None if it cannot be read, and why it is no step to resume from.

    What was refused is looked at once more: a refusal may pass, and an older step costs work.

    Raises:
        StepNotFound: it went away.
        IncompatibleFormat: a newer release wrote it.
    """

    def look() -> tuple[StepEntry, str | None]:
        entry = read_step(storage, number, run_id)
        refuse_newer(entry)
        return entry, _reason_against(storage, entry, limits, inspect)

    try:
        with suppress(StorageUnavailable):
            return look()
        return look()
    except (Corrupt, StorageUnavailable) as error:
        return None, f"cannot be read: {error}"


def highest_incarnation(storage: Storage, run_id: str, parent: StepRef | None) -> int:
    """Return the highest incarnation among the steps that a claim leaves behind, zero for none.

    They are the steps above the parent, or all before a fresh start. Should their claim be lost,
    a claim at or below that number would leave them in the lineage.

    Raises:
        StorageUnavailable: the root cannot be listed.
    """
    found = 0
    for number in step_numbers(storage):
        if parent is None or number > parent.step:
            # pruned meanwhile, or passed over because it cannot be read: no reason to fail
            with suppress(StepNotFound, Corrupt, StorageUnavailable):
                manifest = read_step(storage, number, run_id).manifest
                found = max(found, 0 if manifest is None else manifest.incarnation)
    return found


def _reason_against(
    storage: Storage, entry: StepEntry, limits: Mapping[int, int | None], inspect: Inspect
) -> str | None:
    if entry.manifest is None or entry.state != "committed":
        return f"{entry.state}: {entry.problem}"
    manifest = entry.manifest
    if not in_lineage(limits, manifest.incarnation, entry.step):
        return (
            f"outside the lineage: incarnation {manifest.incarnation} went on after a newer one "
            "had resumed elsewhere"
        )
    if not manifest.resumable:
        return f"not resumable (kind {manifest.kind})"
    problems = inspect(storage, entry.name, manifest)
    return "; ".join(problems[:3]) if problems else None


def _exactly(storage: Storage, run_id: str, step: int, inspect: Inspect) -> Selection:
    entry = read_step(storage, step, run_id)
    refuse_newer(entry)
    if entry.state == "foreign":
        raise StepNotFound(
            f"restore(step={step}): {entry.name} is foreign: {entry.problem}. Only steps of this "
            "run are restored, and with unverified=True folders that stock DCP wrote.",
            step=step,
            path=entry.name,
        )
    problems: Sequence[str] = (entry.problem,)
    if entry.manifest is not None and entry.state == "committed":
        if not entry.manifest.resumable:
            reason = f"not resumable (kind {entry.manifest.kind})"
            raise NoResumableStep(
                f"restore(step={step}): {entry.name} is {reason}: it holds no full state. "
                "Restore a full step.",
                step=step,
                path=entry.name,
                reasons={entry.name: reason},
            )
        problems = inspect(storage, entry.name, entry.manifest)
    if problems:
        raise Corrupt(
            f"restore(step={step}): {'; '.join(problems[:5])}. A step that was asked for is never "
            "replaced by another; restore() without a number falls back to an older one.",
            step=step,
            path=entry.name,
            problems=tuple(problems),
        )
    return Selection(entry, has_commits=True)
