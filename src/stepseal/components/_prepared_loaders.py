"""Accelerate's data loaders: one batch ahead of training, and in an order that the epoch decides.

Their own `state_dict` leaves out what the order of an epoch depends on. And it is that of the start
until the first batch, whatever was loaded. Both are put right here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stepseal.components._advice import leave_out
from stepseal.components._codecs_words import qualified
from stepseal.components._loaders import LoaderComponent, draws, num_samples_of
from stepseal.components._types import HasStateDict, Sharing
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from stepseal.components._types import AnySharing, Topology

__all__ = ["PreparedLoaderComponent"]

_KEYS = {"class", "iteration", "loader", "num_samples", "sampler_seed", "total_batch_size"}
_DISPATCHER = "DataLoaderDispatcher"
_ADVICE = (
    "Accelerator(dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=True, "
    "use_seedable_sampler=True))"
)


class PreparedLoaderComponent(LoaderComponent):
    """A data loader that Accelerate prepared, around a `StatefulDataLoader` of torchdata.

    Without a declared sharing it is GLOBAL where rank 0 dispatches batches, else PER_RANK.

    Raises:
        InvalidInput: the loader inside has no state, or a sampler draws an order that nobody saves.
    """

    def check(self) -> None:
        """Refuse a loader without a state, and an order that does not derive from the epoch."""
        inner, sampler = self.loader.base_dataloader, self._sampler()
        if not isinstance(inner, HasStateDict):
            raise InvalidInput(
                f"component {self.name!r}: expected a prepared loader that knows its position, "
                f"found one around {qualified(type(inner))}. Make it with {_ADVICE}.",
                component=self.name,
                found=qualified(type(inner)),
            )
        if draws(sampler) and not hasattr(sampler, "initial_seed"):
            raise InvalidInput(
                f"component {self.name!r}: expected a sampler whose order derives from the epoch, "
                f"found {qualified(type(sampler))}, which draws a new order after a restore. Make "
                f"the loader with {_ADVICE}.",
                component=self.name,
                found=qualified(type(sampler)),
            )

    def sharing(self, topology: Topology) -> AnySharing:
        """Return the declared sharing; else GLOBAL where rank 0 reads for all, or PER_RANK.

        Raises:
            InvalidInput: rank 0 reads for all, and another sharing is declared.
        """
        dispatches = type(self.loader).__name__ == _DISPATCHER
        if self._declared is None:
            return Sharing.GLOBAL if dispatches or topology.world_size == 1 else Sharing.PER_RANK
        sharing = super().sharing(topology)
        if dispatches and topology.world_size > 1 and sharing is not Sharing.GLOBAL:
            raise InvalidInput(
                f"component {self.name!r}: sharing {sharing.name}: expected ss.GLOBAL, because "
                "rank 0 of this loader reads for all ranks, and only its position is right. Leave "
                "the sharing out.",
                component=self.name,
                found=sharing.value,
            )
        return sharing

    def may_start_iteration(self, *, under_way: bool) -> bool:
        """Return False: Accelerate keeps the state of the last batch, and makes no iterator."""
        return False

    def read_state(self) -> object:
        """Return the position, and what the order of its epoch depends on.

        The last batch of an epoch belongs to it; what follows is the next epoch. Accelerate counts
        on only after the loop.
        """
        position, loader = self.loader.state_dict(), self.loader
        in_loop = loader.gradient_state.active_dataloader is loader
        ends = bool(position.get("_iterator_finished")) and in_loop
        return {
            "class": type(loader).__name__,
            "total_batch_size": self._total_batch_size(),
            "num_samples": num_samples_of(loader),
            "iteration": loader.iteration + ends,
            "sampler_seed": getattr(self._sampler(), "initial_seed", None),
            "loader": position,
        }

    def write_state(self, value: object) -> None:
        """Go on at a saved position, in the order of its epoch."""
        assert isinstance(value, dict), "checked while it was planned"
        if value["sampler_seed"] is not None:
            self._sampler().initial_seed = value["sampler_seed"]
        self.loader.set_epoch(value["iteration"])
        self.loader.load_state_dict(value["loader"])
        self.loader.dl_state_dict = value["loader"]  # else a save before the first batch is of old

    def state_problems(self, value: object) -> list[str]:
        """Compare what the position depends on."""
        if not isinstance(value, Mapping) or value.keys() != _KEYS:
            return [
                f"expected the state of a loader that Accelerate prepared, found {value!r:.80}: "
                f"{leave_out(self.name)} starts its epoch anew"
            ]
        live = {
            "class": type(self.loader).__name__,
            "total_batch_size": self._total_batch_size(),
            "num_samples": num_samples_of(self.loader),
        }
        problems = [
            f"{key}: expected (live) {live[key]!r}, found {value[key]!r:.80}: prepare the loader "
            f"as it was, or {leave_out(self.name)} starts its epoch anew"
            for key in live
            if live[key] != value[key]
        ]
        if (value["sampler_seed"] is None) != (not hasattr(self._sampler(), "initial_seed")):
            problems.append(
                "sampler: expected a loader that shuffles, or not, as at the save: prepare it as "
                f"it was, or {leave_out(self.name)} starts its epoch anew"
            )
        return problems + super().state_problems(value["loader"])

    def _sampler(self) -> Any:  # noqa: ANN401 - any sampler, or None
        """Return the sampler of single samples: Accelerate wraps batch samplers around it."""
        found = inner = getattr(self.loader, "batch_sampler", None)
        while inner is not None:
            found = inner
            inner = getattr(inner, "batch_sampler", None) or getattr(inner, "sampler", None)
        return found

    def _total_batch_size(self) -> int | None:
        """Return the samples that all ranks take together; None where the dataset decides.

        Accelerate's property of this name fails for loaders that dispatch.
        """
        batches: Any = getattr(self.loader, "batch_sampler", None)
        if getattr(batches, "batch_size", None) is None:
            return None
        is_split = getattr(batches, "split_batches", False)
        size: int = batches.batch_size
        return size * (1 if is_split else getattr(batches, "num_processes", 1))
