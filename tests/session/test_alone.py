"""A process that its launcher started as one of several says so, or saves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

import stepseal as ss
from stepseal import errors
from stepseal.components import Topology
from stepseal.session import _wiring

if TYPE_CHECKING:
    from pathlib import Path


def saves_alone(root: Path, **settings: bool) -> bool:
    with ss.Checkpointer(root, **settings) as ckpt:  # type: ignore[arg-type]
        ckpt.add("counters", {"n": 1})
        return ckpt.save(1).wait().step == 1


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("many")
def test_one_of_several_without_a_process_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="init_process_group") as found:
        saves_alone(tmp_path / "run")
    assert "alone=True" in str(found.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("many")
def test_the_advice_works(tmp_path: Path) -> None:
    assert saves_alone(tmp_path / "alone", alone=True)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert saves_alone(tmp_path / "group")
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("many")
def test_without_the_check_it_saves_as_a_job_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wiring, "check_alone", lambda *_, **__: None)
    assert saves_alone(tmp_path)


@pytest.mark.usefixtures("many")
def test_a_single_save_is_refused_as_well(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="WORLD_SIZE=2"):
        ss.save(tmp_path, counters={"n": 1})


@pytest.mark.parametrize("size", ["", "1", "0", "many"])
def test_no_other_value_says_that_there_are_several(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # one task may be all of a job
    assert saves_alone(tmp_path)


def test_a_rank_of_a_group_is_not_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wiring, "discover", lambda role: Topology(0, (f"{role}/0", "b/1")))
    with pytest.raises(errors.InvalidInput, match="expected no process group"):
        saves_alone(tmp_path, alone=True)


def test_reading_needs_no_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saves_alone(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    state = {"n": 0}
    ss.load(tmp_path, counters=state)
    assert state == {"n": 1}
