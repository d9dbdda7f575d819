"""A sampler whose order and position belong to the whole job, so that any number of ranks goes on.

One epoch is a permutation of all samples, from the seed and the number of the epoch alone. A global
batch is the next stretch of it, and each rank takes its part. So one number is the position.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from stepseal.components._advice import leave_out
from stepseal.components._stateful import StatefulComponent
from stepseal.components._types import AnySharing, Sharing
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GlobalSampler", "SamplerComponent", "check_no_loader_of", "sampler_of"]

_COMPARED = ("num_samples", "seed", "shuffle", "dataset")
_COUNTED = ("epoch", "consumed", "num_dropped")


class GlobalSampler(Sampler[list[int]]):
    """Batches of sample indices for each rank, at a position that all ranks share.

    Use it as `batch_sampler` of torch's `DataLoader`, loop over `Checkpointer.batches`, and add the
    sampler, not the loader. A job on another number of ranks goes on at the same sample: none is
    skipped and none comes twice. Nothing is padded. What fills no global batch at the end of an
    epoch is dropped, and counted in `num_dropped`.

    Args:
        num_samples: number of samples in the dataset.
        batch_size: samples per batch of one rank; a global batch has `batch_size * num_ranks`.
        seed: what the order of every epoch derives from; the same on all ranks.
        shuffle: False takes samples in their own order.
        dataset: a name of the dataset, compared at a restore.
        rank: position among the ranks that read different samples (the data parallel ones); None
            takes the rank in the default process group, or 0 without one.
        num_ranks: their number; None takes the size of that group, or 1.

    Raises:
        InvalidInput: a number is out of range, or `num_samples` fills no global batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        dataset: str = "",
        rank: int | None = None,
        num_ranks: int | None = None,
    ) -> None:
        group = _default_group()
        self.rank = group[0] if rank is None else rank
        self.num_ranks = group[1] if num_ranks is None else num_ranks
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.dataset = dataset
        self.epoch = 0
        """Number of the epoch under way, from 0."""
        self.consumed = 0
        """Samples of this epoch that the whole job has consumed."""
        self.num_dropped = 0
        """Samples of all epochs so far that filled no global batch."""
        self._is_counted = self._was_empty = False
        self._num_given = self._num_counted = 0
        self._check()

    def _check(self) -> None:
        problems = [
            f"{name}: expected an int of at least {least}, found {value!r:.80}"
            for name, value, least in (
                ("num_samples", self.num_samples, 1),
                ("batch_size", self.batch_size, 1),
                ("num_ranks", self.num_ranks, 1),
                ("rank", self.rank, 0),
            )
            if type(value) is not int or value < least
        ]
        if not problems and self.rank >= self.num_ranks:
            problems = [f"rank: expected less than num_ranks={self.num_ranks}, found {self.rank}"]
        if not problems and self.global_batch_size > self.num_samples:
            problems = [
                f"num_samples: expected at least one global batch, batch_size * num_ranks = "
                f"{self.global_batch_size}, found {self.num_samples}"
            ]
        if problems:
            raise InvalidInput(f"GlobalSampler: {'; '.join(problems)}.", problems=tuple(problems))

    @property
    def global_batch_size(self) -> int:
        """Number of samples that all ranks take together in one step."""
        return self.batch_size * self.num_ranks

    def __len__(self) -> int:
        """Return the number of batches that are left in this epoch; the same on all ranks."""
        return (self.num_samples - self.consumed) // self.global_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches of what is left of the epoch."""
        order, size, num_batches = self._order(), self.batch_size, len(self)
        if not num_batches and self._was_empty:
            raise InvalidInput(
                f"GlobalSampler: epoch {self.epoch} is over, and was iterated once more: call "
                "sampler.end_epoch() after each epoch, or loop over ckpt.batches(loader)."
            )
        self._was_empty = not num_batches
        start = self.consumed + self.rank * size
        for number in range(num_batches):
            self._num_given += 1
            first = start + number * self.global_batch_size
            yield order[first : first + size].tolist()

    @property
    def is_uncounted(self) -> bool:
        """Whether batches were given and none was counted: a loop by hand that forgets it."""
        return self._num_given > 0 and not self._num_counted and not self._is_counted

    def advance(self) -> None:
        """Count one global batch as consumed, in a loop by hand.

        Raises:
            InvalidInput: more batches were counted than given, or `Checkpointer.batches` counts.
        """
        if self._is_counted or self._num_counted >= self._num_given:
            raise InvalidInput(
                f"GlobalSampler.advance: expected to count each of {self._num_given} batches once, "
                "found one more. ckpt.batches(loader) counts by itself: leave sampler.advance() "
                "out there."
            )
        self._num_counted += 1
        self.consumed += self.global_batch_size

    def count(self) -> None:
        """Count one global batch as consumed, for `Checkpointer.batches`."""
        self._is_counted = True
        self.consumed += self.global_batch_size

    def end_epoch(self) -> None:
        """Drop what is left of this epoch, and begin the next. `Checkpointer.batches` does this."""
        self.num_dropped += self.num_samples - self.consumed
        self.epoch += 1
        self.consumed = 0
        self._forget_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what it depends on; the same on all ranks."""
        return {name: getattr(self, name) for name in (*_COMPARED, *_COUNTED)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on at a saved position, whatever the number of ranks that saved it."""
        for name in _COUNTED:
            setattr(self, name, state[name])
        self._forget_epoch()

    def _forget_epoch(self) -> None:
        self._num_given = self._num_counted = 0
        self._was_empty = False

    def _order(self) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(self.num_samples)
        seed = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") % 2**63)
        return torch.randperm(self.num_samples, generator=generator)


class SamplerComponent(StatefulComponent):
    """A `GlobalSampler`: REPLICATED unless declared, because all ranks share one position."""

    default_sharing: ClassVar[Sharing | None] = Sharing.REPLICATED

    def __init__(
        self, name: str, sampler: GlobalSampler, declared: AnySharing | None = None
    ) -> None:
        super().__init__(name, sampler, declared)
        self.sampler = sampler

    def may_start_iteration(self, *, under_way: bool) -> bool:
        """Return True before training: batches may have been given that a restore forgets."""
        return not under_way

    def read_state(self) -> object:
        """Return the position.

        Raises:
            InvalidInput: batches were given, and nobody counted them.
        """
        if self.sampler.is_uncounted:
            raise InvalidInput(
                f"component {self.name}: the sampler gave batches, and none was counted as "
                "consumed: a resume would repeat them. Loop over ckpt.batches(loader), or call "
                "sampler.advance() for each batch and sampler.end_epoch() after each epoch.",
                component=self.name,
            )
        return self.sampler.state_dict()

    def state_problems(self, value: object) -> list[str]:
        """Compare what the position depends on."""
        live = self.sampler.state_dict()
        if not isinstance(value, dict) or value.keys() != live.keys():
            return [f"expected the state of a GlobalSampler, found {value!r:.80}"]
        problems = [
            f"{key}: expected (live) {live[key]!r}, found {value[key]!r:.80}"
            for key in _COMPARED
            if value[key] != live[key]
        ]
        if problems:
            problems[-1] += (
                f": another dataset or order. {leave_out(self.name)}, at this start only, begins "
                "with the first sample"
            )
        elif not all(type(value[key]) is int and value[key] >= 0 for key in _COUNTED):
            problems = [f"expected counts of at least 0, found {value!r:.200}"]
        elif value["consumed"] > live["num_samples"]:
            problems = [
                f"consumed: expected at most {live['num_samples']}, found {value['consumed']}"
            ]
        return problems


def _default_group() -> tuple[int, int]:
    """Return rank and size of the default process group; 0 and 1 without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def check_no_loader_of(name: str, state: object) -> None:
    """Refuse a loader whose position is that of its `GlobalSampler`.

    Raises:
        InvalidInput: names what to add instead.
    """
    if sampler_of(state) is not None:
        raise InvalidInput(
            f"add({name!r}): the loader takes its batches from a GlobalSampler, which has the "
            f"position. Make it a torch.utils.data.DataLoader, and add the sampler: "
            f"add({name!r}, loader.batch_sampler).",
            component=name,
        )


def sampler_of(loader: object) -> GlobalSampler | None:
    """Return the `GlobalSampler` that gives a loader its batches, if one does.

    Raises:
        InvalidInput: the loader takes it for a sampler of single samples.
    """
    if isinstance(getattr(loader, "sampler", None), GlobalSampler):
        raise InvalidInput(
            "a GlobalSampler gives whole batches: pass it to the loader as batch_sampler=, not as "
            "sampler=."
        )
    found = getattr(loader, "batch_sampler", None)
    return found if isinstance(found, GlobalSampler) else None
