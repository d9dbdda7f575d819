"""Whose state is a tree: `state_dict` objects, LR schedulers, (get, set) pairs, plain values."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from stepseal.components._codecs_words import qualified
from stepseal.components._in_place import InPlace
from stepseal.components._trees import TreeComponent
from stepseal.components._types import AnySharing, Sharing
from stepseal.errors import InvalidInput
from stepseal.layout import BytesSource

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from stepseal.components._types import HasStateDict

__all__ = [
    "LRSchedulerComponent",
    "PairComponent",
    "PairState",
    "StatefulComponent",
    "ValueComponent",
]


class StatefulComponent(TreeComponent):
    """An object with `state_dict` and `load_state_dict`; it loads a new value, on the CPU."""

    def __init__(self, name: str, obj: HasStateDict, declared: AnySharing | None = None) -> None:
        super().__init__(name, declared)
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(obj, method, None)):
                raise InvalidInput(
                    f"component {name!r}: expected an object with state_dict and "
                    "load_state_dict, found "
                    f"{qualified(type(obj))} without {method}. Add a (get, set) pair instead.",
                    component=name,
                    found=qualified(type(obj)),
                )
        self._obj = obj

    def is_of(self, obj: object) -> bool:
        """Return whether it stands for this very object."""
        return self._obj is obj

    def may_start_iteration(self, *, under_way: bool) -> bool:
        """Return whether `state_dict()` may start an iteration, which draws from random streams.

        The loaders of torchdata make their iterator for it where there is none yet.

        Args:
            under_way: whether training began; before, this is true of whatever can be iterated.
        """
        if not under_way:
            return hasattr(self._obj, "__iter__")
        return any(getattr(self._obj, name, self) is None for name in ("_iterator", "_it"))

    def read_state(self) -> object:
        """Return `state_dict()`."""
        return self._obj.state_dict()

    def write_state(self, value: object) -> None:
        """Call `load_state_dict`."""
        self._obj.load_state_dict(value)


class LRSchedulerComponent(StatefulComponent):
    """An LR scheduler of torch; REPLICATED unless declared, with copies for stock readers."""

    default_sharing: ClassVar[Sharing | None] = Sharing.REPLICATED

    def __init__(
        self, name: str, scheduler: LRScheduler, declared: AnySharing | None = None
    ) -> None:
        super().__init__(name, scheduler, declared)

    def state_problems(self, value: object) -> list[str]:
        """Compare public settings: `load_state_dict` would silently take those of another class."""
        return _scheduler_problems(value, self._obj.state_dict(), "")

    def bytes_copies(self, value: object) -> tuple[BytesSource, ...]:
        """Return one `torch.save` record per distinct top-level value."""
        import torch

        if not isinstance(value, Mapping):
            return ()
        entries: dict[bytes, list[tuple[str, str]]] = {}
        for key, item in value.items():
            if isinstance(key, str):
                record = io.BytesIO()
                torch.save(item, record)
                entries.setdefault(record.getvalue(), []).append((self.name, key))
        return tuple(BytesSource(tuple(names), data) for data, names in entries.items())


def _scheduler_problems(saved: object, live: object, path: str) -> list[str]:
    if not isinstance(saved, Mapping) or not isinstance(live, Mapping):
        return [
            f"{path or 'top level'}: expected the state of an LR scheduler, found "
            f"{qualified(type(saved))}"
        ]
    problems = []
    # Private keys differ between versions of torch and are not compared.
    gone, extra = _public(live) - _public(saved), _public(saved) - _public(live)
    if gone or extra:
        problems.append(
            f"{path or 'top level'}: another kind of LR scheduler was saved: missing "
            f"{sorted(gone)}, extra {sorted(extra)}"
        )
    for key in ("base_lrs", "_schedulers"):
        old, new = _length(saved, key), _length(live, key)
        if old != new:
            problems.append(f"{path}[{key!r}]: expected {new} entries, found {old}")
    nested = (saved.get("_schedulers") or [], live.get("_schedulers") or [])
    for index, (old_state, new_state) in enumerate(zip(*nested, strict=False)):
        problems += _scheduler_problems(old_state, new_state, f'{path}["_schedulers"][{index}]')
    return problems


def _public(state: Mapping[Any, object]) -> set[str]:
    return {key for key in state if isinstance(key, str) and not key.startswith("_")}


def _length(state: Mapping[Any, object], key: str) -> int | None:
    value = state.get(key)
    return len(value) if isinstance(value, (list, tuple)) else None


class PairComponent(TreeComponent):
    """A state behind two functions: `get()` returns it, `set(value)` takes over a new one."""

    def __init__(
        self,
        name: str,
        pair: tuple[Callable[[], object], Callable[[Any], object]],
        declared: AnySharing | None = None,
    ) -> None:
        super().__init__(name, declared)
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(callable, pair)):
            raise InvalidInput(
                f"component {name!r}: expected a pair (get, set) of callables, found {pair!r}.",
                component=name,
            )
        self._get, self._set = pair

    def read_state(self) -> object:
        """Return `get()`."""
        return self._get()

    def write_state(self, value: object) -> None:
        """Call `set(value)`."""
        self._set(value)


class PairState:
    """A (get, set) pair as an object with a state dict."""

    def __init__(self, pair: tuple[Callable[[], Any], Callable[[Any], object]]) -> None:
        self._get, self._set = pair

    def state_dict(self) -> Any:  # noqa: ANN401 - the user's
        """Return `get()`."""
        return self._get()

    def load_state_dict(self, state_dict: Any, /) -> None:  # noqa: ANN401 - the user's
        """Call `set(state_dict)`."""
        self._set(state_dict)


class ValueComponent(TreeComponent):
    """A plain dict, list or deque, restored in place; see `InPlace`.

    Tensors come back on the device of the live tensor at the same path, and on the CPU where there
    is none.
    """

    def __init__(self, name: str, value: object, declared: AnySharing | None = None) -> None:
        super().__init__(name, declared)
        if not isinstance(value, (dict, list, deque)):
            raise InvalidInput(
                f"component {name!r}: expected a dict, list or deque that can be restored in "
                f"place, found {qualified(type(value))}. Add a (get, set) pair: "
                f"add({name!r}, (lambda: obj.x, lambda value: setattr(obj, 'x', value))).",
                component=name,
                found=qualified(type(value)),
            )
        self._live: object = value

    def read_state(self) -> object:
        """Return the live object itself."""
        return self._live

    def state_problems(self, value: object) -> list[str]:
        """Compare the type of the top level."""
        if type(value) is type(self._live):
            return []
        return [
            f"top level: expected {qualified(type(self._live))}, found {qualified(type(value))}"
        ]

    def placement(self, value: object) -> tuple[list[str], Callable[[], None]]:
        """Return what fills the live object, and where live objects cannot hold what was saved."""
        way = InPlace(self._live, value)
        if not way.keeps:
            way.problems.append("top level: expected a deque with the maxlen that was saved")
        return way.problems, way.apply
