"""Lives of a job that writes down every sample it trains on, with loaders of several libraries."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

import stepseal as ss
from stepseal.testing import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.testing import MemoryStorage

NUM_SAMPLES, BATCH_SIZE = 24, 3
BATCHES = 8
"""Batches of an epoch."""
PLACES = {"middle": 3, "last": 8, "between": 8, "second": 11, "second last": 16}
"""Place to the step that is saved: in the middle of the first and of the second epoch, with their
last batch, and between the two."""
NUM_STEPS = 20

Life = list[tuple[int, tuple[int, ...]]]
"""Epoch and samples of each step."""


def ids_of(batch: Any) -> tuple[int, ...]:  # noqa: ANN401 - as a library gives it
    found = batch["id"] if isinstance(batch, dict) else batch
    return tuple(found.tolist() if isinstance(found, torch.Tensor) else [found])


def _torchdata(dataset: Any, num_workers: int, **options: Any) -> Any:  # noqa: ANN401
    stateful = importlib.import_module("torchdata.stateful_dataloader").StatefulDataLoader
    return stateful(dataset, batch_size=BATCH_SIZE, num_workers=num_workers, **options)


def _hf(num_samples: int = NUM_SAMPLES) -> Any:  # noqa: ANN401 - a datasets.Dataset
    datasets = importlib.import_module("datasets")
    return datasets.Dataset.from_dict({"id": list(range(num_samples))})


def _iterable() -> Any:  # noqa: ANN401 - a datasets.IterableDataset
    return _hf().to_iterable_dataset(num_shards=2)


def _interleaved() -> Any:  # noqa: ANN401 - a datasets.IterableDataset of two
    datasets = importlib.import_module("datasets")
    halves = [
        datasets.Dataset.from_dict({"id": ids}).to_iterable_dataset()
        for ids in (list(range(10)), list(range(10, NUM_SAMPLES)))
    ]
    return datasets.interleave_datasets(
        halves, stopping_strategy="all_exhausted_without_replacement"
    )


class ByHand:
    """An object of somebody's own, with an order that it draws for each epoch."""

    def __init__(self) -> None:
        self._order: list[int] = []
        self._epoch = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        if not self._order:
            generator = torch.Generator().manual_seed(self._epoch)
            self._order = torch.randperm(NUM_SAMPLES, generator=generator).tolist()
        while self._order:
            taken, self._order = self._order[:BATCH_SIZE], self._order[BATCH_SIZE:]
            self._epoch += not self._order
            yield torch.tensor(taken)

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self._order), "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._epoch = state["order"], state["epoch"]


def _sampled(dataset: Any, num_workers: int) -> tuple[Any, Any]:  # noqa: ANN401
    sampler = ss.GlobalSampler(NUM_SAMPLES, BATCH_SIZE, seed=3, rank=0, num_ranks=1)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers)
    return loader, sampler


def _alone(loader: Any) -> tuple[Any, Any]:  # noqa: ANN401
    return loader, loader


def _numbers() -> Any:  # noqa: ANN401 - a map-style dataset
    return torch.arange(NUM_SAMPLES)


KINDS: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "torchdata": lambda workers: _alone(_torchdata(_numbers(), workers, shuffle=True)),
    "sampler": lambda workers: _sampled(_numbers(), workers),
    "by hand": lambda _: _alone(ByHand()),
    "hf map": lambda workers: _alone(_torchdata(_hf().with_format("torch"), workers, shuffle=True)),
    "hf sampler": lambda workers: _sampled(_hf().with_format("torch"), workers),
    "hf iterable": lambda workers: _alone(_torchdata(_iterable(), workers)),
    "hf interleaved": lambda workers: _alone(_torchdata(_interleaved(), workers)),
    "hf bare": lambda _: _alone(_iterable().batch(BATCH_SIZE).with_format("torch")),
}
"""Kind to what makes the loader, and what is added, for a number of workers."""


def life(
    storage: MemoryStorage,
    make: Callable[[], tuple[Any, Any]],
    *,
    until: int = NUM_STEPS,
    save: str | None = None,
    set_epoch: str = "",
) -> tuple[int, Life]:
    """Train up to a step; return the restored step and what was trained on since.

    Args:
        storage: of the root.
        make: makes the loader, and what is added.
        until: last step.
        save: place at which to save.
        set_epoch: tell the dataset the number of each epoch, `before` it, by a counter of the job,
            or `after` it, by adding one.
    """

    def work(_: int, ckpt: ss.Checkpointer) -> tuple[int, Life]:
        torch.manual_seed(1)
        loader, added = make()
        progress = {"epoch": 0}
        ckpt.add("data", added)
        ckpt.add("progress", progress)
        ckpt.add("rng", ss.RNG())
        ledger: Life = []
        with ckpt:
            resumed = ckpt.restore()
            first = step = resumed.step if resumed else 0
            while step < until:
                dataset = getattr(loader, "dataset", loader)
                if set_epoch == "before":
                    dataset.set_epoch(progress["epoch"])
                for batch in ckpt.batches(loader):
                    step += 1
                    ledger.append((progress["epoch"], ids_of(batch)))
                    if save not in (None, "between") and step == PLACES[save]:
                        ckpt.save(step)
                    if step == until:
                        break
                else:
                    progress["epoch"] += 1
                    if set_epoch == "after":
                        dataset.set_epoch(dataset.epoch + 1)
                    if save == "between" and step == PLACES[save]:
                        ckpt.save(step)
            return first, ledger

    found: tuple[int, Life] = World(1, lambda _: storage).run(work)[0]
    return found
