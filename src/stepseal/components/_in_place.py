"""Putting a restored value into a live one: where their structure matches, the objects stay.

Whoever else holds a dict, a list, a tensor or a generator of the live value (an optimizer, a
sampler, a closure) then sees what was restored.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

from stepseal.components._capture import tree_of
from stepseal.components._codecs_random import numpy_kind, set_numpy
from stepseal.components._codecs_registry import record_fields
from stepseal.components._codecs_words import format_path
from stepseal.components._torch_in_use import class_of, torch_in_use
from stepseal.layout import encode_document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from stepseal.components._codecs_words import Step
    from stepseal.components._tensor_places import TensorPlaces

__all__ = ["InPlace"]

_DICTS = (dict, OrderedDict, defaultdict, Counter)


class InPlace:
    """How a live value takes a saved one; making it changes nothing.

    Equal types of container keep the live object, at any depth; so do tensors and arrays of equal
    dtype, shape and device, and generators of one kind. Anything else is replaced in its parent.

    Args:
        live: dict, list or deque.
        saved: decoded; belongs to this object from now on.
    """

    def __init__(self, live: object, saved: object) -> None:
        self.problems: list[str] = []
        """Live objects that are reached twice, where what was saved for them differs."""
        self._fills: list[Callable[[], None]] = []
        self._tensor, self._generator = class_of("torch", "Tensor"), class_of("torch", "Generator")
        self._tensors = _tensor_places()
        self._seen: dict[object, tuple[object, object, object, tuple[Step, ...]]] = {}
        self._steps: list[Step] = []
        self.keeps = self._place(saved, live) is live
        """Whether the live object itself stays."""
        if self._tensors is not None:
            for first, second in self._tensors.overlaps():
                self._add_problem(first, second)

    def apply(self) -> None:
        """Fill the live objects. Changes live state."""
        if torch_in_use():
            from stepseal.components._tensor_places import run_fills

            run_fills(self._fills)
        else:
            for fill in self._fills:
                fill()

    def _child(self, saved: object, live: object, step: Step) -> object:
        self._steps.append(step)
        placed = self._place(saved, live)
        self._steps.pop()
        return placed

    def _place(self, saved: Any, live: Any) -> object:  # noqa: ANN401 - narrowed by type
        """Return what stands where `live` stood: `live` itself, or `saved`."""
        if type(saved) is not type(live):
            return self._moved(saved, live) if isinstance(saved, self._tensor) else saved
        if isinstance(saved, tuple):
            return self._place_tuple(saved, live)
        put = self._way(live)
        if put is None:
            return saved
        key = self._identity(live)
        if key in self._seen:
            _, first, placed, steps = self._seen[key]
            if not _equal(first, saved):
                self._add_problem(steps, self._steps)
            return placed
        here = tuple(self._steps)
        self._seen[key] = (live, saved, live, here)  # holds `live`, so that no other gets its id
        placed = put(saved, live)
        self._seen[key] = (live, saved, placed, here)
        return placed

    def _way(self, live: object) -> Callable[[Any, Any], object] | None:
        """Return how an object of this type takes a value of its type; None for immutable ones."""
        kind = type(live)
        if isinstance(live, self._tensor):
            return self._place_tensor
        if kind in _DICTS:
            return self._place_dict
        if kind in (list, deque):
            return self._place_list
        if kind in (set, bytearray):
            return self._place_plain
        if kind in self._generator:
            return self._place_torch_generator
        if kind is random.Random or numpy_kind(live) is not None:
            return self._place_generator
        if hasattr(live, "__array_interface__") and hasattr(live, "flags"):
            return self._place_array
        known = record_fields(kind)
        return self._place_record if known is not None else None

    def _place_tuple(self, saved: tuple[Any, ...], live: tuple[Any, ...]) -> object:
        if len(saved) != len(live):
            return saved
        pairs = enumerate(zip(saved, live, strict=True))
        placed = [self._child(new, old, ("[", index)) for index, (new, old) in pairs]
        if all(map(_is, placed, live)):
            return live
        make = getattr(type(live), "_make", tuple)
        return make(placed) if type(live) not in class_of("torch", "Size") else saved

    def _place_dict(self, saved: dict[Any, Any], live: dict[Any, Any]) -> object:
        items = {
            key: self._child(value, live[key], ("[", key)) if key in live else value
            for key, value in saved.items()
        }

        def fill() -> None:
            live.clear()
            live.update(items)
            if isinstance(live, defaultdict) and isinstance(saved, defaultdict):
                live.default_factory = saved.default_factory

        self._fills.append(fill)
        return live

    def _place_list(self, saved: Any, live: Any) -> object:  # noqa: ANN401 - list or deque
        if isinstance(live, deque) and live.maxlen != saved.maxlen:
            return saved
        before = list(live)
        items = [
            self._child(value, before[index], ("[", index)) if index < len(before) else value
            for index, value in enumerate(saved)
        ]

        def fill() -> None:
            live.clear()
            live.extend(items)

        self._fills.append(fill)
        return live

    def _place_plain(self, saved: Any, live: Any) -> object:  # noqa: ANN401 - set or bytearray
        if isinstance(live, bytearray):
            if len(live) != len(saved):
                return saved
            self._fills.append(lambda: live.__setitem__(slice(None), saved))
            return live

        def fill() -> None:
            live.clear()
            live.update(saved)

        self._fills.append(fill)
        return live

    def _place_record(self, saved: object, live: object) -> object:
        names = [field.name for field in dataclasses.fields(saved)]  # type: ignore[arg-type]
        if not all(hasattr(live, name) for name in names):
            return saved
        placed = {
            name: self._child(getattr(saved, name), getattr(live, name), (".", name))
            for name in names
        }
        frozen = type(live).__dataclass_params__.frozen  # type: ignore[attr-defined]
        if not frozen:
            self._fills.append(lambda: _set_fields(live, placed))
            return live
        if all(placed[name] is getattr(live, name) for name in names):
            return live
        _set_fields(saved, placed)
        return saved

    def _place_generator(self, saved: Any, live: Any) -> object:  # noqa: ANN401 - several classes
        if isinstance(live, random.Random):
            self._fills.append(lambda: live.setstate(saved.getstate()))
        elif numpy_kind(live) != numpy_kind(saved):
            return saved
        else:
            self._fills.append(lambda: set_numpy(live, saved))
        return live

    def _place_array(self, saved: Any, live: Any) -> object:  # noqa: ANN401 - numpy is optional
        fits = live.dtype == saved.dtype and live.shape == saved.shape and live.flags.writeable
        if not fits or live.dtype.names is not None:
            return saved
        self._fills.append(lambda: live.__setitem__(..., saved))
        return live

    def _place_torch_generator(self, saved: torch.Generator, live: torch.Generator) -> object:
        from stepseal.components._tensor_places import place_generator

        return self._filled(*place_generator(saved, live))

    def _place_tensor(self, saved: torch.Tensor, live: torch.Tensor) -> object:
        assert self._tensors is not None, "torch is loaded"
        return self._filled(*self._tensors.place(saved, live, self._steps))

    def _filled(self, placed: object, fill: Callable[[], None] | None) -> object:
        if fill is not None:
            self._fills.append(fill)
        return placed

    def _moved(self, saved: torch.Tensor, live: object) -> torch.Tensor:
        from stepseal.components._tensor_places import to_device_of

        return to_device_of(live, saved)

    def _identity(self, live: Any) -> object:  # noqa: ANN401 - any object
        """Return what two names of one memory have in common."""
        memory = None
        if isinstance(live, self._tensor):
            from stepseal.components._tensor_places import same_memory

            memory = same_memory(live)
        return id(live) if memory is None else memory

    def _add_problem(self, first: Sequence[Step], second: Sequence[Step]) -> None:
        self.problems.append(
            f"{format_path(second)}: is the live object of {format_path(first)}, or shares memory "
            "with it, but different values were saved for the two: give each its own"
        )


def _tensor_places() -> TensorPlaces | None:
    """Return where tensors are collected; None where torch is not loaded, and so no tensor is."""
    if not torch_in_use():
        return None
    from stepseal.components._tensor_places import TensorPlaces

    return TensorPlaces()


def _set_fields(target: object, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        object.__setattr__(target, name, value)  # also where the dataclass is frozen


def _is(left: object, right: object) -> bool:
    return left is right


def _equal(left: object, right: object) -> bool:
    """Return whether two saved values are equal bit for bit, types and orders included."""
    one, other = tree_of(left, ""), tree_of(right, "")
    return encode_document(one.document) == encode_document(other.document) and (
        dict(one.arrays) == dict(other.arrays)
    )
