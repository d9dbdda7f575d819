"""What must hold in a hang proof: every call back in time, errors that say who, where and why,
right values where a restore returned, every job at its end, and storage sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaigns.hang._cases import TOLERANCE_S
from tests.campaigns.hang._job import HIT_LIFE, STEPS
from tests.campaigns.hang._words import unsaid

import stepseal as ss
from stepseal.layout import CONTROL

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaigns.hang._cases import Case, Result
    from tests.multi._ranks import Call

    from stepseal.steps import StepEntry

__all__ = ["commits_of", "expect_unchanged", "judge_calls", "judge_root", "judge_words"]


def judge_calls(case: Case, calls: list[Call], hit_at: float, result: Result) -> None:
    """Every call came back in time, raised what it may raise, and said who, where and why."""
    for call in calls:
        if call.name == "job":
            if call.outcome != "returned":
                result.violations.append(f"the job itself failed: {call}")
            continue
        if call.ended is None:
            result.violations.append(f"never came back: {call}")
            continue
        over = call.ended - max(call.started, hit_at) - case.limit_s(call)
        if call.ended > hit_at:
            result.over_s = max(result.over_s, over)
        if over > TOLERANCE_S:
            result.violations.append(f"{over:.1f} s past its deadline: {call}")
        if call.outcome == "raised":
            result.noticed_s = max(result.noticed_s, call.ended - max(hit_at, call.started))
            if not call.facts["typed"] or call.kind == "internal_error":
                result.violations.append(f"not a typed error: {call}")
            elif missing := unsaid(case, call):
                result.violations.append(f"does not say {missing}: {call}")
        seen = f"{call.name}: {call.kind}"
        if seen not in result.kinds:
            result.kinds.append(seen)
    for call in calls:
        if call.kind == "tainted" and not _restore_failed(call.rank, calls):
            result.violations.append(f"tainted, but no restore failed: {call}")
    if case.how == "block" or case.gate in ("close/before", "close/said", "close/linger"):
        return
    if ("wait next", "ok") in {(call.name, call.kind) for call in calls}:
        result.violations.append("a step was committed without the one who was hit")


def _restore_failed(rank: int, calls: list[Call]) -> bool:
    return any(c.rank == rank and c.name == "restore" and c.outcome == "raised" for c in calls)


def judge_words(calls: list[Call], commits: dict[int, StepEntry], result: Result) -> None:
    """What was called committed is there as it was; what was called failed never was.

    OUTCOME UNKNOWN says neither.
    """
    for call in calls:
        step = STEPS[-1] + (10 if call.name in ("save", "wait", "close") else 20)
        entry = commits.get(step)
        manifest = None if entry is None else entry.manifest
        sha256 = call.facts.get("sha256")
        if sha256 is not None and (entry is None or entry.manifest_sha256 != sha256):
            result.violations.append(f"said committed, but step {step} is not that: {call}")
        says_no = call.outcome == "raised" and call.kind != "outcome_unknown"
        about_save = call.name in ("save", "wait", "next", "wait next")
        if about_save and says_no and manifest and manifest.cut.get("life") == HIT_LIFE:
            result.violations.append(f"said failed, but step {step} is committed: {call}")


def expect_unchanged(
    before: dict[int, StepEntry], after: dict[int, StepEntry], result: Result
) -> None:
    for step, entry in before.items():
        now = after.get(step)
        if now is None or now.manifest_sha256 != entry.manifest_sha256:
            result.violations.append(f"the zombie changed step {step}")


def commits_of(root: Path) -> dict[int, StepEntry]:
    return {entry.step: entry for entry in ss.open(root).entries()}


def judge_root(root: Path, result: Result) -> None:
    """Every step is whole, and nothing is left of what was given up."""
    run = ss.open(root)
    for entry in run.entries():
        if entry.state != "committed":
            result.violations.append(f"step {entry.step} is {entry.state}: {entry.problem}")
        else:
            result.violations += [f"step {entry.step}: {f}" for f in run.step(entry.step).verify()]
    left = sorted(path.name for path in (root / CONTROL / "staging").iterdir())
    if left:
        result.violations.append(f"left in staging: {left}")
