"""A run that stops after any step and starts again is the run that never stopped, bit for bit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.session._jobs import make_job, make_sharded_job

from stepseal.errors import CheckpointError
from stepseal.testing import assert_exact_resume, run_ranks

if TYPE_CHECKING:
    from pathlib import Path

NUM_STEPS = 20


@pytest.mark.slow
def test_resumes_exactly_from_every_step(tmp_path: Path) -> None:
    assert_exact_resume(make_job, tmp_path / "root", num_steps=NUM_STEPS)


def test_resumes_exactly_after_synchronous_saves(tmp_path: Path) -> None:
    assert_exact_resume(make_job, tmp_path / "r", num_steps=5, save_at=[2], mode="sync")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forgotten", "named"),
    [
        ("rng", r"restored from step 3: state after step 3: rng\."),
        ("lr_scheduler", r"restored from step 3: state after step 3: lr_scheduler\."),
        ("loader", r"restored from step 3: state after step 3: loader\."),
        ("optimizer", r"restored from step 3: state after step 3: optimizer\.state\[0\]"),
        ("model", r"restored from step 3: state after step 3: model\.0\.weight, element \[0, 0\]"),
    ],
    ids=["rng", "lr_scheduler", "loader", "optimizer", "model"],
)
def test_what_a_job_forgets_is_named(tmp_path: Path, forgotten: str, named: str) -> None:
    with pytest.raises(AssertionError, match=named):
        assert_exact_resume(partial(make_job, forgotten), tmp_path / "r", num_steps=5, save_at=[3])


def _two_ranks(rank: int, root: str) -> str:
    assert_exact_resume(make_sharded_job, f"{root}/whole", num_steps=NUM_STEPS)
    try:
        assert_exact_resume(
            partial(make_sharded_job, "rng"), f"{root}/forgets", num_steps=4, save_at=[2]
        )
    except CheckpointError:
        raise
    except AssertionError as error:
        return str(error)
    return "nothing"


@pytest.mark.slow
def test_two_fsdp_ranks_resume_exactly_from_every_step(tmp_path: Path) -> None:
    found = run_ranks(2, _two_ranks, str(tmp_path), timeout_s=120)
    assert all(text.startswith("restored from step 2: state after step 2: rng.") for text in found)
