"""A run that stops after any step and starts again is the run that never stopped, bit for bit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from tests.session._jobs import make_job, make_sharded_job

import stepseal as ss
from stepseal.errors import CheckpointError
from stepseal.testing import assert_exact_resume, run_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator
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


class _Looping:
    """A job whose loader draws when its iterator is made."""

    def __init__(self, uses: str) -> None:
        torch.manual_seed(1)
        self._uses = uses
        self._position = 0
        self._batches: Iterator[int] | None = None
        self._checkpointer: ss.Checkpointer | None = None

    def __iter__(self) -> Iterator[int]:
        torch.rand(1)
        return iter(range(self._position, 10))

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("loader", (lambda: self._position, partial(setattr, self, "_position")))
        checkpointer.add("rng", ss.RNG())
        self._checkpointer = checkpointer

    def train(self, step: int) -> object:
        if self._batches is None:
            if self._checkpointer is None or self._uses == "hand":
                self._batches = iter(self)
            else:
                self._batches = self._checkpointer.batches(self)
        self._position = next(self._batches) + 1
        return (self._position, torch.rand(1))

    def state(self) -> dict[str, int]:
        return {"loader": self._position}


def test_a_loader_that_draws_resumes_exactly_through_batches(tmp_path: Path) -> None:
    assert_exact_resume(partial(_Looping, "batches"), tmp_path / "r", num_steps=5, save_at=[1, 3])


def test_an_iterator_by_hand_is_named_as_the_likely_cause(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"after step 4: likely the loader's .*ckpt\.batches"):
        assert_exact_resume(partial(_Looping, "hand"), tmp_path / "r", num_steps=5, save_at=[3])


def test_streams_that_nobody_saves_are_named_as_the_likely_cause(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"right after the restore: .*Add stepseal.RNG"):
        assert_exact_resume(partial(make_job, "rng"), tmp_path / "r", num_steps=4, save_at=[2])


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
