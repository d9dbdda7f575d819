"""Every trainer: killed after a save, and resumed to the last bit; wrong declarations are found."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from examples.trainers import ddp, dp_pp

import stepseal as ss
from stepseal.errors import ParticipantFailed
from stepseal.layout import decode_manifest
from stepseal.testing import RanksFailed, run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

SAVED, LAST = 4, 7
"""Step that survives the kill, and the last step of the run."""
ALL = {
    1: ("simple",),
    2: ("ddp", "ddp_each_rank", "pipeline"),
    4: ("dp_tp", "dp_pp", "ddp"),
}
"""Trainers by number of ranks."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp_each_rank": ("ddp", {"dispatches": False}),
    "accelerated_dispatches": ("accelerated", {"dispatches": True}),
}

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


def trainer(name: str) -> Callable[[str, int], list[float]]:
    module, options = VARIANTS.get(name, (name, {}))
    if module == "accelerated":  # it looks at what torchrun sets
        rank, num_ranks = str(dist.get_rank()), str(dist.get_world_size())
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}
        os.environ |= {
            "LOCAL_WORLD_SIZE": num_ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1",
        }
    train: Callable[..., list[float]] = importlib.import_module(f"examples.trainers.{module}").train
    return partial(train, **options)


def until_killed(rank: int, root: str, names: list[str]) -> None:
    """Train undisturbed, then again with steps, and die after the last save with no goodbye."""
    for name in names:
        losses = trainer(name)(f"{root}/{name}-whole", LAST)
        torch.save(losses, f"{root}/{name}-losses-{rank}.pt")
        trainer(name)(f"{root}/{name}", SAVED)
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def resumed(rank: int, root: str, names: list[str]) -> dict[str, bool]:
    """Go on to the end; tell whether the losses are those of the undisturbed run."""
    return {
        name: trainer(name)(f"{root}/{name}", LAST)
        == torch.load(f"{root}/{name}-losses-{rank}.pt")[SAVED:]
        for name in names
    }


def check(tmp_path: Path, num_ranks: int, names: list[str]) -> None:
    with pytest.raises(RanksFailed) as killed:
        run_ranks(num_ranks, until_killed, str(tmp_path), names, timeout_s=200)
    assert killed.value.failures == dict.fromkeys(range(num_ranks), "died without a report")
    for name in names:
        assert ss.open(tmp_path / name).steps()[-1] == SAVED
    found = run_ranks(num_ranks, resumed, str(tmp_path), names, timeout_s=200)
    assert found == [dict.fromkeys(names, True)] * num_ranks


def test_replicas_and_stages_on_two_ranks(tmp_path: Path) -> None:
    check(tmp_path, 2, list(ALL[2]))


@pytest.mark.nightly
@pytest.mark.parametrize("num_ranks", ALL)
def test_every_trainer(tmp_path: Path, num_ranks: int) -> None:
    check(tmp_path, num_ranks, list(ALL[num_ranks]))


@pytest.mark.nightly
def test_what_accelerate_prepared(tmp_path: Path) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed")
    check(tmp_path, 2, ["accelerated", "accelerated_dispatches"])


def with_data_declared(_rank: int, root: str) -> dict[str, bool]:
    """Tell whether a job resumes exactly, by what it declares of data that each rank reads."""
    found = {}
    whole = ddp.train(f"{root}/whole", LAST, dispatches=False)
    for name, sharing in (("right", None), ("wrong", ss.GLOBAL)):
        each_rank = partial(ddp.train, dispatches=False, data_sharing=sharing)
        each_rank(f"{root}/{name}", SAVED)
        found[name] = each_rank(f"{root}/{name}", LAST) == whole[SAVED:]
    return found


def with_a_group_of_ranks_that_differ(_rank: int, root: str) -> str:
    try:
        dp_pp.train(root, SAVED, same_on="pp")
    except ParticipantFailed as error:
        return str(error)
    return "saved"


@pytest.mark.nightly
def test_a_wrong_declaration_is_found(tmp_path: Path) -> None:
    root = str(tmp_path / "pp")
    for said in run_ranks(4, with_a_group_of_ranks_that_differ, root, timeout_s=200):
        assert "component model" in said
        assert "trainer/1" in said
    assert ss.open(root).steps() == ()


@pytest.mark.nightly
def test_data_of_each_rank_that_is_declared_global_is_no_exact_resume(tmp_path: Path) -> None:
    found = run_ranks(2, with_data_declared, str(tmp_path), timeout_s=200)
    assert [one["right"] for one in found] == [True, True]
    assert [one["wrong"] for one in found] == [False, False]  # rank 1 got the position of rank 0


def changed_setting(_rank: int, root: str) -> list[str]:
    """Go on with data that each rank reads, after rank 0 read it for all; and back."""
    recorded: list[str] = []
    for last, dispatches in ((2, True), (4, False), (6, True)):
        assert len(ddp.train(root, last, dispatches=dispatches)) == 2
        manifest = decode_manifest(Path(f"{root}/step-{last}/manifest.json").read_bytes())
        recorded += [one.sharing for one in manifest.components if one.name == "dataset"]
    return recorded


@pytest.mark.nightly
def test_each_save_records_who_read_the_data_and_the_next_life_may_change_it(
    tmp_path: Path,
) -> None:
    found = run_ranks(2, changed_setting, str(tmp_path), timeout_s=200)
    assert found == [["global", "per_rank", "global"]] * 2


def on_half_the_ranks(_rank: int, root: str) -> int:
    return sum(len(trainer(name)(f"{root}/{name}", LAST + 2)) for name in ("dp_tp", "dp_pp"))


@pytest.mark.nightly
def test_hybrids_go_on_with_half_the_replicas(tmp_path: Path) -> None:
    check(tmp_path, 4, ["dp_tp", "dp_pp"])
    assert run_ranks(2, on_half_the_ranks, str(tmp_path), timeout_s=200) == [6, 6]
