"""Things in a root that are not this job's steps: left alone, named, and never resumed unasked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._bad_input import contents, outcomes, restored_value, save_steps
from torch.distributed.checkpoint import state_dict_saver

import stepseal as ss
from stepseal.errors import NoResumableStep, StepExists, StepNotFound
from stepseal.layout import MAX_STEP

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is"),  # DCP says that it is alone
    pytest.mark.timeout(60),
]

NAMES = (
    "step-060",
    "my-step-1",
    "step-40.backup",
    "step--1",
    "step-1e3",
    "Step-7",
    "step-",
    "step- 7",
)


def _litter(root: Path) -> None:
    for name in NAMES:
        (root / name).mkdir()
        (root / name / "manifest.json").write_text("{}")
    state_dict_saver.save({"x": torch.ones(3)}, checkpoint_id=root / "step-5", no_dist=True)
    (root / "step-6").mkdir()
    (root / "step-8").write_text("mine")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "manifest.json").write_text("{}")
    (root / "step-9").symlink_to("elsewhere")
    (root / "step-11").symlink_to("step-1")
    (root / "step-12").symlink_to("nowhere")
    os.mkfifo(root / "step-13")
    (root / f"step-{MAX_STEP + 1}").mkdir()
    (root / "latest.txt").write_text("step-9")


FOREIGN_STEPS = (5, 6, 8, 9, 11, 12, 13)


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    """Return a root with a good step 1, and much that is not a step of this job."""
    save_steps(tmp_path, 1)
    _litter(tmp_path)
    return tmp_path


def _others(root: Path) -> dict[str, Any]:
    """Return everything in a root but what this job writes."""
    ours = ("step-1/", "step-2/", ".stepseal", "latest", "stepseal.json")
    found = contents(root)
    return {
        name: value
        for name, value in found.items()
        if name not in ("step-1", "step-2") and not name.startswith(ours)
    }


def test_foreign_things_are_named_and_left_alone(littered: Path) -> None:
    before = _others(littered)
    run = ss.open(littered)
    assert run.steps() == (1,)
    assert {e.step for e in run.entries() if e.state == "foreign"} == set(FOREIGN_STEPS)
    assert set(NAMES) <= set(run.foreign())
    for step in FOREIGN_STEPS:
        with pytest.raises(StepNotFound):
            run.step(step)
    latest = run.latest()
    assert latest is not None
    assert latest.step == 1
    assert restored_value(littered) == (1, 1)
    save_steps(littered, 2)
    assert _others(littered) == before
    assert ss.open(littered).steps() == (1, 2)


def test_foreign_steps_are_never_resumed(littered: Path) -> None:
    before = contents(littered)
    state = {"seen": 77}
    with ss.Checkpointer(littered) as checkpointer:
        checkpointer.add("counters", state)
        for step in FOREIGN_STEPS:
            with pytest.raises(StepNotFound, match="foreign"):
                checkpointer.restore(step)
        assert state == {"seen": 77}
        assert contents(littered) == before
        restored = checkpointer.restore()
        assert restored is not None
        assert {int(name.removeprefix("step-")) for name in restored.skipped} == set(FOREIGN_STEPS)
        assert all("foreign" in reason for reason in restored.skipped.values())


@pytest.mark.parametrize("step", FOREIGN_STEPS)
def test_a_save_with_the_number_of_a_foreign_thing_is_refused_without_harm(
    littered: Path, step: int
) -> None:
    before = _others(littered)
    with ss.Checkpointer(littered) as checkpointer:
        checkpointer.add("counters", {"seen": 3})
        checkpointer.restore()
        with pytest.raises(StepExists, match=f"step-{step} is in the way"):
            checkpointer.save(step).wait()
        assert _others(littered) == before
        assert list((littered / ".stepseal" / "staging").iterdir()) == []
        checkpointer.save(21).wait()
    assert ss.open(littered).steps() == (1, 21)


def test_a_root_with_nothing_but_foreign_things_is_a_fresh_start(tmp_path: Path) -> None:
    _litter(tmp_path)
    before = contents(tmp_path)
    state = {"seen": 5}
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("counters", state)
        assert checkpointer.restore() is None
        checkpointer.save(1).wait()
    assert _others(tmp_path) == {
        name: value for name, value in before.items() if not name.startswith("latest")
    }
    assert restored_value(tmp_path) == (1, 5)


def test_steps_of_another_run_are_foreign(tmp_path: Path) -> None:
    save_steps(tmp_path / "a", 1)
    save_steps(tmp_path / "b", 1, 2)
    (tmp_path / "b" / "step-2").rename(tmp_path / "a" / "step-2")
    before = contents(tmp_path / "a" / "step-2")
    assert restored_value(tmp_path / "a") == (1, 1)
    with ss.Checkpointer(tmp_path / "a") as checkpointer:
        checkpointer.add("counters", {"seen": 0})
        restored = checkpointer.restore()
        assert restored is not None
        assert "belongs to run" in restored.skipped["step-2"]
        with pytest.raises(StepNotFound, match="belongs to run"):
            checkpointer.restore(2)
        checkpointer.restore()
        with pytest.raises(StepExists, match="belongs to run"):
            checkpointer.save(2).wait()
    assert contents(tmp_path / "a" / "step-2") == before


def test_only_steps_of_another_run_are_no_fresh_start(tmp_path: Path) -> None:
    save_steps(tmp_path / "a")
    save_steps(tmp_path / "b", 1)
    (tmp_path / "b" / "step-1").rename(tmp_path / "a" / "step-1")
    with ss.Checkpointer(tmp_path / "a") as checkpointer:
        checkpointer.add("counters", {"seen": 0})
        with pytest.raises(NoResumableStep, match="belongs to run"):
            checkpointer.restore()


def test_leftovers_of_older_attempts_of_a_larger_world_are_no_obstacle(tmp_path: Path) -> None:
    def work(rank: int, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("base", {"n": 1}, sharing=ss.REPLICATED)
        checkpointer.restore()
        newest = max(ss.open(tmp_path).steps(), default=0)
        checkpointer.save(newest + 1).wait()

    assert outcomes(tmp_path, work, num_participants=4) == [None] * 4
    staging = tmp_path / ".stepseal" / "staging"
    for attempt in ("a" * 32, "b" * 32):
        left = staging / f"step-2.1.{attempt}" / "parts" / "trainer"
        left.mkdir(parents=True)
        for rank in range(4):
            (left / f"{rank}.json").write_text("{")
            (left.parents[1] / f"__{rank}_0.distcp").write_bytes(b"x" * 10)
    mine = staging / "notes"
    mine.mkdir()
    (mine / "keep.txt").write_text("mine")
    assert outcomes(tmp_path, work) == [None, None]
    run = ss.open(tmp_path)
    assert run.steps() == (1, 2)
    assert run.step(2).verify() == ()
    assert run.step(2).manifest.participants == ("trainer/0", "trainer/1")
    assert sorted(path.name for path in staging.iterdir()) == ["notes"]
    assert (mine / "keep.txt").read_text() == "mine"
