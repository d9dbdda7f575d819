"""Carries out a plan on a root, one step after another, the oldest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepseal.retention._keep_rules import Retention
    from stepseal.retention._plan import Plan
    from stepseal.steps import PruneReport, RemoveSteps

__all__ = ["prune"]


def prune(removal: RemoveSteps, plan: Plan, retention: Retention) -> PruneReport:
    """Carry out a plan.

    Safe to interrupt at any time, and to run concurrently with readers, pins, and another start of
    the job.

    Args:
        removal: the step store.
        plan: plan for this root; void if another incarnation has claimed the root since. Its
            judgements decide about folders that are already in the trash; for steps that this call
            moves there, the retention's grace applies.
        retention: the retention that the plan was made with.

    Raises:
        NotCurrent: a newer incarnation owns the root; completed removals are not undone.

    Durability: a step that is reported as removed stays removed after power loss.
    """
    work = removal.retirement(
        plan.incarnation,
        trash_grace_s=retention.trash_grace_s,
        trashed=[judgement.name for judgement in plan.trash],
    )
    doomed = [plan.entries[judgement.step] for judgement in plan.steps if not judgement.keep]
    if doomed:  # the newer steps of the plan may be visible, but not durable yet
        work.attempt(work.confirm_commits)
    for known in doomed:
        work.attempt(work.remove_step, known)
    for aside in plan.superseded:
        if not aside.keep:
            work.attempt(work.remove_superseded, aside.name)
    for trashed in plan.trash:
        if trashed.action != "keep":
            work.attempt(work.settle_trashed, trashed.name, trashed.action == "delete")
    return work.report
