"""How long a step stays: keep rules, what protects a step whatever they say, and its removal.

Decisions are pure functions over a list of steps; around them, steps are taken out of sight first
and deleted second. Only committed steps are ever removed, and never the last good one.
"""

from stepseal.retention._areas import AsideJudgement, TrashJudgement
from stepseal.retention._carry_out import prune
from stepseal.retention._housekeeper import Housekeeper
from stepseal.retention._judge import StepJudgement, judge
from stepseal.retention._plan import Plan, plan_prune
from stepseal.retention._rules import KeepRule, Retention, StepInfo, as_retention, latest

__all__ = [
    "AsideJudgement", "Housekeeper", "KeepRule", "Plan", "Retention", "StepInfo",
    "StepJudgement", "TrashJudgement", "as_retention", "judge", "latest", "plan_prune", "prune",
]  # fmt: skip
