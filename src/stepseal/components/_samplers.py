"""A sampler whose order and position belong to the whole job, so that any number of ranks goes on.

One epoch is a permutation of all samples, from the seed and the number of the epoch alone. A global
batch is the next stretch of it, and each rank takes its part. So one number is the position.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from stepseal.components._sampling import SharedPosition
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GlobalSampler"]


class GlobalSampler(SharedPosition, Sampler[list[int]]):
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
        self.epoch = self.consumed = self.num_dropped = 0
        self._is_counted = False
        self._forget_epoch()
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

    def _order(self) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(self.num_samples)
        seed = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") % 2**63)
        return torch.randperm(self.num_samples, generator=generator)


def _default_group() -> tuple[int, int]:
    """Return rank and size of the default process group; 0 and 1 without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
