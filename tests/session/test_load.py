"""Reading is not resuming: steps into live objects, and nobody's run is disturbed."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._jobs import Job
from torch import nn
from torch.distributed.fsdp import fully_shard

import stepseal as ss
from stepseal.components import Topology
from stepseal.session._loading import _fill, _Load
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

StateMismatch, StepNotFound = ss.errors.StateMismatch, ss.errors.StepNotFound


def trained(root: Path, *steps: int) -> Job:
    """Return a job that has saved `steps`."""
    job = Job()
    with ss.Checkpointer(root, mode="sync") as ckpt:
        job.add_to(ckpt)
        for step in steps:
            job.train(step)
            ckpt.save(step)
    return job


def snapshot(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if "leases" not in path.parts
    }


def test_everything_comes_back_and_the_root_is_as_before(tmp_path: Path) -> None:
    job = trained(tmp_path, 1, 2)
    other, before = Job(), snapshot(tmp_path)
    report = ss.load(
        tmp_path,
        model=other.model,
        optimizer=other.optimizer,
        lr_scheduler=other.scheduler,
        loader=other.loader,
        rng=ss.RNG(),
    )
    assert report.step == 2
    assert report.path == f"{tmp_path}/step-2"
    assert report.report["model"] == "restored (tensors, 4 tensors)"
    assert snapshot(tmp_path) == before
    torch.testing.assert_close(job.state(), other.state(), rtol=0, atol=0)
    streams = random.getstate(), torch.get_rng_state()
    ss.load(tmp_path, rng=ss.RNG())
    assert streams[0] == random.getstate()
    assert torch.equal(streams[1], torch.get_rng_state())


def test_a_part_of_an_older_step(tmp_path: Path) -> None:
    trained(tmp_path, 1, 2)
    other = Job()
    before = other.optimizer.state_dict()
    report = ss.load(tmp_path, step=1, model=other.model)
    assert report.report["optimizer"] == report.report["rng"] == "not asked for"
    for name, tensor in ss.open(tmp_path).step(1).tensors(component="model").items():
        assert torch.equal(other.model.state_dict()[name], tensor)
    assert other.optimizer.state_dict() == before


class Rotary(nn.Module):
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


def test_a_model_on_the_meta_device(tmp_path: Path) -> None:
    model = Rotary()
    ss.save(tmp_path, model=model)
    with torch.device("meta"):
        other = Rotary()
    with pytest.raises(ss.errors.UnsupportedState, match="to_empty"):
        ss.load(tmp_path, model=other)
    other.to_empty(device="cpu")
    report = ss.load(tmp_path, model=other)
    assert "buffers that nobody saves, left as they are: table" in report.report["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_what_does_not_fit_is_listed_whole_and_nothing_is_changed(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scheduler = {"last_epoch": -1}
    with pytest.raises(StateMismatch) as caught:
        ss.load(tmp_path, model=model, ema=model, lr_scheduler=scheduler)
    found = "\n".join(caught.value.problems)
    for expected in ("component ema: not in step 1", "0.weight: shape", "0.bias", "3.weight"):
        assert expected in found
    assert not caught.value.tainted
    assert scheduler == {"last_epoch": -1}
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_bad_calls(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    with pytest.raises(ss.errors.InvalidInput, match="no component was named"):
        ss.load(tmp_path)
    with pytest.raises(ss.errors.InvalidInput, match="step"):
        ss.load(tmp_path, step=-1, model=Job().model)
    with pytest.raises(StepNotFound):
        ss.load(tmp_path, step=7, model=Job().model)
    with pytest.raises(ss.errors.RootNotFound):
        ss.load(tmp_path / "none", model=Job().model)


class Holder:
    """Something with tensors that is no module."""

    def __init__(self, value: float) -> None:
        self.state = {"w": torch.full((3,), value)}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state


def test_objects_are_taken_as_what_they_were_saved_as(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("flat", Holder(1.0), kind="tensors")
        ckpt.add("tree", {"w": torch.full((3,), 2.0)}, kind="tree")
        ckpt.add("own", {"w": torch.full((3,), 3.0)}, sharing=ss.PER_RANK)
        ckpt.save(1)
    flat, tree, own = Holder(0.0), {"w": torch.zeros(3)}, {"w": torch.zeros(3)}
    ss.load(tmp_path, flat=flat, tree=tree, own=own)
    found = [state["w"].tolist() for state in (flat.state, tree, own)]
    assert found == [[1.0] * 3, [2.0] * 3, [3.0] * 3]


def hide(root: Path, step: int) -> None:
    """Do what a prune does that saw no lease."""
    (root / f"step-{step}").rename(root / ".stepseal" / "trash" / f"step-{step}")


class Hiding(nn.Linear):
    """A module that, while its step is checked, has steps taken away, one per check."""

    def __init__(self, hide: list[Callable[[], None]]) -> None:
        super().__init__(2, 2)
        self._hide = hide
        add_hook: Any = self.register_state_dict_pre_hook
        add_hook(lambda *_: self._take_away())

    def _take_away(self) -> None:
        if self._hide:
            self._hide.pop(0)()


def unleased_root(tmp_path: Path) -> Path:
    """Return a root with the steps 1 and 2, that takes no lease, as one that is read-only."""
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        model = nn.Linear(2, 2)
        ckpt.add("model", model)
        for step in (1, 2):
            torch.nn.init.constant_(model.weight, step)
            ckpt.save(step)
    shutil.rmtree(tmp_path / ".stepseal" / "leases")
    return tmp_path


def test_latest_starts_over_when_its_step_is_pruned_in_the_middle(tmp_path: Path) -> None:
    root = unleased_root(tmp_path)
    model = Hiding([])
    model._hide.append(lambda: hide(root, 2))
    assert ss.load(root, model=model).step == 1
    assert torch.equal(model.weight, torch.ones(2, 2))


def test_a_step_of_a_number_that_is_pruned_in_the_middle_is_not_found(tmp_path: Path) -> None:
    root = unleased_root(tmp_path)
    model = Hiding([])
    model._hide.append(lambda: hide(root, 2))
    before = model.weight.detach().clone()
    with pytest.raises(StepNotFound, match="pruned or superseded") as caught:
        ss.load(root, step=2, model=model)
    assert not caught.value.tainted
    assert torch.equal(model.weight, before)


def test_all_files_are_open_before_anything_is_touched(tmp_path: Path) -> None:
    root, model = unleased_root(tmp_path), nn.Linear(2, 2)
    attempt = ss.open(root).step(2).manifest.attempt
    one = _Load(str(root), 2, attempt, Topology(0, ("reader/0",)), {"model": model}, {})
    with ExitStack() as stack:
        reading, checked = one._open(stack)
        shutil.rmtree(root / "step-2")
        _fill(reading, checked)
    assert torch.equal(model.weight, torch.full((2, 2), 2.0))


def test_latest_gives_up_when_all_steps_go(tmp_path: Path) -> None:
    root = unleased_root(tmp_path)
    model = Hiding([])
    model._hide += [lambda: hide(root, 2), lambda: hide(root, 1)]
    with pytest.raises(StepNotFound, match="no sound step"):
        ss.load(root, model=model)


def test_an_evaluator_beside_a_trainer_reads_whole_steps_and_stops_nobody(tmp_path: Path) -> None:
    evaluate(tmp_path, num_loads=4, num_saves=8)


@pytest.mark.nightly
def test_many_loads_during_many_saves(tmp_path: Path) -> None:
    evaluate(tmp_path, num_loads=200, num_saves=500)


def evaluate(root: Path, *, num_loads: int, num_saves: int) -> None:
    """Load on a thread of its own while a job saves and prunes."""
    model, seen = nn.Linear(64, 64), nn.Linear(64, 64)
    loaded: list[int] = []

    def load_all() -> None:
        for _ in range(num_loads):
            report = ss.load(root, model=seen)
            values = {value for p in seen.parameters() for value in p.flatten().tolist()}
            assert values == {report.step}
            loaded.append(report.step)

    with ss.Checkpointer(root, keep=ss.latest(1)) as ckpt, ThreadPoolExecutor(1) as evaluator:
        ckpt.add("model", model)
        ckpt.restore()
        loads, step = None, 0
        while step < num_saves or (loads is not None and not loads.done()):
            step += 1
            for parameter in model.parameters():
                nn.init.constant_(parameter, step)
            ckpt.save(step).wait() if step == 1 else ckpt.save(step)
            loads = loads or evaluator.submit(load_all)
        assert loads is not None
        loads.result()
    assert len(loaded) == num_loads
    assert loaded == sorted(loaded)


def _load_sharded(rank: int, root: str) -> dict[str, Any]:
    job = Job(rank=rank, sharded=True)
    report = ss.load(root, model=job.model, optimizer=job.optimizer)
    weight: Any = job.model.state_dict()["0.weight"]
    loader: Any = {"position": 0}
    with pytest.raises(StateMismatch, match="saved per rank by 1 participants, now 2"):
        ss.load(root, loader=loader)
    with pytest.raises(StateMismatch) as caught:
        ss.load(root, model=job.model if rank == 0 else nn.Linear(1, 1))
    assert "rank 1: " in str(caught.value)
    with pytest.raises(StepNotFound):
        ss.load(root, step=77, model=job.model)
    found = weight.full_tensor()

    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.3), nn.Linear(7, 3))
    fully_shard(empty)
    with pytest.raises(ss.errors.UnsupportedState, match="to_empty"):
        ss.load(root, model=empty)
    empty.to_empty(device="cpu")
    ss.load(root, model=empty)
    weight = empty.state_dict()["0.weight"]
    assert torch.equal(weight.full_tensor(), found)

    ss.save(f"{root}-2", model=empty, rng=ss.RNG())
    drawn = torch.rand(1)
    assert ss.load(f"{root}-2", rng=ss.RNG()).report["model"] == "not asked for"
    assert torch.equal(torch.rand(1), drawn)
    with pytest.raises(ss.errors.InvalidInput, match="use a Checkpointer instead"):
        ss.save(f"{root}-3", progress={"tokens": 1})
    return {"report": report, "weight": found}


@pytest.mark.slow
def test_two_ranks_load_one_step_of_one_rank_and_fail_alike(tmp_path: Path) -> None:
    job = trained(tmp_path, 1, 2)
    found = run_ranks(2, _load_sharded, str(tmp_path))
    assert found[0]["report"] == found[1]["report"]
    for one in found:
        assert torch.equal(one["weight"], job.model.state_dict()["0.weight"])


def test_save_is_the_counterpart(tmp_path: Path) -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    saved = ss.save(tmp_path / "new", model=model, progress={"tokens": 7})
    assert saved.path == f"{tmp_path}/new/step-0"
    progress = {"tokens": 0}
    assert ss.load(tmp_path / "new", model=other, progress=progress).step == 0
    assert torch.equal(model.weight, other.weight)
    assert progress == {"tokens": 7}
    assert ss.save(tmp_path / "new", step=5, model=model).step == 5
    assert ss.open(tmp_path / "new").latest() is not None
    with ss.Checkpointer(tmp_path / "new") as ckpt:
        ckpt.add("model", other)
        restored = ckpt.restore()
    assert restored is not None
    assert restored.step == 5


def test_save_never_overwrites(tmp_path: Path) -> None:
    ss.save(tmp_path, step=5, model=nn.Linear(3, 2))
    before = snapshot(tmp_path)
    for step in (5, 3):
        with pytest.raises(ss.errors.StepExists, match="above 5"):
            ss.save(tmp_path, step=step, model=nn.Linear(3, 2))
    assert snapshot(tmp_path) == before
    with pytest.raises(ss.errors.InvalidInput, match="no component"):
        ss.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_optimizer_without_its_module_is_told_the_cause(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    job = Job()
    with pytest.raises(StateMismatch, match="add their module, or pass it to load, too") as caught:
        ss.load(tmp_path, optimizer=job.optimizer)
    assert caught.value.problems[0].startswith("component optimizer: param_groups: the parameters")
    assert ss.load(tmp_path, model=job.model, optimizer=job.optimizer).step == 1


def test_a_mismatch_names_the_ways_on(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    with pytest.raises(
        StateMismatch, match=r"{'model': ss.Conversion\(rename=..., keep=..., drop=.*"
    ):
        ss.load(tmp_path, model=nn.Linear(5, 7))
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("loader", Job().loader, sharing=ss.PER_RANK)
        ckpt.add("model", nn.Linear(5, 7))
        with pytest.raises(StateMismatch, match=r"Build the objects .*\.Conversion") as caught:
            ckpt.restore(only=["model"])
    assert str(caught.value).endswith("Nothing was changed.")
