"""What Accelerate's `prepare` returns: its own where it is installed, else doubles of its habits.

The doubles keep to what `stepseal.components` relies on: names, attributes, the batch read ahead,
and a state that is that of the start until the first batch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

__all__ = ["Doubles", "Real"]


class Seedable(RandomSampler):
    """Draws the order of an epoch from a seed and the number of the epoch."""

    def __init__(self, data: Any, seed: int) -> None:  # noqa: ANN401 - sized
        super().__init__(data, generator=torch.Generator())
        self.initial_seed, self.epoch = seed, 0

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.initial_seed + self.epoch)
        yield from super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class DataLoaderAdapter:
    """One batch ahead of what it yields."""

    def __init__(self, base: Any) -> None:  # noqa: ANN401 - any loader
        self.base_dataloader = base
        self.gradient_state = types.SimpleNamespace(active_dataloader=None)
        self.iteration, self.is_last = 0, False
        if hasattr(base, "state_dict"):
            self.dl_state_dict: Any = base.state_dict()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of the loader inside
        if name == "base_dataloader":
            raise AttributeError
        return getattr(self.base_dataloader, name)

    def state_dict(self) -> Any:  # noqa: ANN401 - of the loader inside
        return self.dl_state_dict

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base_dataloader.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        self.iteration = epoch
        if hasattr(self.base_dataloader.batch_sampler.sampler, "set_epoch"):
            self.base_dataloader.batch_sampler.sampler.set_epoch(epoch)

    def _note(self, *, is_last: bool) -> None:
        self.dl_state_dict = {**self.base_dataloader.state_dict(), "_iterator_finished": is_last}

    def __iter__(self) -> Iterator[Any]:
        self.gradient_state.active_dataloader = self
        self.set_epoch(self.iteration)
        batches = iter(self.base_dataloader)
        batch = next(batches, None)
        while batch is not None:
            self._note(is_last=False)
            after = next(batches, None)
            if after is None:
                self._note(is_last=True)
            yield batch
            batch = after
        self.iteration += 1
        self.gradient_state.active_dataloader = None


class DataLoaderDispatcher(DataLoaderAdapter):
    """Rank 0 reads for all."""


class AcceleratedOptimizer(torch.optim.Optimizer):
    """Shares all with the optimizer inside."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: object = None) -> None:
        self.optimizer, self.scaler = optimizer, scaler

    @property
    def state(self) -> Any:  # type: ignore[override]  # noqa: ANN401 - as torch has it
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:  # type: ignore[override]  # noqa: ANN401 - as torch has it
        return self.optimizer.param_groups

    def load_state_dict(self, state: Any) -> None:  # noqa: ANN401 - as torch has it
        self.optimizer.load_state_dict(state)


class AcceleratedScheduler:
    """Passes on."""

    def __init__(self, scheduler: Any) -> None:  # noqa: ANN401 - any scheduler
        self.scheduler = scheduler

    def state_dict(self) -> Any:  # noqa: ANN401 - of the scheduler
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Any) -> None:  # noqa: ANN401 - of the scheduler
        self.scheduler.load_state_dict(state)


class Doubles:
    """Doubles in the place of Accelerate's modules."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        held: dict[str, list[type]] = {
            "optimizer": [AcceleratedOptimizer],
            "scheduler": [AcceleratedScheduler],
            "data_loader": [DataLoaderAdapter, DataLoaderDispatcher],
        }
        for name, classes in held.items():
            module = types.ModuleType(f"accelerate.{name}")
            for cls in classes:
                setattr(module, cls.__name__, cls)
            monkeypatch.setitem(sys.modules, f"accelerate.{name}", module)

    def optimizer(self, optimizer: torch.optim.Optimizer, scaler: object = None) -> Any:  # noqa: ANN401
        return AcceleratedOptimizer(optimizer, scaler)

    def scheduler(self, scheduler: Any, optimizer: Any) -> Any:  # noqa: ANN401 - theirs
        return AcceleratedScheduler(scheduler)

    def loader(
        self,
        data: Any,  # noqa: ANN401 - sized
        *,
        seedable: bool = True,
        stateful: bool = True,
        dispatch: bool = False,
    ) -> Any:  # noqa: ANN401 - theirs
        sampler = Seedable(data, torch.initial_seed()) if seedable else RandomSampler(data)
        base: Any = StatefulDataLoader if stateful else DataLoader
        batches = BatchSampler(sampler, batch_size=4, drop_last=False)
        inner = base(data, batch_sampler=batches)
        return (DataLoaderDispatcher if dispatch else DataLoaderAdapter)(inner)

    def unshuffled(self, data: Any) -> Any:  # noqa: ANN401 - theirs
        batches = BatchSampler(SequentialSampler(data), batch_size=4, drop_last=False)
        return DataLoaderAdapter(StatefulDataLoader(data, batch_sampler=batches))


def _theirs(name: str) -> Any:  # noqa: ANN401 - a module that need not be there
    return importlib.import_module(f"accelerate{name}")


class Real:
    """Accelerate itself, in a job of one process."""

    def __init__(self) -> None:
        self._make = _theirs("").Accelerator
        self._make(cpu=True)  # its wrappers ask for the state that this makes

    def optimizer(self, optimizer: torch.optim.Optimizer, scaler: object = None) -> Any:  # noqa: ANN401
        return _theirs(".optimizer").AcceleratedOptimizer(optimizer, scaler=scaler)

    def scheduler(self, scheduler: Any, optimizer: Any) -> Any:  # noqa: ANN401 - theirs
        return _theirs(".scheduler").AcceleratedScheduler(scheduler, optimizer)

    def loader(
        self,
        data: Any,  # noqa: ANN401 - sized
        *,
        seedable: bool = True,
        stateful: bool = True,
        dispatch: bool = False,
    ) -> Any:  # noqa: ANN401 - theirs
        options = _theirs(".utils").DataLoaderConfiguration(
            use_stateful_dataloader=stateful,
            use_seedable_sampler=seedable,
            dispatch_batches=dispatch,
        )
        accelerator = self._make(cpu=True, dataloader_config=options)
        return accelerator.prepare(DataLoader(data, batch_size=4, shuffle=True))

    def unshuffled(self, data: Any) -> Any:  # noqa: ANN401 - theirs
        options = _theirs(".utils").DataLoaderConfiguration(use_stateful_dataloader=True)
        accelerator = self._make(cpu=True, dataloader_config=options)
        return accelerator.prepare(DataLoader(data, batch_size=4))
