"""Data loaders: iterables that know where they stand, and what a restore needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from stepseal.components._advice import leave_out
from stepseal.components._rng import RNGComponent
from stepseal.components._stateful import StatefulComponent
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.components._types import Component

__all__ = ["LoaderComponent", "check_generators", "waits_to_resume"]


class LoaderComponent(StatefulComponent):
    """A data loader: an iterable with `state_dict` and `load_state_dict`."""

    @property
    def loader(self) -> Any:  # noqa: ANN401 - whatever was added
        """The live object."""
        return self._obj

    def state_problems(self, value: object) -> list[str]:
        """Compare the number of workers: torchdata has other states for each, and asserts late."""
        saved, live = _saved_workers(value), getattr(self._obj, "num_workers", None)
        if saved is None or live is None or saved == live:
            return []
        return [
            f"num_workers: expected {live}, as this loader has, found {saved}: make the loader "
            f"with num_workers={saved}, or {leave_out(self.name)} starts its epoch anew"
        ]


def waits_to_resume(loader: object) -> bool:
    """Tell whether torchdata's loader took a state that its next iterator is going to use up."""
    return getattr(loader, "next_iter_state", None) is not None


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
        if not isinstance(one.loader, torch.utils.data.DataLoader):
            continue
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
