"""Makes `v1/`: a root as format version 1 writes it, from two ranks over two lives of a job.

The folder is stored in git and proves that later releases still read it. It is made anew only while
version 1 is not released and its definition changes; after the release, never:

    python -m tests.compat.make_v1

All values are written out or counted, never drawn or trained, so that tests can expect them.
"""

from __future__ import annotations

import random
import shutil
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import stepseal as ss
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).with_name("v1")
STEPS = (3, 7)
PARTICIPANTS = ("trainer/0", "trainer/1")

_NAN_BITS = torch.tensor([0x7FC1, -0x003F, 0x3F80, -0x8000], dtype=torch.int16)
"""As bfloat16: two NaNs with a payload, 1.0 and -0.0."""


def counted(step: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return small exact numbers that differ from step to step and from element to element."""
    count = torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)
    return ((count - 4) / 8 + step).to(dtype)


def model_tensors(step: int) -> dict[str, torch.Tensor]:
    """Return the global tensors of the model."""
    return {
        "weight": counted(step, 5, 7),
        "wide": counted(step, 4, 6, dtype=torch.bfloat16),
        "bias": counted(step, 3, dtype=torch.float16),
        "num_batches": torch.tensor(step),
    }


def table_tensors(step: int) -> dict[str, torch.Tensor]:
    """Return one tensor of each kind that could be got wrong."""
    return {
        "bits": _NAN_BITS.view(torch.bfloat16),
        "double": counted(step, 2, 2, dtype=torch.float64),
        "eighth": counted(step, 8).to(torch.float8_e4m3fn),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False, True]),
        "pairs": torch.complex(counted(step, 3), -counted(step, 3)),
        "pairs_of_doubles": torch.tensor([1.5 - 2j, 0j, -0.25j], dtype=torch.complex128),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "words": torch.tensor([0, 65_535], dtype=torch.uint16),
    }


def moments(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return what the optimizer holds per parameter; `bias` never got a gradient."""
    return {
        name: {
            "step": torch.tensor(float(step)),
            "exp_avg": model_tensors(step)[name] * 2,
            "exp_avg_sq": model_tensors(step)[name] * 4,
        }
        for name in ("weight", "wide")
    }


def loader_state(step: int, rank: int) -> dict[str, Any]:
    """Return a rank's own state: one value of most kinds that codecs know."""
    return {
        "position": step * 10 + rank,
        "order": (2, 0, (1, rank)),
        "seen": {rank, "a", b"\x00\xff"},
        "window": deque([0.5, float("inf"), -0.0], maxlen=4),
        "by_key": {7: "seven", (1, "a"): None, "$odd": True},
        "zebra before ant": {"zebra": 1, "ant": 2},
        "huge": 2**100 + rank,
        "scores": counted(step, 2, 3, dtype=torch.bfloat16),
        "doubles": torch.tensor([1j * rank], dtype=torch.complex128),
        "history": np.arange(6, dtype="<f4").reshape(2, 3) + rank,
        "days": np.array(["2026-08-01"], dtype="<M8[D]"),
        "text": "gr\u00fc\u00df dich \U0001f600\n",
    }


def stage_state(step: int, rank: int) -> dict[str, Any]:
    """Return the state of a set of ranks; each rank is a set of its own."""
    return {"schedule": step + rank, "scales": counted(step + rank, 3)}


def cache_state(step: int) -> dict[str, Any]:
    """Return the state of the one node."""
    return {"shards": [f"shard-{step}"]}


COUNTERS = {"tokens": 123_456_789_012, "loss": 0.1, "small": 1e-5, "name": "v1", "none": None}


def seed_all(step: int, rank: int) -> None:
    """Put the random streams where the step saved them."""
    random.seed(step * 10 + rank)
    torch.manual_seed(step * 10 + rank)
    np.random.seed(step * 10 + rank)


class Model(nn.Module):
    """Two parameters that ranks may share, one that they do not, and a buffer."""

    def __init__(self, place: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        super().__init__()
        tensors = {name: torch.zeros_like(value) for name, value in model_tensors(0).items()}
        self.weight = nn.Parameter(place(tensors["weight"], 0))
        self.wide = nn.Parameter(place(tensors["wide"], 1))
        self.bias = nn.Parameter(tensors["bias"])
        self.register_buffer("num_batches", tensors["num_batches"])


class Job:
    """The live objects of one participant; `place` makes a parameter out of a whole tensor."""

    def __init__(
        self, rank: int, place: Callable[[torch.Tensor, int], torch.Tensor] = lambda t, _dim: t
    ) -> None:
        self.rank = rank
        self.model = Model(place)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.table = {name: torch.zeros_like(value) for name, value in table_tensors(0).items()}
        self.loader: dict[str, Any] = {}
        self.counters: dict[str, Any] = {}
        self.stage: dict[str, Any] = {}
        self.cache: dict[str, Any] = {}

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        """Add every component."""
        checkpointer.add("model", self.model)
        checkpointer.add("optimizer", self.optimizer)
        checkpointer.add("table", self.table)
        loader = (lambda: self.loader, lambda value: self.__dict__.update(loader=value))
        checkpointer.add("loader", loader, sharing=ss.PER_RANK)
        counters = (lambda: self.counters, lambda value: self.__dict__.update(counters=value))
        checkpointer.add("counters", counters, sharing=ss.GLOBAL)
        checkpointer.add("rng", ss.RNG())
        stage = (lambda: self.stage, lambda value: self.__dict__.update(stage=value))
        checkpointer.add("stage", stage, sharing=ss.per_group(same_on=[[0], [1]]))
        cache = (lambda: self.cache, lambda value: self.__dict__.update(cache=value))
        checkpointer.add("cache", cache, sharing=ss.PER_NODE)

    def advance_to(self, step: int, place: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        """Take the state of a step, as if it had been trained."""
        dims = {"weight": 0, "wide": 1}
        with torch.no_grad():
            for name, value in model_tensors(step).items():
                live = self.model.state_dict(keep_vars=True)[name]
                live.copy_(place(value, dims[name]) if name in dims else value)
            for name, value in table_tensors(step).items():
                self.table[name].copy_(value)
        for name, state in moments(step).items():
            self.optimizer.state[getattr(self.model, name)] = {
                key: value if key == "step" else place(value, dims[name])
                for key, value in state.items()
            }
        self.optimizer.param_groups[0]["lr"] = 0.05 / step
        self.loader = loader_state(step, self.rank)
        self.counters = dict(COUNTERS)
        self.stage = stage_state(step, self.rank)
        self.cache = cache_state(step)
        seed_all(step, self.rank)


def live_once(rank: int, root: str, step: int) -> None:
    """Live one life of the job: restore what is there, and save one step."""
    mesh = init_device_mesh("cpu", (len(PARTICIPANTS),))

    def place(whole: torch.Tensor, dim: int) -> DTensor:
        return distribute_tensor(whole, mesh, [Shard(dim)])

    job = Job(rank, place)
    with ss.Checkpointer(root, mode="sync") as checkpointer:
        job.add_to(checkpointer)
        checkpointer.restore()
        job.advance_to(step, place)
        checkpointer.save(
            step,
            metrics={"loss": 0.25 * step, "gap": float("nan")},
            tags=["compat"],
            cut={"policy_version": step * 100},
        )


def main() -> None:
    """Make the folder anew."""
    shutil.rmtree(ROOT, ignore_errors=True)
    for step in STEPS:
        run_ranks(len(PARTICIPANTS), live_once, str(ROOT), step)


if __name__ == "__main__":
    main()
