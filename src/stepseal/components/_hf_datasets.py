"""Iterable datasets of Hugging Face, which keep a position that they were given.

Such a dataset begins every later iteration there, too, as long as its epoch is that of the state:
each epoch after a resume would lack what comes before. With another epoch it passes the state over.
So a restore sets the epoch, and the position is taken away once it was used. Nothing is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["forget_position", "iterable_of", "set_saved_epoch"]


def iterable_of(loader: object) -> Any | None:  # noqa: ANN401 - a class that is not imported here
    """Return the iterable dataset of Hugging Face that a loader is, or reads; None without one."""
    for one in (loader, getattr(loader, "dataset", None)):
        for cls in type(one).__mro__:
            if cls.__name__ == "IterableDataset" and cls.__module__.partition(".")[0] == "datasets":
                return one
    return None


def set_saved_epoch(dataset: Any, state: object) -> None:  # noqa: ANN401 - see above
    """Set the epoch of a saved position, which is passed over in any other epoch.

    Args:
        dataset: what `iterable_of` found.
        state: its saved state, or that of a loader of torchdata that reads it.
    """
    epoch = next(_epochs(state), None)
    if epoch is not None:
        dataset.set_epoch(epoch)


def forget_position(dataset: Any) -> None:  # noqa: ANN401 - see above
    """Let a dataset begin its next iteration with the first sample."""
    dataset.load_state_dict({})


def _epochs(state: object) -> Iterator[int]:
    """Yield the epoch of each position in a state."""
    if not isinstance(state, Mapping):
        return
    epoch = state.get("epoch")
    if "examples_iterable" in state and type(epoch) is int:
        yield epoch
    for value in state.values():
        yield from _epochs(value)
