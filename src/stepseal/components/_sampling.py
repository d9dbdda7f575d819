"""The position of a `GlobalSampler` as a component, and loaders that take batches from one."""

from __future__ import annotations

from typing import Any, ClassVar

from stepseal.components._advice import leave_out
from stepseal.components._stateful import StatefulComponent
from stepseal.components._types import AnySharing, Sharing
from stepseal.errors import InvalidInput

__all__ = ["SamplerComponent", "SharedPosition", "check_no_loader_of", "sampler_of"]

_COMPARED = ("num_samples", "seed", "shuffle", "dataset")
"""Attributes of a sampler that must be at a restore what they were at the save."""
_COUNTED = ("epoch", "consumed", "num_dropped")
"""Attributes that a restore sets: the position."""


class SharedPosition:
    """Where a job stands in an order of samples that all its ranks share; see `GlobalSampler`."""

    num_ranks: int
    num_samples: int
    batch_size: int
    epoch: int
    """Number of the epoch under way, from 0."""
    consumed: int
    """Samples of this epoch that the whole job has consumed."""
    num_dropped: int
    """Samples of all epochs so far that filled no global batch."""
    _is_counted: bool
    _was_empty: bool
    _num_given: int
    _num_counted: int

    @property
    def global_batch_size(self) -> int:
        """Number of samples that all ranks take together in one step."""
        return self.batch_size * self.num_ranks

    def __len__(self) -> int:
        """Return the number of batches that are left in this epoch; the same on all ranks."""
        return (self.num_samples - self.consumed) // self.global_batch_size

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


class SamplerComponent(StatefulComponent):
    """A `GlobalSampler`: REPLICATED unless declared, because all ranks share one position."""

    default_sharing: ClassVar[Sharing | None] = Sharing.REPLICATED

    def __init__(
        self, name: str, sampler: SharedPosition, declared: AnySharing | None = None
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


def sampler_of(loader: object) -> SharedPosition | None:
    """Return the `GlobalSampler` that gives a loader its batches, if one does.

    Raises:
        InvalidInput: the loader takes it for a sampler of single samples.
    """
    if isinstance(getattr(loader, "sampler", None), SharedPosition):
        raise InvalidInput(
            "a GlobalSampler gives whole batches: pass it to the loader as batch_sampler=, not as "
            "sampler=."
        )
    found = getattr(loader, "batch_sampler", None)
    return found if isinstance(found, SharedPosition) else None
