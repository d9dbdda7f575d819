"""Data loaders: iterables that know where they stand, and what a restore needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stepseal.components._advice import leave_out
from stepseal.components._codecs_words import qualified
from stepseal.components._hf_datasets import forget_position, iterable_of, set_saved_epoch
from stepseal.components._prepared import inner_loader
from stepseal.components._rng import RNGComponent
from stepseal.components._stateful import StatefulComponent
from stepseal.components._torch_in_use import class_of
from stepseal.components._types import HasStateDict
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.components._types import AnySharing, Component

__all__ = [
    "LoaderComponent",
    "begin_to_resume",
    "check_generators",
    "draws",
    "has_no_state",
    "num_samples_of",
    "waits_to_resume",
]

_DATASET = "stepseal.num_samples"
"""Key beside those of a loader's state: number of samples in its dataset."""


class LoaderComponent(StatefulComponent):
    """A data loader: an iterable with `state_dict` and `load_state_dict`.

    Raises:
        InvalidInput: a loader of torchdata whose sampler draws and has no state: in mid-epoch it
            would go on in another order.
    """

    def __init__(self, name: str, loader: HasStateDict, declared: AnySharing | None = None) -> None:
        super().__init__(name, loader, declared)
        self._has_position = self._position_was_used = False
        self.check()

    def check(self) -> None:
        """Refuse a sampler that draws and has no state; called once."""
        name, loader = self.name, self.loader
        if not hasattr(loader, "next_iter_state"):
            return
        samplers = (getattr(loader, "sampler", None), _sampler_of_batches(loader))
        drawing = next((one for one in samplers if draws(one)), None)
        if drawing is not None and not isinstance(drawing, HasStateDict):
            raise InvalidInput(
                f"component {name!r}: expected a sampler that knows where it stands, found "
                f"{qualified(type(drawing))}, which draws a new order after a restore. Use "
                "shuffle=True, a sampler of torchdata, or one with state_dict and load_state_dict.",
                component=name,
                found=qualified(type(drawing)),
            )

    @property
    def loader(self) -> Any:  # noqa: ANN401 - whatever was added
        """The live object."""
        return self._obj

    def read_state(self) -> object:
        """Return `state_dict()`, with the number of samples in the dataset where that is known."""
        state, num = super().read_state(), num_samples_of(self._obj)
        return state if num is None or type(state) is not dict else {**state, _DATASET: num}

    def write_state(self, value: object) -> None:
        """Call `load_state_dict` with what `state_dict()` returned."""
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if key != _DATASET}
        super().write_state(value)
        dataset = iterable_of(self._obj)
        if dataset is not None:
            set_saved_epoch(dataset, value)
            self._has_position, self._position_was_used = True, False

    def begin_iteration(self) -> None:
        """Take a position away that an iteration has begun at; called before each iteration."""
        dataset = iterable_of(self._obj) if self._has_position else None
        if dataset is not None and self._position_was_used:
            forget_position(dataset)
            self._has_position = False
        self._position_was_used = True

    def state_problems(self, value: object) -> list[str]:
        """Compare the dataset, and the number of workers.

        Torchdata has other states for each number of workers, and asserts late. It goes on in
        another dataset as if nothing had happened.
        """
        problems = []
        saved, live = _saved_workers(value), getattr(self._obj, "num_workers", None)
        if saved is not None and live is not None and saved != live:
            problems.append(
                f"num_workers: expected {live}, as this loader has, found {saved}: make the loader "
                f"with num_workers={saved}, or {leave_out(self.name)} starts its epoch anew"
            )
        num_saved = value.get(_DATASET) if isinstance(value, Mapping) else None
        num_live = num_samples_of(self._obj)
        if num_saved is not None and num_live is not None and num_saved != num_live:
            problems.append(
                f"dataset: expected (live) {num_live} samples, found {num_saved}: another dataset. "
                f"restore(policies={{{self.name!r}: 'fresh'}}), at this start only, begins with "
                "its first sample"
            )
        return problems


def draws(sampler: object) -> bool:
    """Tell whether a sampler of torch draws an order for each epoch and remembers nothing of it."""
    kinds = ("RandomSampler", "SubsetRandomSampler", "WeightedRandomSampler")
    return any(isinstance(sampler, class_of("torch.utils.data", kind)) for kind in kinds)


def num_samples_of(loader: object) -> int | None:
    """Return the number of samples in the dataset of a loader; None where that is not known."""
    try:
        return len(loader.dataset)  # type: ignore[attr-defined]
    except (AttributeError, TypeError, NotImplementedError):  # no dataset, or one without a length
        return None


def waits_to_resume(loader: object) -> bool:
    """Tell whether torchdata's loader took a state that its next iterator is going to use up."""
    return getattr(loader, "next_iter_state", None) is not None


def begin_to_resume(loader: object) -> None:
    """Let torchdata's loader make the iterator that takes up its state, and keep it."""
    inner_loader(loader).state_dict()


def has_no_state(loader: object) -> bool:
    """Tell whether a loader is one of torch's, which do not know where they stand."""
    return _is_torch_loader(loader) and not isinstance(inner_loader(loader), HasStateDict)


def _is_torch_loader(loader: object) -> bool:
    """Tell whether a loader is one of torch's, whoever derived from it."""
    return isinstance(loader, class_of("torch.utils.data", "DataLoader"))


def check_generators(components: Iterable[Component], *, complete: bool) -> None:
    """Refuse a torch `DataLoader` that draws from a generator which nobody saves.

    Args:
        components: those of one participant.
        complete: no more will be added; until then an RNG component may still come.

    Raises:
        InvalidInput: the generator of a loader is not in `RNG(torch=[...])`.
    """
    known = list(components)
    streams = [one for one in known if isinstance(one, RNGComponent)]
    if not streams and not complete:
        return
    for one in known:
        if not isinstance(one, LoaderComponent):
            continue
        if not _is_torch_loader(one.loader):
            continue
        import torch

        generator = one.loader.generator
        if generator is None or generator is torch.default_generator:
            continue
        if not any(rng.holds(generator) for rng in streams):
            raise InvalidInput(
                f"component {one.name!r}: the loader draws from a generator of its own that no "
                "component saves: its order could not be restored. Write "
                "add('rng', RNG(torch=[loader.generator])), or make the loader without "
                "`generator`.",
                component=one.name,
            )


def _sampler_of_batches(loader: object) -> object:
    return getattr(getattr(loader, "batch_sampler", None), "sampler", None)


def _saved_workers(state: object) -> int | None:
    """Return the number of workers in a state of torchdata's loader, None for any other state."""
    if not isinstance(state, Mapping):
        return None
    if "_sampler_iter_yielded" in state:
        return 0
    found = state.get("_snapshot")
    for key in ("_main_snapshot", "_num_workers"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) else None
