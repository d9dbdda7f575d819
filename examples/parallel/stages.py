"""What the pipelines share: a network in stages, under the names of the whole network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.tensor import DTensor

from examples.parallel.common import BATCH, WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Held", "Part", "add_over_ends", "layers_of", "loss_of"]

NUM_LAYERS = 8


def layers_of(stage: int, num_stages: int) -> range:
    """Return the layers of a stage; stages are uneven where the number does not divide."""
    return range(NUM_LAYERS * stage // num_stages, NUM_LAYERS * (stage + 1) // num_stages)


class Held(nn.Module):
    """What a rank holds: its layers, and at both ends the embedding. This is what is saved.

    A layer keeps its number in the whole network, whatever stage it is in.
    """

    rotary: torch.Tensor

    def __init__(self, layers: list[range]) -> None:
        super().__init__()
        torch.manual_seed(0)  # the same weights, however the layers are divided
        made = [
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(NUM_LAYERS)
        ]
        embedding = nn.Linear(WIDTH, WIDTH, bias=False)
        self.layers = nn.ModuleDict({str(n): made[n] for one in layers for n in one})
        if {"0", str(NUM_LAYERS - 1)} & {*self.layers}:
            self.embedding = embedding
        self.register_buffer("rotary", torch.linspace(0.5, 1.5, WIDTH))  # equal in all stages


class Part(nn.Module):
    """One stage: runs some of the layers that the rank holds."""

    def __init__(self, held: Held, layers: range) -> None:
        super().__init__()
        self.layers = nn.ModuleList(held.layers[str(number)] for number in layers)
        self.begins, self.ends = 0 in layers, NUM_LAYERS - 1 in layers
        if self.begins or self.ends:
            self.embedding = held.embedding
        self.rotary = held.rotary  # not registered again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, width) to (batch, width)."""
        if self.begins:
            x = x @ self.embedding.weight
        for layer in self.layers:
            x = x + torch.relu(layer(x * self.rotary))
        return x @ self.embedding.weight.T if self.ends else x


def loss_of(parts: dict[int, Part], num_stages: int, group: Any) -> Callable[[torch.Tensor], float]:  # noqa: ANN401
    """Return what runs a batch forward and backward through all stages, and returns its loss."""
    stages = [
        PipelineStage(part, number, num_stages, torch.device("cpu"), group=group)
        for number, part in parts.items()
    ]
    several = len(stages) > 1
    schedule: Any = (ScheduleInterleaved1F1B if several else Schedule1F1B)(
        stages if several else stages[0],  # type: ignore[arg-type]
        n_microbatches=BATCH,
        loss_fn=lambda out, _target: out.square().mean(),
    )

    def loss(batch: torch.Tensor) -> float:
        found: list[torch.Tensor] = []
        last = num_stages - 1 in parts
        given = {"target": batch, "losses": found} if last else {}
        schedule.step(*([batch] if 0 in parts else []), **given)
        mean = sum(found, torch.zeros(())).detach() / BATCH
        dist.all_reduce(mean, group=group)  # only the last stage knows it
        return mean.item()

    return loss


def add_over_ends(held: Held, group: Any) -> None:  # noqa: ANN401
    """Add the gradients of the embedding, which the first and the last rank hold, on both."""
    ends = [0, dist.get_world_size(group) - 1]
    me = dist.get_rank(group)
    if me not in ends or ends == [0, 0]:
        return
    gradient = held.embedding.weight.grad
    mine = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    assert mine is not None, "the embedding took part"
    peer = dist.get_global_rank(group, ends[me == 0])
    other = torch.empty_like(mine)
    sends = dist.P2POp(dist.isend, mine.clone(), peer, group=group)
    works = dist.batch_isend_irecv([sends, dist.P2POp(dist.irecv, other, peer, group=group)])
    for work in works:
        work.wait()
    mine += other
