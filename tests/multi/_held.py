"""What the ranks of the real-process job hold besides a model, with gates where it is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import stepseal as ss

if TYPE_CHECKING:
    from stepseal.components import DeclaredSharing

__all__ = ["RANKS_PER_NODE", "SHARINGS", "Data", "Sharded", "held", "number_of"]

SHARINGS = ("global", "replicated", "sharded", "per_rank", "per_group", "per_node")
RANKS_PER_NODE = 4
_NUM_SETS = 2


class Reach(Protocol):
    """A gate."""

    def reach(self, name: str) -> None:
        """Wait here for the test, if this is the gate."""
        ...


class Data:
    """Plain state of one rank, or of all that hold the same.

    Attributes:
        kind: how it is stored, None for the default.

    Args:
        of: number of those that hold the same.
        gate: where its state is taken and given; None where nobody is hit.
        sharing: how it is declared.
    """

    kind: Literal["tensors"] | None = None

    def __init__(
        self, of: int, gate: Reach | None, sharing: DeclaredSharing | None = ss.PER_RANK
    ) -> None:
        self.state = {"of": of, "step": 0}
        self.sharing = sharing
        self.is_training = False
        self._gate = gate

    def state_dict(self) -> dict[str, Any]:
        self._taken()
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._given()
        self.state = dict(state)

    def fill(self, step: int) -> None:
        """Take the state of a step."""
        self.state["step"] = step

    def is_of(self, step: int, of: int) -> bool:
        """Return whether this is the state of a step, of those with this number."""
        return self.state == {"of": of, "step": step}

    def _taken(self) -> None:
        if self.is_training and self._gate:  # a restore reads it, too, to see if it can be saved
            self._gate.reach("save/capture")

    def _given(self) -> None:
        if self._gate:
            self._gate.reach("restore/apply")


class Sharded(Data):
    """A tensor of which each rank holds a shard."""

    kind = "tensors"

    def __init__(self, gate: Reach | None) -> None:
        super().__init__(0, gate, None)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        whole = torch.arange(3.0 * dist.get_world_size())
        self._first = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None).to_local()
        zeros = torch.zeros_like(whole)
        self._tensor = distribute_tensor(zeros, mesh, [Shard(0)], src_data_rank=None)

    def state_dict(self) -> dict[str, Any]:
        self._taken()
        return {"tensor": self._tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._given()
        assert isinstance(state["tensor"], DTensor)
        self._tensor = state["tensor"]

    def fill(self, step: int) -> None:
        self._tensor.to_local().copy_(self._first + 100.0 * step)

    def is_of(self, step: int, of: int) -> bool:
        return torch.equal(self._tensor.to_local(), self._first + 100.0 * step)


def number_of(sharing: str, rank: int) -> int:
    """Return the number of those who hold the same as a rank."""
    match sharing:
        case "per_rank" | "data":
            return rank
        case "per_group":
            return rank % _NUM_SETS
        case "per_node":
            return rank // RANKS_PER_NODE
    return 0


def held(rank: int, world: int, gate: Reach, hit: str) -> dict[str, Data]:
    """Return what a rank holds, by component; the gate is in the one whose sharing is `hit`.

    With `hit` empty there is one component alone, PER_RANK and with the gate.
    """
    if not hit:
        return {"data": Data(rank, gate)}
    sets = [list(range(first, world, _NUM_SETS)) for first in range(_NUM_SETS)]
    declared: dict[str, DeclaredSharing] = {
        "global": ss.GLOBAL,
        "replicated": ss.REPLICATED,
        "per_rank": ss.PER_RANK,
        "per_group": ss.per_group(same_on=sets),
        "per_node": ss.PER_NODE,
    }
    found: dict[str, Data] = {}
    for name in SHARINGS:
        mine = gate if name == hit else None
        if name == "sharded":
            found[name] = Sharded(mine)
        else:
            found[name] = Data(number_of(name, rank), mine, declared[name])
    found["replicated"].kind = "tensors"  # of a tree, only who writes it reads the state
    return found
