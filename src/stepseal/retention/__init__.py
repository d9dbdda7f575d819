"""How long a step stays: keep rules, guards that override them, and the removal of steps.

Decisions are pure functions over a list of steps. A step is first moved to the trash, and deleted
after a second check. Only committed steps are ever removed, and never the last good one.
"""

from stepseal.retention._areas import AsideJudgement, TrashJudgement
from stepseal.retention._carry_out import prune
from stepseal.retention._housekeeper import Housekeeper
from stepseal.retention._judge import StepJudgement, judge
from stepseal.retention._keep_rules import KeepRule, Retention, as_retention, latest, most_kept
from stepseal.retention._plan import Plan, plan_prune
from stepseal.retention._publications import check_publish_keep
from stepseal.steps import StepInfo

__all__ = [
    "AsideJudgement", "Housekeeper", "KeepRule", "Plan", "Retention", "StepInfo",
    "StepJudgement", "TrashJudgement", "as_retention", "check_publish_keep", "judge", "latest",
    "most_kept", "plan_prune", "prune",
]  # fmt: skip
