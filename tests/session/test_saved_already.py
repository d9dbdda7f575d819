"""A step that this job has just committed, or just restored, is not saved again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

import stepseal as ss

if TYPE_CHECKING:
    from pathlib import Path


def job(root: Path, num_steps: int, every: int = 10) -> ss.Saved:
    with ss.Checkpointer(root, save=ss.every(steps=every)) as ckpt:
        ckpt.add("state", {"n": 1})
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            ckpt.step(step)
        return ckpt.save(num_steps).wait()


def test_a_save_at_the_end_is_there_whatever_was_due(tmp_path: Path) -> None:
    first = job(tmp_path, 25)
    assert first.step == 25
    assert job(tmp_path, 25) == first
    assert job(tmp_path, 30).step == 30
    assert ss.open(tmp_path).steps() == (10, 20, 25, 30)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_step_and_save_of_one_step_give_one_handle(tmp_path: Path, mode: str) -> None:
    with ss.Checkpointer(tmp_path, save=ss.every(steps=2), mode=mode) as ckpt:  # type: ignore[arg-type]
        ckpt.add("state", {"n": 1})
        ckpt.restore()
        assert ckpt.step(1) is None
        pending = ckpt.step(2)
        assert ckpt.save(2) is pending
        ckpt.step(3)
        with pytest.raises(ss.errors.StepExists):
            ckpt.save(2)  # state has moved on
        assert ckpt.save(3) is not pending


def test_a_save_by_hand_twice_at_one_step_is_one(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("state", {"n": 1})
        first = ckpt.save(5)
        assert ckpt.save(5) is first


def test_what_the_second_call_says_of_the_step_is_not_lost_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stepseal")
    with ss.Checkpointer(tmp_path, save=ss.every(steps=2)) as ckpt:
        ckpt.add("state", {"n": 1})
        ckpt.restore()
        ckpt.step(2)
        ckpt.save(2, tags=["final"])
        assert "step 2 is saved already, without the tags of this call" in caplog.text
        assert "WARNING" in caplog.text


def test_after_a_failure_the_step_is_saved(tmp_path: Path) -> None:
    fails = True

    def get() -> dict[str, int]:
        if fails:
            raise RuntimeError("not now")
        return {"n": 1}

    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("state", (get, lambda state: None))
        with pytest.raises(ss.errors.CheckpointError, match="not now"):
            ckpt.save(5)
        fails = False
        assert ckpt.save(5).wait().step == 5


def test_after_another_restore_the_old_handle_is_gone(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("state", {"n": 1})
        ckpt.save(5)
        ckpt.save(6).wait()
        ckpt.restore(5)
        assert ckpt.save(5).wait().step == 5
        with pytest.raises(ss.errors.StepExists):
            ckpt.save(4)
