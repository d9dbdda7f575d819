"""What a prune would do to a root, without doing it: a judgement and a reason for everything."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.layout import unix_time
from stepseal.retention._areas import Terms, judge_superseded, judge_trash
from stepseal.retention._judge import NOT_KNOWN, StepCase, StepJudgement, judge
from stepseal.retention._rules import StepInfo
from stepseal.steps import in_lineage, left_lineage_at, lineage_doubt, lineage_limits, parse_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from stepseal.layout import Manifest
    from stepseal.retention._areas import AsideJudgement, TrashJudgement
    from stepseal.retention._rules import Retention
    from stepseal.steps import ClaimRecord, Doubt, RemoveSteps, StepEntry

    Inspect = Callable[[StepEntry, Manifest], Sequence[str]]

__all__ = ["Plan", "plan_prune"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays and what goes, as of one look."""

    incarnation: int
    """The newest one at that time, zero for no claim at all. Any other one voids the plan."""
    steps: tuple[StepJudgement, ...]
    """Every folder with a step's name, ascending."""
    entries: Mapping[int, StepEntry]
    superseded: tuple[AsideJudgement, ...]
    trash: tuple[TrashJudgement, ...]
    """Every folder that lay in the trash already."""
    doubt: str = ""
    """The claim record for want of which steps stay; empty when every step's lineage is known."""


def plan_prune(
    removal: RemoveSteps,
    run_id: str,
    retention: Retention,
    *,
    inspect: Inspect,
    trash_grace_s: float | None = None,
) -> Plan:
    """Judge everything in a root; changes nothing.

    Args:
        removal: the root.
        run_id: of the root.
        retention: what to keep.
        inspect: returns what is wrong with a committed step, one line each; asked from the newest
            step on, once per step.
        trash_grace_s: seconds for which whole folders that lie in the trash already are left alone;
            None takes the retention's.

    Raises:
        StorageUnavailable: the root cannot be listed or read; then nothing is known.
    """
    now_s = removal.now_s()
    trashed = removal.trash()
    entries = {entry.step: entry for entry in removal.entries(run_id)}
    claims = removal.claims()  # after the steps, each of which was claimed before
    doubt = _doubt(claims, [*_incarnations(entries.values()), *_pruned_incarnations(trashed)])
    limits = lineage_limits(claims)
    left_at = functools.partial(left_lineage_at, claims)
    cases = [
        _case(entry, doubt, limits, left_at, inspect, now_s)
        for entry in reversed(list(entries.values()))
    ]
    guards = removal.guards()
    judgements = judge(
        cases[::-1], retention.keep, guards, orphan_grace_s=retention.superseded_grace_s
    )
    has_good = any(case.standing == "good" for case in cases)
    terms = Terms(guards, doubt, has_good, now_s)
    grace_s = retention.trash_grace_s if trash_grace_s is None else trash_grace_s
    return Plan(
        claims[-1].incarnation if claims else 0,
        judgements,
        entries,
        judge_superseded(removal.superseded(), terms, retention.superseded_grace_s),
        judge_trash(removal, trashed, terms, grace_s),
        "" if doubt is None else doubt.why,
    )


def _incarnations(entries: Iterable[StepEntry]) -> list[int]:
    committed = [entry.manifest for entry in entries if entry.state == "committed"]
    return [manifest.incarnation for manifest in committed if manifest is not None]


def _pruned_incarnations(trashed: Sequence[str]) -> list[int]:
    folders = [parse_folder(name) for name in trashed]
    return [folder.incarnation for folder in folders if folder and folder.fate == ".pruned"]


def _doubt(claims: Sequence[ClaimRecord], numbers: Sequence[int]) -> Doubt | None:
    """Return what is not certain of the lineage, None where it concerns no step.

    Args:
        claims: all of them.
        numbers: incarnations of what was committed.
    """
    doubt = lineage_doubt(claims, max(numbers, default=0))
    return doubt if doubt is not None and any(map(doubt.covers, numbers)) else None


def _case(
    entry: StepEntry,
    doubt: Doubt | None,
    limits: Mapping[int, int | None],
    left_at: Callable[[int, int], float | None],
    inspect: Inspect,
    now_s: float,
) -> StepCase:
    manifest = entry.manifest
    if manifest is None or entry.state != "committed":
        return StepCase(StepInfo(entry.step), "untouchable", f"{entry.state}: {entry.problem}")
    facts = StepInfo(entry.step, manifest.created_at, manifest.metrics, manifest.tags)
    if doubt is not None and doubt.covers(manifest.incarnation):
        return StepCase(facts, "untouchable", f"{doubt.why}: {NOT_KNOWN}")
    if not in_lineage(limits, manifest.incarnation, entry.step):
        left_s = left_at(manifest.incarnation, entry.step)  # an old step perhaps just now
        since_s = None if left_s is None else max(left_s, unix_time(manifest.created_at))
        outside_s = None if since_s is None else now_s - since_s
        return StepCase(facts, "outside the lineage", outside_s=outside_s)
    if not manifest.resumable:
        return StepCase(facts, "not resumable")
    problems = inspect(entry, manifest)
    if problems:
        return StepCase(facts, "untouchable", f"damaged: {problems[0]}")
    return StepCase(facts, "good")
