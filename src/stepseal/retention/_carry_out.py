"""A plan carried out on the steps of a root: the oldest step first, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepseal.retention._plan import Plan
    from stepseal.retention._rules import Retention
    from stepseal.steps import PruneReport, RemoveSteps

__all__ = ["prune"]


def prune(removal: RemoveSteps, plan: Plan, retention: Retention) -> PruneReport:
    """Carry out a plan.

    Safe to interrupt at any instant and to run beside readers, pins, and another start of the job.

    Args:
        removal: the root.
        plan: of this root; void when another incarnation has claimed the root since. What lies in
            the trash goes by its judgements, what is moved there now by the retention's grace.
        retention: by which it was made.

    Raises:
        NotCurrent: a newer incarnation owns the root; what was done so far stays done.

    Durability: a step that is reported as removed stays removed after power loss.
    """
    work = removal.retirement(
        plan.incarnation,
        trash_grace_s=retention.trash_grace_s,
        trashed=[judgement.name for judgement in plan.trash],
    )
    judgements = ((plan.entries[v.step].manifest, v.keep) for v in plan.steps)
    doomed = [manifest for manifest, keep in judgements if not keep and manifest is not None]
    if doomed:  # the newer steps of the plan may be visible, but not durable yet
        work.attempt(work.confirm_commits)
    for manifest in doomed:
        work.attempt(work.remove_step, manifest)
    for aside in plan.superseded:
        if not aside.keep:
            work.attempt(work.remove_superseded, aside.name)
    for trashed in plan.trash:
        if trashed.action != "keep":
            work.attempt(work.settle_trashed, trashed.name, trashed.action == "delete")
    return work.report
