"""What all ranks of a load raise, when some of them failed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stepseal import errors
from stepseal.components import Topology
from stepseal.protocol import Deadlines, failure_of
from stepseal.session._together import Together
from stepseal.session._verdicts import error_of
from stepseal.session._verdicts import verdict as verdict_of

GONE = errors.StepNotFound("step 2: it was pruned")
MISFIT = errors.StateMismatch("w: shape", problems=("w: shape",), component="model")
DAMAGE = errors.Corrupt("step 2 is damaged", path="step-2/parts")


def verdict(*failures: Exception | None, touched: bool = False) -> errors.CheckpointError | None:
    notes: dict[int, Any] = {
        rank: None if one is None else msgspec.to_builtins(failure_of(one))
        for rank, one in enumerate(failures)
    }
    state = "Live state was changed: load again." if touched else "Nothing was changed."
    answer = verdict_of(notes, "load from /root", state)
    return error_of(answer) if answer else None


def test_all_go_on_if_nobody_failed() -> None:
    assert verdict(None, None) is None


@pytest.mark.parametrize("error", [GONE, MISFIT, DAMAGE])
def test_one_kind_of_failure_is_told_as_such(error: errors.CheckpointError) -> None:
    found = verdict(None, error, error)
    assert type(found) is type(error)
    assert found.failures.keys() == {"rank 1", "rank 2"}
    assert found.problems == error.problems
    assert "Nothing was changed" in str(found)


def test_a_step_that_is_gone_hides_no_other_failure() -> None:
    assert type(verdict(GONE, MISFIT)) is errors.StateMismatch
    assert type(verdict(GONE, None, GONE)) is errors.StepNotFound


def test_different_failures_are_told_together() -> None:
    found = verdict(MISFIT, DAMAGE, *[DAMAGE] * 5, touched=True)
    assert type(found) is errors.ParticipantFailed
    text = str(found)
    assert "rank 0: w: shape" in text
    assert "and 3 ranks more" in text
    assert "Live state was changed: load again." in text


@pytest.mark.parametrize("touched", [False, True])
def test_a_single_process_raises_its_own_error(touched: bool) -> None:
    together = Together(Topology(0, ("reader/0",)), Deadlines(), "load")
    together.agree(None, limit_s=1.0, touched=touched)
    error = errors.Corrupt("step 2 is damaged")
    with pytest.raises(errors.Corrupt) as caught:
        together.agree(error, limit_s=1.0, touched=touched)
    assert caught.value is error
    assert error.tainted == touched
    with pytest.raises(ZeroDivisionError):
        together.agree(ZeroDivisionError(), limit_s=1.0, touched=touched)
