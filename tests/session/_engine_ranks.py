"""What the ranks of a process group do with real engines: `dcp.save`, `torch.save`, a file each."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.session._engines import FilePerRank
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.fsdp import fully_shard

import stepseal as ss
from stepseal import errors

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=False)
LOADING = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Sharded:
    """An FSDP2 module in the hands of an engine."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
        fully_shard(self.module)

    def values(self) -> list[float]:
        """Return every element of the whole module; a collective."""
        state: dict[str, Any] = get_model_state_dict(self.module, options=WHOLE)
        return [x for key in sorted(state) for x in state[key].flatten().tolist()]


class DcpEngine(Sharded):
    """`dcp.save` and `dcp.load`; each rank writes its shards into the one folder."""

    def save(self, folder: str) -> None:
        dcp_save(get_model_state_dict(self.module), checkpoint_id=folder)

    def load(self, folder: str) -> None:
        state = get_model_state_dict(self.module)
        dcp_load(state, checkpoint_id=folder)
        set_model_state_dict(self.module, state)


class WholeEngine(Sharded):
    """Gathers the full state dict on rank 0, which writes it by `torch.save`."""

    def save(self, folder: str) -> None:
        state = get_model_state_dict(self.module, options=WHOLE)
        if dist.get_rank() == 0:
            torch.save(state, Path(folder) / "model.pt")

    def load(self, folder: str) -> None:
        state = torch.load(Path(folder) / "model.pt") if dist.get_rank() == 0 else {}
        set_model_state_dict(self.module, state, options=LOADING)


SHARDED: dict[str, Any] = {"dcp": DcpEngine, "whole": WholeEngine}


def add(ckpt: ss.Checkpointer, engine: Any, **options: Any) -> None:  # noqa: ANN401 - any engine
    """Add an engine, and a model of stepseal's own beside it."""
    ckpt.add("engine", ss.External(save=engine.save, load=engine.load, **options))
    ckpt.add("counter", {"rank": dist.get_rank()}, sharing=ss.PER_RANK, on_world_change="fresh")


def save_then_die(rank: int, root: str) -> None:
    """Save a step with each engine; then die on all ranks, in the middle of the engine of one."""
    for name, engine_type in SHARDED.items():
        engine = engine_type(seed=3)
        ckpt = ss.Checkpointer(f"{root}/{name}")
        add(ckpt, engine)
        ckpt.save(1).wait()
        torch.save(engine.values(), f"{root}/{name}-{rank}.pt")
        ckpt.close()
    files = FilePerRank(rank, value=100 + rank)
    ckpt = ss.Checkpointer(f"{root}/files")

    def save(folder: str) -> None:
        files.save(folder)
        try:
            dist.barrier()  # all have written: the folder is as full as it gets
        finally:  # also where another rank has died first
            if files.value >= 200:
                os.kill(os.getpid(), signal.SIGKILL)

    ckpt.add("engine", ss.External(save=save, load=files.load))
    ckpt.save(1).wait()
    files.value = 200 + rank
    ckpt.save(2)
    raise AssertionError("not killed")


def resume(rank: int, root: str, *, same_world: bool) -> dict[str, bool]:
    """Restore all engines, and save once more; tell what came back as it was."""
    found = {}
    for name, engine_type in SHARDED.items():
        engine = engine_type(seed=99)
        with ss.Checkpointer(f"{root}/{name}") as ckpt:
            add(ckpt, engine, any_world=True)
            restored = ckpt.restore()
            then = torch.load(f"{root}/{name}-0.pt")
            found[name] = restored is not None and engine.values() == then
            ckpt.save(2).wait()
        found[f"{name} verified"] = ss.open(f"{root}/{name}").step(2).verify() == ()
    if same_world:
        files = FilePerRank(rank)
        with ss.Checkpointer(f"{root}/files") as ckpt:
            ckpt.add("engine", files.external())
            restored = ckpt.restore()
            found["files"] = restored is not None and restored.step == 1
            found["files of the rank"] = files.value == 100 + rank
            ckpt.save(2).wait()
    return found


def one_raises(rank: int, root: str) -> tuple[str, tuple[int, ...]]:
    """Let the engine of one rank raise before its collective, in which the others wait.

    Their process group is one of its own, with a short timeout, as no library can interrupt it.
    """
    group = dist.new_group(timeout=timedelta(seconds=2))
    engine = FilePerRank(rank)
    ckpt = ss.Checkpointer(root)
    broken = [True]

    def save(folder: str) -> None:
        if broken[0] and rank == dist.get_world_size() - 1:
            raise ValueError("the last rank is out of memory")
        engine.save(folder)
        if broken[0]:
            dist.all_reduce(torch.ones(1), group=group)

    ckpt.add("engine", ss.External(save=save, load=engine.load))
    try:
        ckpt.save(1)
    except errors.ParticipantFailed as error:
        text = str(error)
    broken[0] = False
    ckpt.save(2).wait()
    ckpt.close()
    return text, ss.open(root).steps()
