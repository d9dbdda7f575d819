"""The walk that codecs take part in: where it is, how deep, and which leaves it met.

An `Encoder` turns a live value into a JSON node and array leaves, a `Decoder` turns them back. Both
know no type: the tables of codecs are handed to them. Neither imports, unpickles or calls anything
that a document names.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from stepseal.components._advice import advice_for
from stepseal.components._codecs_words import (
    MAX_DEPTH,
    MAX_EQUAL_HASHES,
    MAX_PLAIN_INT,
    describe,
    format_path,
    max_made,
    most_equal_hashes,
    qualified,
)
from stepseal.errors import Corrupt, StateMismatch, UnsupportedState
from stepseal.layout import ITEMSIZE

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Collection, Hashable, Mapping

    import numpy as np
    import torch

    from stepseal.components._codecs_words import Step
    from stepseal.components._stacks import Stack
    from stepseal.layout import TreeContents

    Leaf: TypeAlias = torch.Tensor | np.ndarray[Any, Any] | array[Any] | bytes | bytearray | Stack
    """What is stored as an array instead of as JSON."""

__all__ = ["Codec", "Decoder", "Encoder"]

_MAX_DIMS = 64
_MAX_ELEMENTS = 2**59
_MAX_LEAF_NAME = 160
_E = TypeVar("_E", Corrupt, StateMismatch)
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Codec:
    """How the values of some types become JSON and come back."""

    tag: str | None
    """Key of the tagged object in the document; None for plain JSON values."""
    types: tuple[type, ...]
    """The exact types; a subclass is another type, because its extra state would be lost."""
    encode: Callable[[Encoder, Any], object]
    """Value to whole node."""
    decode: Callable[[Decoder, Any], object] | None = None
    """What stands under the tag to value; None for plain JSON values."""
    nested: bool = False
    """Has children, so that it can be part of a cycle."""
    key: bool = False
    """May be a dict key or a member of a set: hashable by value."""


class Encoder:
    """One walk down a live value.

    Args:
        find: exact type to its codec.
        component: name for error messages.
        by_columns: whether long sequences of items that are alike are encoded as a whole.
    """

    def __init__(
        self, find: Callable[[type], Codec | None], component: str, *, by_columns: bool = True
    ) -> None:
        self.component = component
        self.arrays: dict[str, Leaf] = {}
        self._find = find
        self._steps: list[Step] = []
        self._depth = 0
        self._open: set[int] = set()
        self.in_key = False
        """Whether the walk is inside a dict key or a member of a set, where no leaf may stand."""
        self.by_columns = by_columns
        """Whether long sequences of items that are alike are encoded as a whole."""
        self.num_made = 0
        """Number of objects that a decoder will make from fewer nodes; see `max_made`."""

    def encode(self, value: object) -> object:
        """Return the node of `value` at the present place."""
        codec = self._find(type(value))
        if codec is None:
            raise self.refuse(
                "a type that a codec knows",
                qualified(type(value)),
                advice_for(value, self.component, self._steps),
            )
        if self.in_key and not codec.key:
            raise self.refuse(
                "dict keys and set members that compare by value",
                qualified(type(value)),
                "Use a plain key",
            )
        if not codec.nested:
            return codec.encode(self, value)
        if id(value) in self._open:
            raise self.refuse(
                "a tree", "a cycle: this object contains itself", "Break the cycle in state_dict()"
            )
        self._open.add(id(value))
        node = codec.encode(self, value)
        self._open.discard(id(value))
        return node

    def child(self, value: object, step: Step, levels: int = 1) -> object:
        """Return the node of `value`, which stands `levels` JSON levels below the present node."""
        self._steps.append(step)
        self._depth += levels
        if self._depth > MAX_DEPTH:
            raise self.refuse(
                f"at most {MAX_DEPTH} levels of nesting in the document",
                "more",
                "Flatten the state",
            )
        node = self.encode(value)
        self._depth -= levels
        self._steps.pop()
        return node

    def key(self, value: object, step: Step, levels: int = 1) -> object:
        """Return the node of a dict key or a member of a set."""
        before, self.in_key = self.in_key, True
        node = self.child(value, step, levels)
        self.in_key = before
        return node

    def has_room(self, levels: int) -> bool:
        """Return whether values may stand `levels` JSON levels below the present node."""
        return self._depth + levels <= MAX_DEPTH

    def attempt(self, encode: Callable[[], object]) -> object | None:
        """Return what `encode` returns; None, and no trace of it, where it refuses something.

        What is refused once is refused again item by item, with its exact path; so nothing more is
        attempted in this walk.
        """
        steps, depth, num_open = len(self._steps), self._depth, set(self._open)
        num_arrays, num_made = len(self.arrays), self.num_made
        try:
            return encode()
        except UnsupportedState:
            del self._steps[steps:]
            self._depth, self._open, self.num_made = depth, num_open, num_made
            for name in list(self.arrays)[num_arrays:]:
                del self.arrays[name]
            self.by_columns = False
            return None

    def check_hashes(self, keys: Collection[Hashable]) -> None:
        """Refuse what no decoder would take back; see `MAX_EQUAL_HASHES`."""
        found = most_equal_hashes(keys)
        if found > MAX_EQUAL_HASHES:
            raise self.refuse(
                f"at most {MAX_EQUAL_HASHES} keys or members of one hash",
                f"{found}",
                "Use keys whose hashes differ, such as their repr",
            )

    def add_leaf(self, leaf: Leaf) -> str:
        """Store an array leaf under a unique name made from the path, and return the name."""
        words = [str(key) if key is not None else "item" for _, key in self._steps]
        base = _UNNAMEABLE.sub("_", ".".join(words))[:_MAX_LEAF_NAME].strip(".")
        if not base or base.startswith("__"):
            base = f"leaf{base}"
        name, number = base, 1
        while name in self.arrays:
            number += 1
            name = f"{base}~{number}"
        self.arrays[name] = leaf
        return name

    def refuse(self, expected: str, found: str, advice: str) -> UnsupportedState:
        """Return the error for the value at the present place."""
        path = format_path(self._steps)
        return UnsupportedState(
            f"cannot save component {self.component!r}: {path or 'top level'}: expected "
            f"{expected}, found {found}. "
            f"{advice}.",
            component=self.component,
            path=path,
            expected=expected,
            found=found,
        )


class Decoder:
    """One walk down a document that may be hostile.

    Args:
        tags: tag to codec.
        contents: the tree; its arrays are each taken exactly once.
        component: name for error messages.
    """

    def __init__(
        self, tags: Mapping[str, Codec], contents: TreeContents, component: str | None
    ) -> None:
        self.component = component
        self._tags = tags
        self._arrays = contents.arrays
        self._taken: set[str] = set()
        self._may_make = max_made(sum(len(data) for _, _, data in contents.arrays.values()))
        self._steps: list[Step] = []

    def decode(self, node: object) -> object:
        """Return the value of `node` at the present place."""
        if node is None or type(node) in (bool, str):
            return node
        if type(node) is list:
            return [self.child(item, ("[", index)) for index, item in enumerate(node)]
        if type(node) is dict:
            return self._decode_object(node)
        if type(node) is int and abs(node) <= MAX_PLAIN_INT:
            return node
        if type(node) is float and math.isfinite(node):
            return node
        raise self.corrupt("a JSON value of finite size", node)

    def _decode_object(self, node: dict[Any, Any]) -> object:
        tag = next(iter(node)) if len(node) == 1 else None
        if not isinstance(tag, str) or not tag.startswith("$") or tag == "$keys":
            return dict(self.items(node))
        codec = self._tags.get(tag)
        if codec is None or codec.decode is None:
            raise self.corrupt("a tag that this release knows", tag)
        return codec.decode(self, node[tag])

    def child(self, node: object, step: Step) -> object:
        """Return the value of a node below the present one."""
        self._steps.append(step)
        if len(self._steps) > MAX_DEPTH:
            raise self.corrupt(f"at most {MAX_DEPTH} levels of nesting", "more")
        value = self.decode(node)
        self._steps.pop()
        return value

    def items(self, node: object) -> list[tuple[Any, Any]]:
        """Return the pairs of a dict node, in the order of the dict that was saved."""
        if type(node) is not dict:
            raise self.corrupt("a dict", node)
        if set(node) == {"$dict"}:
            return self._pairs(node["$dict"])
        keys = [key for key in node if key != "$keys"]
        if any(type(key) is not str or key.startswith("$") for key in keys):
            raise self.corrupt("plain keys, or one tag", sorted(map(str, keys)))
        order = node.get("$keys", sorted(keys))
        if type(order) is not list or any(type(key) is not str for key in order):
            raise self.corrupt("a list of keys under $keys", order)
        if sorted(order) != sorted(keys):
            raise self.corrupt("each key exactly once under $keys", order)
        return [(key, self.child(node[key], ("[", key))) for key in order]

    def _pairs(self, pairs: object) -> list[tuple[Any, Any]]:
        if type(pairs) is not list or any(
            type(pair) is not list or len(pair) != 2 for pair in pairs
        ):
            raise self.corrupt("a list of pairs under $dict", pairs)
        keys = self.hashables([pair[0] for pair in pairs])
        return [
            (key, self.child(pair[1], ("[", key))) for key, pair in zip(keys, pairs, strict=True)
        ]

    def hashables(self, nodes: object) -> list[Any]:
        """Return different dict keys or members of a set."""
        if type(nodes) is not list:
            raise self.corrupt("a list of keys or members", nodes)
        values = [self.child(node, ("*", None)) for node in nodes]
        try:
            if most_equal_hashes(values) > MAX_EQUAL_HASHES:
                raise self.corrupt(
                    f"at most {MAX_EQUAL_HASHES} keys or members of one hash", "more"
                )
            if len(set(values)) < len(values):
                raise self.corrupt("each key or member once", "one twice")
        except TypeError:
            raise self.corrupt("hashable keys or members", "another kind") from None
        return values

    def fields(
        self,
        payload: object,
        required: Mapping[str, type],
        optional: Mapping[str, type] | None = None,
    ) -> dict[str, Any]:
        """Return a tag's payload after checking its field names and JSON types."""
        known = {**required, **(optional or {})}
        if type(payload) is not dict or not set(required) <= set(payload) <= set(known):
            raise self.corrupt(f"an object with the fields {sorted(known)}", payload)
        for name, value in payload.items():
            if known[name] is not object and type(value) is not known[name]:
                raise self.corrupt(f"{name} of type {known[name].__name__}", value)
        return payload

    def take_leaf(self, name: object) -> tuple[str, tuple[int, ...], memoryview]:
        """Return (dtype, shape, bytes) of an array leaf, once."""
        if not isinstance(name, str) or name not in self._arrays:
            raise self.corrupt("the name of an array leaf", name)
        if name in self._taken:
            raise self.corrupt("each array leaf to be used once", name)
        self._taken.add(name)
        dtype, shape, data = self._arrays[name]
        sizes = self.sizes(list(shape))
        data = data.cast("B") if data.format != "B" or data.ndim != 1 else data
        if dtype not in ITEMSIZE or math.prod(sizes) * ITEMSIZE[dtype] != len(data):
            raise self.corrupt(
                f"{dtype} data of shape {sizes}", f"{len(data)} bytes in leaf {name!r}"
            )
        if dtype == "bool" and max(data, default=0) > 1:
            raise self.corrupt("bytes 0 and 1 in a leaf of bool", max(data))
        return dtype, sizes, data

    def count_made(self, number: int) -> None:
        """Refuse more objects than the leaves can pay for; called before they are made."""
        self._may_make -= number
        if self._may_make < 0:
            raise self.corrupt("as many objects as the leaves have room for", "more")

    def flat_leaf(self, name: object, dtype: str) -> memoryview:
        """Return the bytes of an array leaf that has one dim and this dtype."""
        found, shape, data = self.take_leaf(name)
        if found != dtype or len(shape) != 1:
            raise self.corrupt(f"a flat leaf of {dtype}", f"{found} of shape {shape}")
        return data

    def sizes(self, node: object) -> tuple[int, ...]:
        """Return a shape that fits 60 bits even where a dim of size 0 hides the others."""
        if type(node) is not list or any(type(size) is not int or size < 0 for size in node):
            raise self.corrupt("a list of sizes", node)
        if len(node) > _MAX_DIMS or math.prod(max(size, 1) for size in node) >= _MAX_ELEMENTS:
            raise self.corrupt(f"at most {_MAX_DIMS} dims and {_MAX_ELEMENTS} elements", node)
        return tuple(node)

    def check_all_taken(self) -> None:
        """Refuse a tree with array leaves that its document does not mention."""
        unused = sorted(set(self._arrays) - self._taken)
        if unused:
            raise self.corrupt("array leaves that the document mentions", unused)

    def corrupt(self, expected: str, found: object) -> Corrupt:
        """Return the error for a node that breaks the format."""
        return self._error(Corrupt, expected, found, "Restore another step")

    def mismatch(self, expected: str, found: object, advice: str) -> StateMismatch:
        """Return the error for a node that this program cannot take."""
        return self._error(StateMismatch, expected, found, advice)

    def _error(self, cls: type[_E], expected: str, found: object, advice: str) -> _E:
        path = format_path(self._steps)
        fact = f"{path or 'top level'}: expected {expected}, found {describe(found)}"
        where = "tree" if self.component is None else f"component {self.component!r}"
        return cls(
            f"cannot restore {where}: {fact}. {advice}.",
            component=self.component,
            path=path,
            expected=expected,
            found=found if isinstance(found, str) else describe(found),
            problems=(fact,),
        )
