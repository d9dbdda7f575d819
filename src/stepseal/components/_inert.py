"""Reads pickled bytes as inert nodes: nothing is imported, called, hashed or compared.

A small machine for the opcodes that DCP and `torch.save` write. A class stays a `Name`, a call
stays a `Call`; what they may mean is decided by whoever reads the nodes. Names must be on the
caller's list, other opcodes are refused, and time and memory are in proportion to the input.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepseal.errors import CheckpointError, Corrupt, UnsupportedState

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Call", "Name", "Pairs", "Reference", "read_nodes"]

_SPARE_NODES, _SPARE_PLACES = 100_000, 1_000_000
_MAX_LONG_BYTES = 255
_MAX_PROTOCOL = 5


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the bytes name; only a name."""

    module: str
    name: str


@dataclass(eq=False, slots=True)
class Pairs:
    """A dict as it was written: keys are not hashed here, and may repeat."""

    items: list[tuple[object, object]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Call:
    """An object that the bytes want made by calling a name; it never is."""

    callee: Name
    args: tuple[object, ...]
    state: object = None
    pairs: Pairs = field(default_factory=Pairs)
    """Items that would be set on the new object."""


@dataclass(eq=False, slots=True)
class Reference:
    """A persistent id: in a `torch.save` record, a storage."""

    target: object


def read_nodes(data: bytes, allowed: Collection[tuple[str, str]], what: str) -> object:
    """Return the root node of pickled bytes.

    Args:
        data: the bytes; the caller bounds their number.
        allowed: every (module, name) that may occur.
        what: the thing that is read, for messages.

    Raises:
        UnsupportedState: a name that is not allowed.
        Corrupt: the bytes are no whole pickle, or none of these writers, or make more objects than
            fits their number.
    """
    machine = _Machine(data, allowed, what)
    try:
        return machine.run()
    except CheckpointError:
        raise
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise machine.corrupt(f"expected a whole pickle, found {type(error).__name__}") from error


class _Machine:
    def __init__(self, data: bytes, allowed: Collection[tuple[str, str]], what: str) -> None:
        self._data = data
        self._allowed = allowed
        self._what = what
        self._at = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, object] = {}
        # real indexes make a node per 5 bytes and remember one per 8
        self._nodes_left = _SPARE_NODES + len(data) // 3
        self._memos_left = _SPARE_NODES + len(data) // 4
        # they use at most 0.4 places per byte, on the stack and later in containers; a place
        # costs 8 bytes whatever is in it, and two while it moves from one to the other
        self._places_left = _SPARE_PLACES + len(data) // 2
        self._max_stack = _SPARE_PLACES + len(data) // 8

    def run(self) -> object:
        data = self._data
        while True:
            opcode = data[self._at]
            self._at += 1
            if opcode == _STOP:
                break
            action = _ACTIONS.get(opcode)
            if action is None:
                self._at -= 1
                raise self.corrupt(
                    f"expected an opcode that DCP and torch.save write, found {opcode:#04x}"
                )
            action(self)
        (root,) = self._stack
        if self._marked:
            raise ValueError("a mark is left")
        return root

    def corrupt(self, problem: str) -> Corrupt:
        text = f"{self._what}: byte {self._at}: {problem}. It is not loaded."
        return Corrupt(text, path=self._what, problems=(problem,))

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        start, self._at = self._at, self._at + size
        if size < 0 or self._at > len(self._data):
            raise IndexError("the bytes end")
        return self._data[start : self._at]

    def number(self, layout: str) -> Any:  # noqa: ANN401 - as the layout says
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self._data.index(b"\n", self._at)
        return self.take(end + 1 - self._at)[:-1].decode("ascii")

    def push(self, value: object) -> None:
        """Push what is there already, or costs nothing but its place."""
        self._places_left -= 1
        if self._places_left < 0 or len(self._stack) > self._max_stack:
            raise self._too_many()
        self._stack.append(value)

    def make(self, node: object) -> None:
        """Push a node that costs memory."""
        self._count()
        self.push(node)

    def _count(self) -> None:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise self._too_many()

    def _too_many(self) -> Corrupt:
        return self.corrupt(f"more objects than {len(self._data)} bytes are good for")

    def mark(self) -> None:
        self._count()
        self._marked.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def pop(self) -> Any:  # noqa: ANN401 - any node
        return self._stack.pop()

    def remember(self, place: int) -> None:
        self._memos_left -= 1
        if self._memos_left < 0:
            raise self._too_many()
        self._memo[place] = self._stack[-1]

    def remember_next(self) -> None:
        self.remember(len(self._memo))

    def recall(self, place: int) -> None:
        self.push(self._memo[place])

    def tuple_of(self, size: int) -> None:
        items = [self._stack.pop() for _ in range(size)]
        self.make(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        pairs = target.pairs if type(target) is Call else target
        if type(pairs) is not Pairs or len(items) % 2:
            raise ValueError("no dict")
        pairs.items.extend(zip(items[::2], items[1::2], strict=True))
        self._nodes_left -= len(items) // 2

    def name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        if (module, name) not in self._allowed:
            shown = f"{module}.{name}"[:120]
            raise UnsupportedState(
                f"{self._what}: names {shown!r}, which is not among what stepseal takes from a "
                "foreign checkpoint. Nothing of that name was imported or called.",
                path=self._what,
                found=shown,
            )
        self.make(Name(module, name))

    def stack_name(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self.name(module, name)

    def call(self) -> None:
        args, callee = self._stack.pop(), self._stack.pop()
        if type(args) is not tuple or type(callee) is not Name:
            raise ValueError("a call of something that is no name")
        self.make(Call(callee, args))

    def build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is not Call or target.state is not None:
            raise ValueError("state for something that has none")
        target.state = state

    def long(self) -> None:
        size = self.number("<B")
        self.make(int.from_bytes(self.take(min(size, _MAX_LONG_BYTES)), "little", signed=True))

    def protocol(self) -> None:
        if self.number("<B") > _MAX_PROTOCOL:
            raise ValueError("a newer protocol")

    def frame(self) -> None:
        self.take(8)  # how far to read ahead: only a hint

    def refer(self) -> None:
        self.make(Reference(self._stack.pop()))

    def pop_pair(self) -> list[Any]:
        value, key = self._stack.pop(), self._stack.pop()
        return [key, value]


_Action = Callable[[_Machine], None]
_STOP = ord(".")


def _text(layout: str) -> _Action:
    return lambda m: m.make(m.take(m.number(layout)).decode("utf-8", "surrogatepass"))


def _bytes(layout: str) -> _Action:
    return lambda m: m.make(m.take(m.number(layout)))


_ACTIONS: dict[int, _Action] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    0x8A: _Machine.long,
    ord("G"): lambda m: m.push(m.number(">d")),
    ord("X"): _text("<I"),
    0x8C: _text("<B"),
    0x8D: _text("<Q"),
    ord("B"): _bytes("<I"),
    ord("C"): _bytes("<B"),
    0x8E: _bytes("<Q"),
    ord("]"): lambda m: m.make([]),
    ord("}"): lambda m: m.make(Pairs()),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): lambda m: m.make(tuple(m.since_mark())),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.since_mark()),
    ord("s"): lambda m: m.set_items(m.pop_pair()),
    ord("u"): lambda m: m.set_items(m.since_mark()),
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: _Machine.remember_next,
    ord("h"): lambda m: m.recall(m.number("<B")),
    ord("j"): lambda m: m.recall(m.number("<I")),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _Machine.stack_name,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.refer,
}
"""Opcode to what the machine does; all others are refused."""
