"""Which step a job resumes from: selection by the coordinator alone, newest first, with a reason for each step passed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.commit._catalog import StepEntry, list_steps, read_step
from stepseal.commit._claims import in_lineage, lineage_limits, read_claims
from stepseal.errors import Corrupt, StepNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import Storage

    Inspect = Callable[[Storage, str, Manifest], Sequence[str]]

__all__ = ["Selection", "select"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidate, and why others were not chosen."""

    entry: StepEntry | None
    has_commits: bool
    """At least one step of this run is committed or damaged."""
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
        inspect: level-1 check of a step's files (types, sizes, exact set).

    Raises:
        StepNotFound: `step` was given and is not there.
        Corrupt: `step` was given and is damaged.
    """
    if step is not None:
        return _exactly(storage, run_id, step, inspect)
    limits = lineage_limits(read_claims(storage))
    entries = list_steps(storage, run_id)
    reasons: dict[str, str] = {}
    for entry in reversed(entries):
        if entry.step in exclude:
            continue
        reason = _reason_against(storage, entry, limits, inspect)
        if reason is None:
            return Selection(entry, True, reasons)
        reasons[entry.name] = reason
    ours = any(entry.state != "foreign" for entry in entries)
    return Selection(None, ours, {} if not ours else reasons)


def _reason_against(
    storage: Storage, entry: StepEntry, limits: dict[int, int | None], inspect: Inspect
) -> str | None:
    if entry.manifest is None or entry.state != "committed":
        return f"{entry.state}: {entry.problem}"
    manifest = entry.manifest
    if not in_lineage(limits, manifest.incarnation, entry.step):
        return (
            f"outside the lineage: incarnation {manifest.incarnation} went on after a newer one "
            "had resumed "
            "elsewhere"
        )
    if not manifest.resumable:
        return f"not resumable (kind {manifest.kind})"
    problems = inspect(storage, entry.name, manifest)
    return "; ".join(problems[:3]) if problems else None


def _exactly(storage: Storage, run_id: str, step: int, inspect: Inspect) -> Selection:
    entry = read_step(storage, step, run_id)
    if entry.state == "foreign":
        raise StepNotFound(
            f"restore(step={step}): {entry.name} is {entry.problem}. Only steps of this run are "
            "restored.",
            step=step,
            path=entry.name,
        )
    problems: Sequence[str] = (entry.problem,)
    if entry.manifest is not None and entry.state == "committed":
        problems = inspect(storage, entry.name, entry.manifest)
    if problems:
        raise Corrupt(
            f"restore(step={step}): {'; '.join(problems[:5])}. A step that was asked for is never "
            "replaced by "
            "another; restore() without a number falls back to an older one.",
            step=step,
            path=entry.name,
            problems=tuple(problems),
        )
    return Selection(entry, True)
