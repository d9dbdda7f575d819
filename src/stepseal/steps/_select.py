"""Selects the step that a job resumes from; only the coordinator does so, newest step first.

For every skipped step, the result holds the reason. A step that cannot be read now is skipped like
a damaged one. Selection never deletes anything. If no step is left, a whole step that a prune
moved to the trash is put back.
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
    """The candidate, and why other steps were not chosen."""

    entry: StepEntry | None
    has_commits: bool
    """The root holds at least one step that stepseal committed, of any run: sound or damaged, at
    its final name or in the trash or superseded area."""
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
        step: number of the step, in any lineage; None for the newest resumable step of the
            lineage.
        exclude: steps that were tried and failed.
        inspect: check of a step's files (types, sizes).

    Raises:
        StepNotFound: `step` was given and does not exist.
        NoResumableStep: `step` was given and cannot be resumed.
        Corrupt: `step` was given and is damaged.
        IncompatibleFormat: a newer release wrote `step`, or the newest step.
        StorageUnavailable: the root cannot be listed, `step` was given and cannot be read, or
            steps vanished on each try.
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
        f"restore: in each of {_LOOKS} tries, a step vanished before it could be read. Is another "
        "job or `stepseal prune` running on this root? Stop it."
    )


def _newest(
    storage: Storage, run_id: str, exclude: Collection[int], inspect: Inspect
) -> Selection | None:
    """Choose the newest step; None if a step vanished after it was listed.

    A vanished step was pruned because of a newer one, which the same listing may lack.
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
        if step_numbers(storage) != numbers:  # one was put back between the two listings
            return None
    return Selection(None, has_commits or bool(reasons), reasons)


def _look_at(
    storage: Storage,
    number: int,
    run_id: str,
    limits: Mapping[int, int | None],
    inspect: Inspect,
) -> tuple[StepEntry | None, str | None]:
    """Return the entry, None if it cannot be read, and the reason why it cannot be resumed.

    A refused read is tried once more: the refusal may be temporary, and an older step loses work.

    Raises:
        StepNotFound: the step vanished.
        IncompatibleFormat: a newer release wrote the step.
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
    """Return the highest incarnation among the steps that a claim excludes, zero for none.

    A claim excludes the steps above its parent, or all steps for a fresh start. If their own claim
    is lost, a new claim with this number or a lower one would leave them in the lineage.

    Raises:
        StorageUnavailable: the root cannot be listed.
    """
    found = 0
    for number in step_numbers(storage):
        if parent is None or number > parent.step:
            # pruned meanwhile, or not readable: no reason to fail
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
            f"outside the lineage: incarnation {manifest.incarnation} continued after a newer one "
            "had resumed from another step"
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
                f"restore(step={step}): {entry.name} is {reason}: it does not hold full state. "
                "Restore a full step.",
                step=step,
                path=entry.name,
                reasons={entry.name: reason},
            )
        problems = inspect(storage, entry.name, entry.manifest)
    if problems:
        raise Corrupt(
            f"restore(step={step}): {'; '.join(problems[:5])}. restore(step=N) never restores "
            "another step; restore() without a number falls back to an older one.",
            step=step,
            path=entry.name,
            problems=tuple(problems),
        )
    return Selection(entry, has_commits=True)
