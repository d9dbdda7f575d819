from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepseal.layout import duration_text
from stepseal.retention import StepInfo, latest
from stepseal.retention._judge import StepCase, StepJudgement, judge
from stepseal.steps import Guards

GRACE_S = 100.0
STANDINGS = ["good", "not resumable", "outside the lineage", "untouchable"]


def good(*steps: int) -> list[StepCase]:
    return [StepCase(StepInfo(step), "good") for step in steps]


def kept(judgements: tuple[StepJudgement, ...]) -> list[int]:
    return [judgement.step for judgement in judgements if judgement.keep]


def test_what_no_rule_and_no_guard_wants_goes() -> None:
    judgements = judge(good(1, 2, 3, 4), latest(2), Guards(), orphan_grace_s=GRACE_S)
    why = "nothing keeps it: not among the newest 2 of the good steps"
    assert kept(judgements) == [3, 4]
    assert judgements[0] == StepJudgement(1, keep=False, reasons=(why,))
    assert judgements[3].reasons == ("among the newest 2", "the newest good step")


def test_guards_keep_whatever_the_rule_says() -> None:
    guards = Guards(frozenset({1}), {2: 5}, 3)
    judgements = judge(good(1, 2, 3, 4, 5), latest(1), guards, orphan_grace_s=GRACE_S)
    assert kept(judgements) == [1, 2, 3, 5]
    assert judgements[0].reasons == ("pinned",)


def test_only_good_steps_count_towards_a_rule() -> None:
    cases = [
        *good(1, 2),
        StepCase(StepInfo(3), "untouchable", "damaged: x"),
        StepCase(StepInfo(4), "not resumable"),
        StepCase(StepInfo(5), "outside the lineage", outside_s=1e9),
    ]
    judgements = judge(cases, latest(2), Guards(), orphan_grace_s=GRACE_S)
    assert kept(judgements) == [1, 2, 3, 4]
    assert judgements[2].reasons == ("damaged: x",)
    assert "outside the lineage" in judgements[4].reasons[0]


def test_a_step_outside_the_lineage_goes_only_after_its_grace() -> None:
    young = StepCase(StepInfo(1), "outside the lineage", outside_s=GRACE_S - 1)
    old = StepCase(StepInfo(2), "outside the lineage", outside_s=GRACE_S)
    assert kept(judge([young, old, *good(3)], latest(1), Guards(), orphan_grace_s=GRACE_S)) == [
        1,
        3,
    ]


LEFT = "outside the lineage: a later start of the job resumed from another step"


@pytest.mark.parametrize(
    ("outside_s", "why"),
    [
        (30.0, f"{LEFT} 0 min ago; such steps are kept for 2 min"),
        (None, f"{LEFT}; it is not known when"),
    ],
)
def test_a_step_outside_the_lineage_says_why_it_stays(outside_s: float | None, why: str) -> None:
    left = StepCase(StepInfo(1), "outside the lineage", outside_s=outside_s)
    judgement, _ = judge([left, *good(2)], latest(1), Guards(), orphan_grace_s=GRACE_S)
    assert judgement == StepJudgement(1, keep=True, reasons=(why,))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 min"), (3540, "59 min"), (3600, "1.0 h"), (86_400, "24.0 h"), (864_000, "10 days")],
)
def test_times_are_told_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_without_a_good_step_nothing_goes() -> None:
    old = StepCase(StepInfo(2), "outside the lineage", outside_s=1e9)
    (judgement,) = judge([old], latest(1), Guards(), orphan_grace_s=GRACE_S)
    assert judgement.keep
    assert "no step is known to be good" in judgement.reasons[0]


class ChoosesNothing:
    """A rule that would strand a job."""

    def choose(self, steps: object) -> dict[int, str]:
        return {}

    def __str__(self) -> str:
        return "nothing"


@given(
    st.lists(
        st.builds(
            StepCase,
            st.builds(StepInfo, st.integers(0, 50)),
            st.sampled_from(STANDINGS),
            outside_s=st.none() | st.floats(0, 1e6),
        ),
        unique_by=lambda case: case.facts.step,
    ),
    st.sets(st.integers(0, 50)),
    st.booleans(),
)
def test_no_rule_can_strand_a_job(cases: list[StepCase], pinned: set[int], empty: bool) -> None:
    cases.sort(key=lambda case: case.facts.step)
    rule = ChoosesNothing() if empty else latest(2)
    guards = Guards(frozenset(pinned))
    judgements = judge(cases, rule, guards, orphan_grace_s=GRACE_S)
    assert [v.step for v in judgements] == [c.facts.step for c in cases]
    assert all(judgement.reasons for judgement in judgements)
    gone = {v.step for v in judgements if not v.keep}
    steps_good = [c.facts.step for c in cases if c.standing == "good"]
    assert not gone & pinned
    assert not gone & {c.facts.step for c in cases if c.standing == "untouchable"}
    if steps_good:
        assert steps_good[-1] not in gone
    else:
        assert not gone
