"""Plans a prune without carrying it out: a judgement with a reason for every folder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.layout import unix_time
from stepseal.retention._areas import Terms, judge_superseded, judge_trash
from stepseal.retention._judge import NOT_KNOWN, StepCase, StepJudgement, judge
from stepseal.retention._soundness import file_problems
from stepseal.steps import in_lineage, left_lineage_at, lineage_doubt, lineage_limits, parse_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from stepseal.retention._areas import AsideJudgement, TrashJudgement
    from stepseal.retention._keep_rules import Retention
    from stepseal.retention._soundness import Inspect
    from stepseal.steps import ClaimRecord, Doubt, KnownStep, RemoveSteps

__all__ = ["Plan", "plan_prune"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which folders stay and which are removed, at one point in time."""

    incarnation: int
    """The newest incarnation at that time, 0 if there was none. A newer one voids the plan."""
    steps: tuple[StepJudgement, ...]
    """Every folder with a step's name, ascending."""
    entries: Mapping[int, KnownStep]
    superseded: tuple[AsideJudgement, ...]
    trash: tuple[TrashJudgement, ...]
    """Every folder that was in the trash already."""
    doubt: str = ""
    """The missing or damaged claim record because of which steps stay; empty if there is none."""


def plan_prune(
    removal: RemoveSteps,
    run_id: str,
    retention: Retention,
    *,
    inspect: Inspect,
    trash_grace_s: float | None = None,
    sound: set[str] | None = None,
) -> Plan:
    """Judge everything in a root; changes nothing.

    Args:
        removal: the step store.
        run_id: run id of the root.
        retention: what to keep.
        inspect: returns the problems of a committed step, one line each; called newest first.
        trash_grace_s: seconds to keep whole folders that are in the trash already; None uses the
            retention's value.
        sound: attempts whose files were found complete before, and are not inspected again; those
            found now are added.

    Raises:
        StorageUnavailable: the root cannot be listed or read.
    """
    now_s = removal.now_s()
    trashed = removal.trash()
    entries = {entry.step: entry for entry in removal.entries(run_id)}
    claims = removal.claims()  # after the steps: every claim comes before its steps
    doubt = _doubt(claims, [*_incarnations(entries.values()), *_pruned_incarnations(trashed)])
    limits = lineage_limits(claims)
    left_at = functools.partial(left_lineage_at, claims)
    complete: set[str] = set() if sound is None else sound
    problems_of = functools.partial(file_problems, removal, run_id, inspect, complete)
    cases = [
        _case(known, doubt, limits, left_at, problems_of, now_s)
        for known in reversed(entries.values())
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


def _incarnations(entries: Iterable[KnownStep]) -> list[int]:
    return [known.incarnation for known in entries if known.state == "committed"]


def _pruned_incarnations(trashed: Sequence[str]) -> list[int]:
    folders = [parse_folder(name) for name in trashed]
    return [folder.incarnation for folder in folders if folder and folder.fate == ".pruned"]


def _doubt(claims: Sequence[ClaimRecord], numbers: Sequence[int]) -> Doubt | None:
    """Return the doubt about the lineage, None if it concerns no step.

    Args:
        claims: all claims.
        numbers: incarnations of all committed steps.
    """
    doubt = lineage_doubt(claims, max(numbers, default=0))
    return doubt if doubt is not None and any(map(doubt.covers, numbers)) else None


def _case(
    known: KnownStep,
    doubt: Doubt | None,
    limits: Mapping[int, int | None],
    left_at: Callable[[int, int], float | None],
    problems_of: Callable[[KnownStep], Sequence[str]],
    now_s: float,
) -> StepCase:
    facts = known.facts
    if known.state != "committed":
        return StepCase(facts, "untouchable", f"{known.state}: {known.problem}")
    if doubt is not None and doubt.covers(known.incarnation):
        return StepCase(facts, "untouchable", f"{doubt.why}: {NOT_KNOWN}")
    if not in_lineage(limits, known.incarnation, facts.step):
        left_s = left_at(known.incarnation, facts.step)  # maybe just now, even if the step is old
        since_s = None if left_s is None else max(left_s, unix_time(facts.created_at))
        outside_s = None if since_s is None else now_s - since_s
        return StepCase(facts, "outside the lineage", outside_s=outside_s)
    if not known.resumable:
        return StepCase(facts, "not resumable")
    problems = problems_of(known)
    if problems:
        return StepCase(facts, "untouchable", f"damaged: {problems[0]}")
    return StepCase(facts, "good")
