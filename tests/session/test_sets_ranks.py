"""PER_GROUP and PER_NODE over process groups: saved, killed, and restored on a mesh of 2 x 2.

One world of each size runs all its cells, because starting processes is what takes the time.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from tests.session._sets import Live
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import stepseal as ss
from stepseal.components import Topology
from stepseal.components._groups import resolved
from stepseal.testing import RanksFailed, run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.components import DeclaredSharing

pytestmark = pytest.mark.slow


def drawn(live: Live, seed: int) -> Live:
    """Fill the state with values that only this seed gives."""
    stream = torch.Generator().manual_seed(seed)
    live.tree["value"] = seed
    with torch.no_grad():
        momenta = [one["momentum_buffer"] for one in live.optimizer.state.values()]
        for tensor in (live.tree["table"], *live.module.parameters(), *momenta):
            tensor.copy_(torch.rand(tensor.shape, generator=stream))
    return live


def elements(live: Live) -> list[float]:
    """Return every element of the state, in order."""
    momenta = [one["momentum_buffer"] for one in live.optimizer.state.values()]
    tensors = [live.tree["table"], *live.module.parameters(), *momenta]
    return [live.tree["value"], *(x for t in tensors for x in t.detach().flatten().tolist())]


def sharings(dp: int, tp: int) -> dict[str, Callable[[], DeclaredSharing]]:
    """Return the sharing of each cell, on a mesh of these sizes."""
    mesh = init_device_mesh("cpu", (dp, tp), mesh_dim_names=("dp", "tp"))
    sets = mesh.mesh.T.tolist()
    mine = mesh["dp"].get_group()
    return {
        "mesh": lambda: ss.per_group(same_on=mesh["dp"]),
        "group": lambda: ss.per_group(same_on=mine),
        "list": lambda: ss.per_group(same_on=sets),
        "node": lambda: ss.PER_NODE,
        "rank": lambda: ss.PER_RANK,
    }


def seed_of(cell: str, rank: int) -> int:
    """Return the seed of a rank's state on the mesh of 2 x 2."""
    return {"node": rank // 2, "rank": rank}.get(cell, rank % 2) + 7


def save_then_die(rank: int, root: str) -> None:
    os.environ["GROUP_RANK"] = str(rank // 2)
    for cell, sharing in sharings(2, 2).items():
        live = drawn(Live(), seed_of(cell, rank))
        ckpt = ss.Checkpointer(f"{root}/{cell}")
        live.add_to(ckpt, sharing())
        ckpt.save(1).wait()
        drawn(live, 99)  # the life goes on, and then ends without a word
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def restore(root: str, sharing: DeclaredSharing) -> list[float] | str:
    """Return what a new life restores, or why it cannot."""
    live = Live(-1.0)
    with ss.Checkpointer(root) as ckpt:
        live.add_to(ckpt, sharing)
        try:
            ckpt.restore()
        except ss.errors.StateMismatch as error:
            assert live.values() == {-1.0}
            return error.problems[0]
    return elements(live)


def restore_on_four(rank: int, root: str) -> dict[str, Any]:
    os.environ["GROUP_RANK"] = str(rank // 2)
    found: dict[str, Any] = {}
    for cell, sharing in sharings(2, 2).items():
        found[cell] = restore(f"{root}/{cell}", sharing())
    renamed = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "model"))
    found["renamed"] = restore(f"{root}/mesh", ss.per_group(same_on=renamed["dp"]))
    line = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
    found["line"] = restore(f"{root}/mesh", ss.per_group(same_on=line))
    return found


def restore_on_two(rank: int, root: str) -> dict[str, Any]:
    os.environ["GROUP_RANK"] = str(rank)
    found: dict[str, Any] = {}
    for cell, sharing in sharings(1, 2).items():
        found[cell] = restore(f"{root}/{cell}", sharing())
    os.environ["GROUP_RANK"] = "0"
    found["one node"] = restore(f"{root}/node", ss.PER_NODE)
    pipeline = init_device_mesh("cpu", (1, 2, 1), mesh_dim_names=("dp", "tp", "pp"))
    found["more axes"] = restore(f"{root}/mesh", ss.per_group(same_on=pipeline["dp"]))
    return found


def test_what_was_saved_before_a_kill_comes_back_by_coordinate(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(RanksFailed, match="died without a report"):
        run_ranks(4, save_then_die, root)
    for rank, found in enumerate(run_ranks(4, restore_on_four, root)):
        for cell in ("mesh", "group", "list", "node", "rank"):
            assert found[cell] == elements(drawn(Live(), seed_of(cell, rank))), cell
        assert "(the axes tp=2 at the save, now the axes model=2)" in found["renamed"]
        assert "(the axes tp=2 at the save, now one set of all ranks)" in found["line"]
    for rank, found in enumerate(run_ranks(2, restore_on_two, root)):
        for cell in ("mesh", "group", "list", "node"):
            assert found[cell] == elements(drawn(Live(), 7 + rank)), cell
        assert "saved per rank by 4 participants, now 2" in found["rank"]
        assert "(2 nodes at the save, now 1 node)" in found["one node"]
        assert "(the axes tp=2 at the save, now the axes pp=1, tp=2)" in found["more axes"]


def declare_wrongly(rank: int) -> dict[str, str]:
    """Return what is said to each wrong declaration that needs a process group."""
    inner, outer, gone = (dist.new_group(ranks) for ranks in ([1, 2], [0, 3], [0, 1, 2, 3]))
    mine, not_mine = (inner, outer) if rank in (1, 2) else (outer, inner)
    dist.barrier()
    dist.destroy_process_group(gone)
    half = DeviceMesh("cpu", [[0], [1]], mesh_dim_names=("dp", "tp"))
    job = Topology(rank, tuple(f"trainer/{number}" for number in range(4)))
    wrong: dict[str, Callable[[], object]] = {
        "uneven": lambda: ss.per_group(same_on=mine),
        "not mine": lambda: ss.per_group(same_on=not_mine),
        "gone": lambda: ss.per_group(same_on=gone),
        "half": lambda: resolved("x", ss.per_group(same_on=half["dp"]), job),
    }
    said = {}
    for name, declare in wrong.items():
        try:
            said[name] = f"accepted: {declare()}"
        except ss.errors.InvalidInput as error:
            said[name] = str(error)
    return said


def test_groups_and_meshes_that_say_nothing_about_all_ranks_are_refused() -> None:
    for rank, said in enumerate(run_ranks(4, declare_wrongly)):
        assert "spaced evenly" in said["uneven"]
        assert "in no group" in said["not mine"]
        assert "torch does not know" in said["gone"]
        half = "found in none: 2, 3" if rank < 2 else f"holds this rank {rank}"
        assert half in said["half"]
