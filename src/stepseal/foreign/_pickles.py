"""Parses pickles into inert nodes: nothing is unpickled, imported, called, hashed or compared.

It knows the opcodes that DCP and `torch.save` write. A class stays a `Name`, a call stays a `Call`;
the reader of the nodes decides what to make of them. Names must be on the caller's list, and memory
use is proportional to the input.
"""

from __future__ import annotations

import pickletools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal.errors import CheckpointError, Corrupt, UnsupportedState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["Call", "Name", "Node", "Pairs", "Reference", "corrupt", "parse_pickle"]

Node = Any
"""A plain value, a list or tuple of nodes, or one of the classes below; hostile until checked."""
_SPARE_BYTES, _PER_BYTE = 8 << 20, 24
"""Memory limit for nodes; indexes that DCP writes take 18 bytes per byte of pickle."""
_MEMO_BYTES = 40
"""Memory charged for a node that can be referred to many times; a reference costs less."""
_PLACE_BYTES = sys.getsizeof((None,)) - sys.getsizeof(())
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SMALL = frozenset({"BININT", "BININT1", "BININT2"})
_LARGE = frozenset(
    {"LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MAX_PROTOCOL = 5


class Name(str):
    """Qualified name of a class or function in the pickle; never resolved."""

    __slots__ = ()


class Pairs(list[Node]):
    """A dict as a flat list of keys and values; keys are not hashed, and may repeat."""

    __slots__ = ()

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        """Yield keys and values."""
        return zip(self[::2], self[1::2], strict=True)


@dataclass(eq=False, slots=True)
class Call:
    """A call in the pickle, such as a constructor; it is never carried out."""

    callee: Name
    args: tuple[Node, ...]
    pairs: Pairs
    """Items that unpickling would set on the new object."""
    state: Node = None


@dataclass(eq=False, slots=True)
class Reference:
    """A persistent id: in a `torch.save` record, a storage."""

    target: Node


def corrupt(what: str, problem: str) -> Corrupt:
    """Return the error for a foreign file or record that is malformed."""
    return Corrupt(f"{what}: {problem}. It is not loaded.", path=what, problems=(problem,))


def parse_pickle(data: bytes, allowed: Collection[str], what: str) -> Node:
    """Return the root node of a pickle.

    Args:
        data: the bytes; the caller bounds their number.
        allowed: qualified names that may occur.
        what: name of the file or record, for messages.

    Raises:
        UnsupportedState: a name that is not allowed.
        Corrupt: the bytes are not a whole pickle, use an opcode that these writers do not write,
            or expand to more memory than their number allows.
    """
    parser = _Parser(allowed, what, _SPARE_BYTES + _PER_BYTE * len(data))
    try:
        for opcode, argument, at in pickletools.genops(data):
            parser.take(opcode.name, argument, at or 0)
        return parser.root()
    except CheckpointError:
        raise
    except (ValueError, LookupError, AttributeError, TypeError, Warning) as error:
        raise corrupt(what, f"expected a whole pickle, found {type(error).__name__}") from error


class _Parser:
    def __init__(self, allowed: Collection[str], what: str, room: int) -> None:
        self._allowed = allowed
        self._what = what
        self._room = room
        self._stack: list[Node] = []
        self._marked: list[list[Node]] = []
        self._memo: list[Node] = []

    def root(self) -> Node:
        (root,) = self._stack
        if self._marked:
            raise ValueError("a mark is left")
        return root

    def take(self, opcode: str, argument: Node, at: int) -> None:
        """Carry out one opcode; the frequent ones come first."""
        stack = self._stack
        if opcode in ("BINGET", "LONG_BINGET"):
            self._push(self._memo[argument])
        elif opcode in _SMALL:
            self._push(argument)
        elif opcode in _LARGE:
            self._make(argument)
        elif opcode in _CONSTANTS:
            self._push(_CONSTANTS[opcode])
        elif opcode in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self._remember(len(self._memo) if argument is None else argument)
        elif opcode in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[opcode])]
            self._make(tuple(reversed(items)))
        elif opcode == "TUPLE":
            self._make(tuple(self._since_mark()))
        elif opcode == "MARK":
            self._spend(sys.getsizeof([]))
            self._marked.append(stack)
            self._stack = []
        elif opcode in ("SETITEMS", "APPENDS"):
            self._extend(opcode, self._since_mark())
        elif opcode == "SETITEM":
            self._extend("SETITEMS", [stack.pop(), stack.pop()][::-1])
        elif opcode == "APPEND":
            self._extend("APPENDS", [stack.pop()])
        elif opcode in ("EMPTY_LIST", "EMPTY_DICT"):
            self._make([] if opcode == "EMPTY_LIST" else Pairs())
        elif opcode in ("REDUCE", "NEWOBJ"):
            self._call(stack.pop(), stack.pop())
        elif opcode == "BUILD":
            self._build(stack.pop(), stack[-1])
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            module, name = argument.split(" ") if argument else [stack.pop(), stack.pop()][::-1]
            self._name(module, name)
        elif opcode == "BINPERSID":
            self._make(Reference(stack.pop()))
        elif opcode == "PROTO":
            if argument > _MAX_PROTOCOL:
                raise ValueError("a newer protocol")
        elif opcode not in ("FRAME", "STOP"):
            problem = f"byte {at}: expected an opcode that DCP and torch.save write"
            raise corrupt(self._what, f"{problem}, found {opcode}")

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise corrupt(self._what, "expected objects in proportion to its bytes, found more")

    def _push(self, node: Node) -> None:
        """Push an existing node, or one that costs only its place on the stack."""
        self._spend(_PLACE_BYTES)
        self._stack.append(node)

    def _make(self, node: Node) -> None:
        """Push a new node and charge its memory."""
        self._spend(sys.getsizeof(node))
        self._push(node)

    def _remember(self, place: int) -> None:
        if place > len(self._memo):
            raise ValueError("a memo index out of order")
        self._spend(_MEMO_BYTES)
        self._memo[place : place + 1] = [self._stack[-1]]

    def _since_mark(self) -> list[Node]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _extend(self, opcode: str, items: list[Node]) -> None:
        target, kind = self._stack[-1], list if opcode == "APPENDS" else Pairs
        target = target.pairs if type(target) is Call and kind is Pairs else target
        if type(target) is not kind or (kind is Pairs and len(items) % 2):
            raise ValueError("items for an object that takes none")
        self._spend(_PLACE_BYTES * len(items))
        target.extend(items)

    def _name(self, module: Node, name: Node) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is not a string")
        full = f"{module}.{name}"
        if full not in self._allowed:
            shown = full[:120]
            raise UnsupportedState(
                f"{self._what}: names {shown!r}, which stepseal does not accept from a foreign "
                "checkpoint. It was neither imported nor called.",
                path=self._what,
                found=shown,
            )
        self._make(Name(full))

    def _call(self, args: Node, callee: Node) -> None:
        if type(args) is not tuple or type(callee) is not Name:
            raise ValueError("a call whose target is not a name")
        pairs = Pairs()
        self._spend(sys.getsizeof(pairs))
        self._make(Call(callee, args, pairs))

    def _build(self, state: Node, target: Node) -> None:
        if type(target) is not Call or target.state is not None:
            raise ValueError("state for an object that takes none")
        target.state = state
