"""Format version 1 stays readable: this release lists, verifies, reads and restores `v1/`."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.compat.make_v1 import (
    COUNTERS,
    PARTICIPANTS,
    ROOT,
    STEPS,
    Job,
    cache_state,
    loader_state,
    model_tensors,
    moments,
    seed_all,
    stage_state,
    table_tensors,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

import stepseal as ss
from stepseal.storage import LocalStorage
from stepseal.testing import World, assert_identical

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepseal.session import Restored


@pytest.fixture
def random_streams() -> Iterator[None]:
    """Leave the random streams as they were, for the tests that come after."""
    before = random.getstate(), torch.get_rng_state(), np.random.get_state(legacy=True)
    yield
    random.setstate(before[0])
    torch.set_rng_state(before[1])
    np.random.set_state(before[2])


def all_tensors(step: int) -> dict[str, torch.Tensor]:
    """Return every tensor of a step by the name that stock readers use."""
    table = {f"table.{key}": value for key, value in table_tensors(step).items()}
    state = {
        f"optimizer.state.{name}.{key}": value
        for name, held in moments(step).items()
        for key, value in held.items()
    }
    return {**model_tensors(step), **table, **state}


def test_lists_the_steps_with_what_they_say_of_themselves() -> None:
    run = ss.open(ROOT)
    assert run.steps() == STEPS
    newest = run.latest()
    assert newest is not None
    manifest = newest.manifest
    assert (manifest.step, manifest.incarnation, manifest.format_version) == (7, 2, 1)
    assert manifest.parent is not None
    assert (manifest.parent.step, manifest.parent.incarnation) == (3, 1)
    assert manifest.participants == PARTICIPANTS
    assert manifest.metrics["loss"] == 1.75
    assert manifest.metrics["gap"] != manifest.metrics["gap"]
    assert (manifest.tags, manifest.cut) == (("compat",), {"policy_version": 700})


@pytest.mark.parametrize("step", STEPS)
def test_verifies(step: int) -> None:
    assert ss.open(ROOT).step(step).verify() == ()


@pytest.mark.parametrize("step", STEPS)
def test_reads_every_tensor(step: int) -> None:
    assert_identical(ss.open(ROOT).step(step).tensors(), all_tensors(step))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("rank", range(len(PARTICIPANTS)))
def test_reads_every_tree(step: int, rank: int, random_streams: None) -> None:
    found = ss.open(ROOT).step(step)
    assert_identical(found.value("loader", PARTICIPANTS[rank]), loader_state(step, rank))
    assert_identical(found.value("counters"), COUNTERS)
    assert_identical(found.value("stage", PARTICIPANTS[rank]), stage_state(step, rank))
    assert_identical(found.value("cache", PARTICIPANTS[rank]), cache_state(step))
    seed_all(step, rank)
    streams = found.value("rng", PARTICIPANTS[rank])
    assert streams["python"] == random.getstate()
    assert torch.equal(streams["torch"], torch.get_rng_state())
    assert_identical(streams["numpy"], np.random.get_state(legacy=False))


@pytest.mark.parametrize("step", STEPS)
def test_restores_every_component(step: int, tmp_path: Path, random_streams: None) -> None:
    shutil.copytree(ROOT, tmp_path / "v1")
    jobs = [Job(rank) for rank in range(len(PARTICIPANTS))]

    def restore(rank: int, checkpointer: ss.Checkpointer) -> Restored | None:
        with checkpointer:
            jobs[rank].add_to(checkpointer)
            return checkpointer.restore(None if step == max(STEPS) else step)

    world = World(len(PARTICIPANTS), lambda _rank: LocalStorage.open(tmp_path / "v1"))
    for restored in world.run(restore):
        assert restored is not None
        assert (restored.step, restored.incarnation) == (step, 3)
        assert restored.skipped == {}
    for job in jobs:
        assert_identical(dict(job.model.state_dict()), model_tensors(step))
        assert_identical(job.table, table_tensors(step))
        assert_identical(job.loader, loader_state(step, job.rank))
        assert_identical(job.counters, COUNTERS)
        assert_identical(job.stage, stage_state(step, job.rank))
        assert_identical(job.cache, cache_state(step))
        held = {name: job.optimizer.state[getattr(job.model, name)] for name in moments(step)}
        assert_identical(held, moments(step))
        assert job.optimizer.param_groups[0]["lr"] == 0.05 / step
        assert job.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("step", STEPS)
def test_stock_dcp_reads_every_tensor(step: int) -> None:
    expected = all_tensors(step)
    found: dict[str, Any] = {name: torch.zeros_like(value) for name, value in expected.items()}
    dcp_load(found, checkpoint_id=ROOT / f"step-{step}", no_dist=True)
    assert_identical(found, expected)
