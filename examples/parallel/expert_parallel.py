"""Expert parallelism: the experts of a layer are spread over ranks, as one sharded tensor."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

import stepseal as ss
from examples.parallel.common import WIDTH, Mlp, Parallel, start

__all__ = ["build"]

NUM_EXPERTS = 12


class Experts(nn.Module):
    """A network whose middle is a mixture of experts; each rank computes its own ones."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.outer = Mlp()
        self.gate = nn.Linear(WIDTH, NUM_EXPERTS)
        weight = torch.randn(NUM_EXPERTS, WIDTH, WIDTH) / WIDTH
        self.experts = nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
        self.mesh = mesh
        self.first = mesh.get_local_rank() * (NUM_EXPERTS // mesh.size())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, width) to (batch, width)."""
        assert isinstance(self.experts, DTensor), "a parameter that is sharded"
        mine = self.experts.to_local()
        shares = self.gate(x).softmax(dim=-1)[:, self.first : self.first + len(mine)]
        mixed = torch.einsum("bw,ewv,be->bv", x, mine, shares)
        mixed = DTensor.from_local(mixed, self.mesh, [Partial()]).full_tensor()
        result: torch.Tensor = self.outer(x + mixed)
        return result


def build() -> Parallel:
    """Return the model, its experts spread over all ranks; what is no expert is replicated."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
    model = Experts(mesh)

    def reduce() -> None:  # each rank has the part of the gate's gradient from its own experts
        for parameter in model.gate.parameters():
            assert parameter.grad is not None, "every parameter took part"
            dist.all_reduce(parameter.grad)

    return Parallel(model, rng=ss.per_group(same_on=mesh["ep"]), reduce=reduce)


if __name__ == "__main__":
    start(build)
