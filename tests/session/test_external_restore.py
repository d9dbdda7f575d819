"""An engine gets its files back whole and verified, or is not called; everything else copes with
the kind `external`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
from tests.session._engines import FilePerRank, run, save_steps
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import stepseal as ss
from stepseal import errors
from stepseal.cli import main
from stepseal.session import _engines
from stepseal.steps import Reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOLDER = "step-2/external/engine"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


HARM: dict[str, Callable[[Path], object]] = {
    "flipped": lambda root: flip(root / FOLDER / "global_step1" / "mp_rank_01_model_states.pt"),
    "missing": lambda root: (root / FOLDER / "latest").unlink(),
    "extra": lambda root: (root / FOLDER / "global_step1" / "mp_rank_02.pt").write_text("evil"),
    "gone": lambda root: (root / FOLDER).rename(root / "elsewhere"),
}


def restore_all(root: Path, step: int | None = None) -> list[tuple[int, int, list[str]]]:
    """Restore on two ranks; return step, value and calls of each engine."""

    def work(rank: int, ckpt: ss.Checkpointer) -> tuple[int, int, list[str]]:
        engine = FilePerRank(rank)
        ckpt.add("engine", engine.external())
        ckpt.add("counter", {"rank": -1}, sharing=ss.PER_RANK)
        try:
            found = ckpt.restore(step)
        except errors.Corrupt:
            return -1, engine.value, [role for role, _ in engine.folders]
        assert found is not None
        return found.step, engine.value, [path.split("/")[-3] for _, path in engine.folders]

    return run(root, 2, work)


@pytest.mark.parametrize("harm", HARM)
def test_all_ranks_fall_back_before_any_engine_is_called(tmp_path: Path, harm: str) -> None:
    save_steps(tmp_path, 2, 1, 2)
    HARM[harm](tmp_path)
    assert restore_all(tmp_path) == [(1, 10, ["step-1"]), (1, 11, ["step-1"])]


@pytest.mark.parametrize("harm", HARM)
def test_a_step_that_is_asked_for_is_corrupt_on_all(tmp_path: Path, harm: str) -> None:
    save_steps(tmp_path, 2, 1, 2)
    HARM[harm](tmp_path)
    assert restore_all(tmp_path, 2) == [(-1, 0, []), (-1, 0, [])]


def test_without_the_check_an_engine_reads_what_nobody_saved(tmp_path: Path) -> None:
    """Variant: engines get the folder unverified."""
    save_steps(tmp_path, 2, 1, 2)
    HARM["flipped"](tmp_path)
    with mock.patch("stepseal.session._checked.verify_engines"):
        assert restore_all(tmp_path)[1] == (2, 20, ["step-2"])
    assert hasattr(_engines, "verify_engines")


def test_an_engine_that_fails_to_load_taints(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, 1)

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        engine = FilePerRank(rank)

        def load(folder: str) -> None:
            if rank == 1:
                raise RuntimeError("no such rank")
            engine.load(folder)

        ckpt.add("engine", ss.External(save=engine.save, load=load))
        ckpt.add("counter", {"rank": -1}, sharing=ss.PER_RANK)
        with pytest.raises(errors.ParticipantFailed, match="no such rank") as caught:
            ckpt.restore()
        assert caught.value.tainted
        with pytest.raises(errors.Tainted):
            ckpt.save(2)

    run(tmp_path, 2, work)


def test_policies_leave_an_engine_alone(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 1)
    flip(tmp_path / "step-1/external/engine/latest")  # nobody reads it
    for policy in ("skip", "fresh"):
        with ss.Checkpointer(tmp_path) as ckpt:
            engine = FilePerRank(0, value=4)
            ckpt.add("engine", engine.external())
            ckpt.add("counter", {"rank": -1}, sharing=ss.PER_RANK)
            found = ckpt.restore(policies={"engine": policy})
            assert found is not None
            assert (engine.value, engine.folders) == (4, [])
            assert found.report["engine"].startswith(("left as it was", "fresh: left as it was"))


def test_an_engine_that_a_step_lacks(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("counter", {"n": 1})
        ckpt.save(1).wait()
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("counter", {"n": 0})
        engine = FilePerRank(0)
        ckpt.add("engine", engine.external(), on_restore="if-present")
        found = ckpt.restore()
        assert found is not None
        assert engine.folders == []
        with pytest.raises(errors.StateMismatch, match="component engine: added here, but not in"):
            ckpt.restore(policies={"engine": "require"})


@pytest.mark.parametrize("live", ["external", "tree", "tensors"])
def test_another_kind_is_refused_both_ways(tmp_path: Path, live: str) -> None:
    engine, tree, module = FilePerRank(0), {"n": 1}, torch.nn.Linear(1, 1)
    states: dict[str, object] = {"external": engine.external(), "tree": tree, "tensors": module}
    for saved in states:
        if (saved == "external") == (live == "external"):
            continue
        root = tmp_path / saved
        with ss.Checkpointer(root) as ckpt:
            ckpt.add("state", states[saved])
            ckpt.save(1).wait()
        engine.folders.clear()
        with ss.Checkpointer(root) as ckpt:
            ckpt.add("state", states[live])
            with pytest.raises(errors.StateMismatch) as caught:
                ckpt.restore()
        (problem,) = caught.value.problems
        assert f"saved as {saved}, now {live}: only ss.External loads" in problem
        assert engine.folders == []


def test_an_evaluator_loads_an_engine_under_a_lease(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 1)
    engine = FilePerRank(0)
    report = ss.load(tmp_path, engine=engine.external())
    assert engine.value == 10
    assert report.report["engine"] == "restored (external, files of an engine)"
    with (
        mock.patch.object(Reading, "is_leased", new=False),
        pytest.raises(errors.StorageUnavailable, match="an engine opens its files by their paths"),
    ):
        ss.load(tmp_path, engine=engine.external())
    assert [role for role, _ in engine.folders] == ["load"]
    with pytest.raises(errors.StateMismatch, match="only ss"):
        ss.load(tmp_path, engine=torch.nn.Linear(1, 1))


class DcpEngine:
    """Saves a tensor with `dcp.save`."""

    def __init__(self, value: float) -> None:
        self.tensor = torch.full((3,), value)

    def save(self, folder: str) -> None:
        dcp_save({"t": self.tensor}, checkpoint_id=folder)

    def load(self, folder: str) -> None:
        dcp_load({"t": self.tensor}, checkpoint_id=folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_stock_readers_read_the_step_and_the_folder_of_the_engine(tmp_path: Path) -> None:
    engine, module = DcpEngine(5.0), torch.nn.Linear(2, 2)
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", module)
        ckpt.add("engine", ss.External(save=engine.save, load=engine.load))
        ckpt.save(1).wait()
        engine.tensor.zero_()
        ckpt.restore()
    assert engine.tensor.tolist() == [5.0] * 3
    state = {"weight": torch.zeros(2, 2)}
    dcp_load(state, checkpoint_id=tmp_path / "step-1")
    assert torch.equal(state["weight"], module.weight)
    alone = {"t": torch.zeros(3)}
    dcp_load(alone, checkpoint_id=tmp_path / "step-1" / "external" / "engine")
    assert alone["t"].tolist() == [5.0] * 3
    step = ss.open(tmp_path).step(1)
    assert step.tensor_names() == ("bias", "weight")
    with pytest.raises(errors.StepNotFound, match="no such state"):
        step.value("engine")
    copied = tmp_path / "copied"
    os.rename(tmp_path / "step-1", copied)
    assert ss.open_step(copied).verify() == ()


def call(*arguments: str) -> object:
    """Run a command; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_the_command_line_copes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_steps(tmp_path, 2, 1, 2)
    assert call("show", str(tmp_path), "2", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    listed = {one["name"]: one["kind"] for one in shown["components"]}
    assert listed["engine"] == "external"
    files = [p for p in (tmp_path / "step-2").rglob("*") if p.is_file()]
    sizes = [p.stat().st_size for p in files if p.name != "manifest.json"]
    assert shown["size_bytes"] == sum(sizes)
    assert call("ls", str(tmp_path)) == 0
    assert call("verify", str(tmp_path)) == 0
    HARM["flipped"](tmp_path)
    assert call("verify", str(tmp_path)) == 3
    assert "mp_rank_01_model_states.pt: expected digest" in capsys.readouterr().out


def test_old_steps_are_pruned_with_the_files_of_engines(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path, keep=ss.latest(1)) as ckpt:
        engine = FilePerRank(0)
        ckpt.add("engine", engine.external())
        for step in (1, 2, 3):
            ckpt.save(step).wait()
    assert ss.open(tmp_path).steps() == (3,)
    assert not (tmp_path / "step-1").exists()
