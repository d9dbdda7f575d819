"""Jobs of the exactness matrix: the README's loop, all kinds of loaders, saves at all places."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCHES = 4
"""Batches per epoch."""
NUM_STEPS = 10
PLACES = {"first": 0, "middle": 2, "end": 4, "second": 6, "start": 8}
"""Where a step is saved: before the first batch of all, in the middle of the first epoch, with its
last batch, in the middle of the second epoch, and between the second and the third."""
KINDS = {
    "shuffled": (0, 2),
    "generator": (0, 2),
    "iterable": (0, 2),
    "by hand": (0,),
    "stateless": (0, 2),
}
"""Kind of loader to the numbers of workers."""
STATELESS = ("first", "end", "start")
"""A loader without a state can go on only where an epoch begins."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One resume of the matrix."""

    kind: str
    num_workers: int
    place: str
    warms_up: bool


CELLS = [
    Cell(kind, num_workers, place, warms_up)
    for kind, workers in KINDS.items()
    for num_workers in workers
    for place in (STATELESS if kind == "stateless" else PLACES)
    for warms_up in (False, True)
]


class Rows(IterableDataset[torch.Tensor]):
    """Rows in order, dealt out to workers; each knows where it stands."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self._position = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        rank, num = (0, 1) if info is None else (info.id, info.num_workers)
        mine = self._rows[rank::num]
        while self._position < len(mine):
            self._position += 1
            yield mine[self._position - 1]
        self._position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position = state["position"]


class ByHand:
    """A loader of somebody's own: it draws an order when the first batch of an epoch is due."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self._order: list[int] = []

    def __iter__(self) -> Iterator[torch.Tensor]:
        if not self._order:
            self._order = torch.randperm(len(self._rows)).tolist()
        while self._order:
            taken, self._order = self._order[:2], self._order[2:]
            yield self._rows[taken]

    def state_dict(self) -> dict[str, list[int]]:
        return {"order": list(self._order)}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self._order = state["order"]


class Job:
    """Model, optimizer and loader of one life, on one rank of a world."""

    def __init__(self, world: str, kind: str, num_workers: int, seed: int) -> None:
        rank = dist.get_rank() if world != "alone" else 0
        torch.manual_seed(1)
        self.model: nn.Module = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.4), nn.Linear(6, 1))
        rows = torch.rand(2 * BATCHES, 3) + rank
        if world == "ddp":
            self.model = nn.parallel.DistributedDataParallel(self.model)
        elif world == "fsdp":
            fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        torch.manual_seed(seed + rank)
        self.generators: list[torch.Generator] = []
        self._has_state = kind != "stateless"
        self.loader: Any = self._make_loader(rows, kind, num_workers)

    def _make_loader(self, rows: torch.Tensor, kind: str, num_workers: int) -> object:
        if kind == "by hand":
            return ByHand(rows)
        options: dict[str, Any] = {"batch_size": 2, "num_workers": num_workers}
        if kind == "generator":
            self.generators = [torch.Generator().manual_seed(torch.initial_seed())]
            options["generator"] = self.generators[0]
        if kind == "stateless":
            return DataLoader(TensorDataset(rows), shuffle=True, **options)
        stateful = importlib.import_module("torchdata.stateful_dataloader").StatefulDataLoader
        if kind == "iterable":
            return stateful(Rows(rows), **options)
        return stateful(TensorDataset(rows), shuffle=True, **options)

    def add_to(self, ckpt: ss.Checkpointer) -> None:
        ckpt.add("rng", ss.RNG(torch=self.generators))
        ckpt.add("model", self.model)
        ckpt.add("optimizer", self.optimizer)
        if self._has_state:
            ckpt.add("loader", self.loader, sharing=ss.PER_RANK)

    def train(self, batch: Any) -> float:  # noqa: ANN401 - a tensor, or a list with one
        rows = batch if isinstance(batch, torch.Tensor) else batch[0]
        self.optimizer.zero_grad()
        loss = (self.model(rows) + torch.rand(1)).square().mean()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def run(job: Job, ckpt: ss.Checkpointer, *, step: int, saves: bool) -> list[float]:
    """Train to the last step with the README's loop; return the losses."""
    losses = []
    if saves:
        ckpt.save(0)
    while step < NUM_STEPS:
        for batch in ckpt.batches(job.loader):
            step += 1
            losses.append(job.train(batch))
            if saves and step in PLACES.values() and step != PLACES["start"]:
                ckpt.save(step)
            if step == NUM_STEPS:
                break
        else:
            if saves and step == PLACES["start"]:
                ckpt.save(step)
    return losses


def live(job: Job, folder: str, cell: Cell | None) -> list[float]:
    """Run a job from the place of a cell, or from the beginning, with saves; return the losses.

    On return, the workers of its loader have ended.
    """
    with ss.Checkpointer(folder) as ckpt:
        job.add_to(ckpt)
        if cell is None:
            ckpt.restore()
            losses = run(job, ckpt, step=0, saves=True)
        else:
            ckpt.restore(PLACES[cell.place])
            if cell.warms_up:
                job.model(torch.rand(2, 3))
            losses = run(job, ckpt, step=PLACES[cell.place], saves=False)
    del job.loader  # importing torch._dynamo, as the first optimizer does, keeps the job alive
    return losses


def inexact_cells(rank: int, root: str, world: str, cells: list[Cell]) -> list[Cell]:
    """Run cells on one rank of a world; return those whose losses differ in a bit."""
    wrong = []
    straight: dict[tuple[str, int], list[float]] = {}
    for cell in cells:
        setting = cell.kind, cell.num_workers
        folder = f"{root}/{cell.kind.replace(' ', '-')}-{cell.num_workers}"
        if setting not in straight:
            straight[setting] = live(Job(world, *setting, seed=10), folder, None)
        losses = live(Job(world, *setting, seed=99), folder, cell)
        if losses != straight[setting][PLACES[cell.place] :]:
            wrong.append(cell)
    return wrong
