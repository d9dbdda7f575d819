"""Decides which steps stay: a pure function over the steps of a root, with a reason for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepseal.layout import duration_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.retention._keep_rules import KeepRule
    from stepseal.steps import Guards, StepInfo

__all__ = ["NOT_KNOWN", "NO_GOOD_STEP", "StepCase", "StepJudgement", "judge"]

NO_GOOD_STEP = "no step is known to be good to resume from: nothing is removed"
NOT_KNOWN = "whether this step counts is not known"


@dataclass(frozen=True, slots=True)
class StepCase:
    """One folder with a step's name, with the facts that retention needs."""

    facts: StepInfo
    standing: Literal["good", "not resumable", "outside the lineage", "untouchable"]
    """`good`: in the lineage of this run, resumable, and all its files exist.
    `untouchable`: not a sound commit of this run, or in doubt about its lineage; never removed."""
    why: str = ""
    """Why it is untouchable."""
    outside_s: float | None = 0.0
    """Seconds since it left the lineage, or was saved outside it; None if not known."""


@dataclass(frozen=True, slots=True)
class StepJudgement:
    """Whether a step stays, and why."""

    step: int
    keep: bool
    reasons: tuple[str, ...]


def judge(
    cases: Sequence[StepCase],
    rule: KeepRule,
    guards: Guards,
    *,
    orphan_grace_s: float,
) -> tuple[StepJudgement, ...]:
    """Return a judgement for every step, in the order given.

    Kept are: the steps that the rule chooses, steps that a guard protects, the newest good step,
    and every step that is not a good step of this lineage (steps outside the lineage only for a
    time). If no step is good, all are kept.

    Args:
        cases: all steps, ascending.
        rule: chooses among the good steps.
        guards: pins, leases, and the step that the job resumed from.
        orphan_grace_s: seconds to keep steps outside the lineage.
    """
    good = [case.facts for case in cases if case.standing == "good"]
    chosen = rule.choose(good)
    newest = good[-1].step if good else None
    return tuple(
        _judgement(case, rule, chosen.get(case.facts.step), guards, newest, orphan_grace_s)
        for case in cases
    )


def _judgement(
    case: StepCase,
    rule: KeepRule,
    chosen: str | None,
    guards: Guards,
    newest: int | None,
    orphan_grace_s: float,
) -> StepJudgement:
    step, why = case.facts.step, ""
    reasons = list(guards.reasons(step))
    if chosen is not None:
        reasons.append(chosen)
    if step == newest:
        reasons.append("the newest good step")
    if newest is None:
        reasons.append(NO_GOOD_STEP)
    if case.standing == "untouchable":
        reasons.append(case.why)
    elif case.standing == "not resumable":
        reasons.append("cannot be resumed from, so keep rules do not apply to it")
    elif case.standing == "outside the lineage":
        why = _left_behind(case.outside_s, orphan_grace_s)
        if case.outside_s is None or case.outside_s < orphan_grace_s:
            reasons.append(why)
    if reasons:
        return StepJudgement(step, keep=True, reasons=tuple(dict.fromkeys(reasons)))
    why = why or f"nothing keeps it: not among {rule} of the good steps"
    return StepJudgement(step, keep=False, reasons=(why,))


def _left_behind(outside_s: float | None, grace_s: float) -> str:
    left = "outside the lineage: a later start of the job resumed from another step"
    if outside_s is None:
        return f"{left}; it is not known when"
    return (
        f"{left} {duration_text(outside_s)} ago; such steps are kept for {duration_text(grace_s)}"
    )
