"""What stock `dcp.save` wrote comes in as a step, bit for bit, and jobs go on from it."""

from __future__ import annotations

import collections
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from tests.foreign._hostile_dcp import put_record
from tests.foreign._hostile_pickles import GADGETS, record
from tests.session._states import Net, adamw, blank, every_kind, train, whole_state
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.fsdp import fully_shard

import stepseal as ss
from stepseal.cli import main
from stepseal.testing import assert_identical, run_ranks, snapshot

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save(state: dict[str, Any], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP without a process group warns
        dcp_save(state, checkpoint_id=folder)
    return folder


def load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_load(state, checkpoint_id=folder)
    return state


class Job:
    """Model, optimizer and scheduler; saved with stock DCP as torchtitan does."""

    def __init__(self, seed: int, *, sharded: bool = False) -> None:
        self.model = Net(seed)
        if sharded:
            fully_shard(self.model.first)
            fully_shard(self.model)
        self.optimizer = adamw(self.model)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 9)

    def train(self, seed: int) -> None:
        train(self.model, self.optimizer, seed)
        self.scheduler.step()

    def titan(self, options: StateDictOptions = FLAT) -> dict[str, Any]:
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=options)
        return {
            **get_model_state_dict(self.model),
            "optimizer": optimizer,
            "lr_scheduler": self.scheduler.state_dict(),
        }

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("model", self.model)
        checkpointer.add("optimizer", self.optimizer)
        checkpointer.add("lr_scheduler", self.scheduler)

    def state(self) -> dict[str, Any]:
        return {**whole_state(self.model, self.optimizer), "lr": self.scheduler.state_dict()}


def trained(seed: int = 1, *, sharded: bool = False) -> Job:
    job = Job(seed, sharded=sharded)
    for number in range(3):
        job.train(number)
    return job


def test_every_dtype_shape_and_layout_comes_in_bit_for_bit(tmp_path: Path) -> None:
    saved = every_kind(1) | {"conj": torch.rand(3, dtype=torch.complex64).conj()}
    folder = save(saved, tmp_path / "dcp")
    imported = ss.import_dcp(folder, tmp_path / "root", step=7)
    step = ss.open(tmp_path / "root").step(7)
    assert step.verify() == ()
    assert_identical(load(blank(saved), folder), step.tensors())
    assert imported.path == step.path
    assert step.manifest.tags == (f"imported from dcp {imported.source_sha256}",)
    assert_identical(load(blank(saved), folder), load(blank(saved), Path(step.path)))


def test_entries_become_components_and_values_stay(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "model": {"w": torch.ones(2), "deep": {"b": torch.zeros(3, 2)}},
        "loader": {"position": 7, "names": ["a", ("b", None)], "seen": {1, 2}, "by": {3: 1.5}},
        "counter": {"n": torch.tensor(4), "of": collections.OrderedDict(a=1j)},
        "step": 12,
        "listed": [1, {"t": torch.ones(1)}],
        "raw": {"b": b"\x00\xff", "size": torch.Size([1, 2]), "dtype": torch.bfloat16},
    }
    ss.import_dcp(save(state, tmp_path / "dcp"), tmp_path / "root", step=1)
    step = ss.open(tmp_path / "root").step(1)
    kinds = {entry.name: entry.kind for entry in step.manifest.components}
    assert kinds == {
        "model": "tensors",
        "loader": "tree",
        "counter": "tensors",
        "extra": "tree",
        "listed": "tensors",
        "raw": "tree",
    }
    loader = {**state["loader"], "by": {"3": 1.5}}  # DCP itself makes texts of keys
    assert_identical(loader, step.value("loader"))
    assert_identical(state["raw"], step.value("raw"))
    assert step.value("extra") == {"step": 12}
    assert step.value("counter") == {"of.a": 1j}
    assert step.tensor_names() == ("counter.n", "deep.b", "listed.1.t", "w")


@pytest.mark.parametrize("flat", [True, False])
def test_a_job_goes_on_from_an_imported_step(tmp_path: Path, flat: bool) -> None:
    job, other = trained(), Job(2)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    ss.import_dcp(save(job.titan(options), tmp_path / "dcp"), tmp_path / "root", step=3)
    with ss.Checkpointer(tmp_path / "root", mode="sync") as checkpointer:
        other.add_to(checkpointer)
        restored = checkpointer.restore()
        assert restored is not None
        assert not restored.unverified
        assert_identical(job.state(), other.state())
        for one in (job, other):
            one.train(9)
        assert_identical(job.state(), other.state())
        checkpointer.save(4)


def test_optimizer_state_without_names_is_a_mismatch_that_skip_leaves_out(tmp_path: Path) -> None:
    job, other = trained(), Job(2)
    state = {**job.model.state_dict(), "optimizer": job.optimizer.state_dict()}
    ss.import_dcp(save(state, tmp_path / "dcp"), tmp_path / "root", step=3)
    with ss.Checkpointer(tmp_path / "root") as checkpointer:
        checkpointer.add("model", other.model)
        checkpointer.add("optimizer", other.optimizer)
        with pytest.raises(ss.errors.StateMismatch, match="groups and state"):
            checkpointer.restore()
        checkpointer.restore(policies={"optimizer": "skip"})
    assert_identical(job.model.state_dict(), other.model.state_dict())


def _save_sharded(rank: int, folder: str) -> None:
    job = trained(sharded=True)
    dcp_save(job.titan(), checkpoint_id=f"{folder}/root/step-3")
    state = snapshot(job.state())
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")
    dist.barrier()
    _restore_sharded(folder, state)


def _restore_sharded(folder: str, expected: dict[str, Any]) -> None:
    other = Job(2, sharded=True)
    with ss.Checkpointer(f"{folder}/root") as checkpointer:
        other.add_to(checkpointer)
        restored = checkpointer.restore(unverified=True)
        assert restored is not None
        assert restored.unverified
        assert_identical(expected, snapshot(other.state()))
        other.train(9)
        checkpointer.save(4).wait()
    again = Job(3, sharded=True)
    with ss.Checkpointer(f"{folder}/root") as checkpointer:
        again.add_to(checkpointer)
        found = checkpointer.restore(unverified=True)
        assert found is not None
        assert (found.step, found.unverified) == (4, False)
    assert_identical(snapshot(other.state()), snapshot(again.state()))


@pytest.mark.slow
def test_an_fsdp_folder_of_two_ranks_restores_on_two_and_imports_on_one(tmp_path: Path) -> None:
    run_ranks(2, _save_sharded, str(tmp_path))
    expected = torch.load(tmp_path / "state.pt", weights_only=False)
    ss.import_dcp(tmp_path / "root" / "step-3", tmp_path / "new", step=3)
    alone = Job(4)
    with ss.Checkpointer(tmp_path / "new") as checkpointer:
        alone.add_to(checkpointer)
        checkpointer.restore()
    assert_identical(expected, alone.state())


def test_an_import_never_joins_a_run(tmp_path: Path) -> None:
    folder = save({"w": torch.ones(2)}, tmp_path / "dcp")
    ss.import_dcp(folder, tmp_path / "root", step=1)
    with pytest.raises(ss.errors.NotRestored, match="name a new root"):
        ss.import_dcp(folder, tmp_path / "root", step=2)
    assert ss.open(tmp_path / "root").steps() == (1,)


def test_values_of_other_classes_are_refused_by_name_or_left_out(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "job": {"path": Path("a"), "n": 1}}
    folder = save(state, tmp_path / "dcp")
    with pytest.raises(ss.errors.UnsupportedState, match=r"'job\.path'.*Path") as caught:
        ss.import_dcp(folder, tmp_path / "root", step=1)
    assert str(caught.value).startswith(f"{folder}/__0_0.distcp, ")
    assert "skip_bytes=True (--skip-bytes)" in str(caught.value)
    assert not (tmp_path / "root").exists()
    imported = ss.import_dcp(folder, tmp_path / "root", step=1, skip_bytes=True)
    assert imported.skipped.keys() == {"job.path"}
    assert imported.components["job"] == "1 value"
    assert ss.open(tmp_path / "root").step(1).value("job") == {"n": 1}


def test_a_component_of_which_nothing_is_left_is_not_stored(tmp_path: Path) -> None:
    folder = save({"w": torch.ones(2), "job": {"path": Path("a")}}, tmp_path / "dcp")
    imported = ss.import_dcp(folder, tmp_path / "root", step=1, skip_bytes=True)
    assert imported.components == {"model": "1 tensor"}
    assert imported.skipped.keys() == {"job.path"}
    with ss.Checkpointer(tmp_path / "root") as checkpointer:
        checkpointer.add("model", {"w": torch.zeros(2)})
        assert checkpointer.restore() is not None
    nothing = save({"job": {"path": Path("a")}}, tmp_path / "nothing")
    with pytest.raises(ss.errors.UnsupportedState, match="nothing is left"):
        ss.import_dcp(nothing, tmp_path / "new", step=1, skip_bytes=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"{}", b"\x80\x04]."])
def test_an_index_that_is_no_pickle_of_dcp_is_damage_and_names_its_folder(
    tmp_path: Path, data: bytes
) -> None:
    folder = save({"w": torch.ones(2)}, tmp_path / "dcp")
    (folder / ".metadata").write_bytes(data)
    with pytest.raises(ss.errors.Corrupt) as caught:
        ss.import_dcp(folder, tmp_path / "root", step=1)
    assert str(caught.value).startswith(f"{folder}/.metadata: ")


def test_a_shared_root_is_imported_into_on_request(tmp_path: Path) -> None:
    folder, root = save({"w": torch.ones(2)}, tmp_path / "dcp"), tmp_path / "root"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(ss.errors.InvalidInput, match="allow_shared"):
        ss.import_dcp(folder, root, step=1)
    command = ["import", "--from", "dcp", str(folder), str(root), "--step", "1"]
    assert CliRunner().invoke(main, command).exit_code == 2
    assert CliRunner().invoke(main, [*command, "--allow-shared"]).exit_code == 0
    ss.import_dcp(folder, tmp_path / "own", step=1, access=ss.Access(file_mode=0o640))
    assert (tmp_path / "own" / "step-1" / "manifest.json").stat().st_mode & 0o777 == 0o640


def test_what_is_no_dcp_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ss.errors.StepNotFound):
        ss.import_dcp(tmp_path / "nothing", tmp_path / "root", step=1)
    with pytest.raises(ss.errors.StepNotFound, match="metadata"):
        ss.import_dcp(tmp_path, tmp_path / "root", step=1)
    assert not (tmp_path / "root").exists()


def test_the_command_line_imports(tmp_path: Path) -> None:
    folder, root = str(save({"w": torch.ones(2)}, tmp_path / "dcp")), str(tmp_path / "root")
    command = ["import", "--from", "dcp", folder, root, "--step", "5"]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["components"] == {"model": "1 tensor"}
    assert CliRunner().invoke(main, ["verify", root]).exit_code == 0
    assert CliRunner().invoke(main, command).exit_code == 2
    plain = CliRunner().invoke(main, [*command[:4], str(tmp_path / "b"), "--step", "5"])
    assert "step 5: " in plain.stdout


def restore(root: Path, job: Job, step: int | None = None, **options: Any) -> ss.Restored | None:  # noqa: ANN401
    with ss.Checkpointer(root) as checkpointer:
        job.add_to(checkpointer)
        return checkpointer.restore(step, **options)


def test_foreign_folders_are_restored_only_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job, other = trained(), Job(2)
    save(job.titan(), tmp_path / "step-300")
    before = snapshot(other.state())
    with caplog.at_level(logging.WARNING, "stepseal"):
        assert restore(tmp_path, other) is None
    assert "did not write: step-300" in caplog.text
    with pytest.raises(ss.errors.StepNotFound, match="foreign"):
        restore(tmp_path, other, 300)
    assert_identical(before, other.state())
    with caplog.at_level(logging.WARNING, "stepseal"):
        restored = restore(tmp_path, other, unverified=True)
    assert restored is not None
    assert (restored.step, restored.unverified) == (300, True)
    assert "unverified" in restored.report["model"]
    assert "step-300 was not written by stepseal" in caplog.text
    assert_identical(job.state(), other.state())


def test_the_newest_foreign_folder_is_taken_and_a_broken_one_passed_over(tmp_path: Path) -> None:
    job, other = trained(), Job(2)
    save(job.titan(), tmp_path / "step-2")
    job.train(7)
    save(job.titan(), tmp_path / "step-10")
    save(Job(5).titan(), tmp_path / "step-30")
    (tmp_path / "step-30" / "__0_0.distcp").unlink()
    (tmp_path / "step-40").mkdir()
    restored = restore(tmp_path, other, unverified=True)
    assert restored is not None
    assert restored.step == 10
    assert restored.skipped.keys() == {"step-30"}
    assert_identical(job.state(), other.state())


def test_own_steps_come_before_foreign_folders(tmp_path: Path) -> None:
    job, other = trained(), Job(2)
    save(Job(5).titan(), tmp_path / "step-900")
    with ss.Checkpointer(tmp_path) as checkpointer:
        job.add_to(checkpointer)
        checkpointer.save(4)
    restored = restore(tmp_path, other, unverified=True)
    assert restored is not None
    assert (restored.step, restored.unverified) == (4, False)
    asked = restore(tmp_path, other, 900, unverified=True)
    assert asked is not None
    assert asked.unverified


def test_a_foreign_folder_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    state = trained().titan()
    state["last.bias"] = state["last.bias"].double()
    del state["second.weight"]
    state["more"] = torch.ones(1)
    save(state, tmp_path / "step-1")
    other = Job(2)
    before = snapshot(other.state())
    with pytest.raises(ss.errors.StateMismatch, match=r"last\.bias") as caught:
        restore(tmp_path, other, unverified=True)
    text = str(caught.value)
    assert "second.weight: missing" in text
    assert "more: unexpected" in text
    assert_identical(before, other.state())


@pytest.mark.parametrize("unverified", [False, True])
def test_a_dcp_folder_is_no_root_and_nothing_is_made_in_it(
    tmp_path: Path, unverified: bool
) -> None:
    save(trained().titan(), tmp_path / "step-300")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ss.errors.InvalidInput, match="its parent folder"):
        restore(tmp_path / "step-300", Job(2), unverified=unverified)
    assert sorted(tmp_path.rglob("*")) == before


def test_unverified_on_a_root_without_anything_is_no_silent_fresh_start(tmp_path: Path) -> None:
    with pytest.raises(ss.errors.StepNotFound, match="step-N"):
        restore(tmp_path, Job(2), unverified=True)


def test_fresh_and_unverified_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ss.errors.InvalidInput, match="one of the two"):
        restore(tmp_path, Job(1), fresh=True, unverified=True)


@pytest.mark.parametrize("fqn", ["lr_scheduler.last_epoch", "w"])
def test_a_hostile_record_in_a_foreign_folder_changes_nothing(tmp_path: Path, fqn: str) -> None:
    save({**trained().titan(), "more": {"w": torch.ones(2, 3)}}, tmp_path / "step-1")
    put_record(fqn, record(GADGETS["exec"]), "more.w")(tmp_path / "step-1")
    job, more = Job(2), {"w": torch.zeros(2, 3)}
    before = snapshot(job.state())
    with ss.Checkpointer(tmp_path) as checkpointer:
        job.add_to(checkpointer)
        checkpointer.add("more", more)
        with pytest.raises(ss.errors.ParticipantFailed, match=r"builtins\.exec") as caught:
            checkpointer.restore(unverified=True)
    assert not caught.value.tainted
    assert_identical(before, snapshot(job.state()))
    assert_identical({"w": torch.zeros(2, 3)}, more)
