"""Digests of what several participants hold: what is compared, and where replicas differ.

The digest of a tensor is the digest of its chunk digests. For what this participant writes, they
come from its part index; what others write is digested here while state is frozen. A tree counts as
its document, without the devices of tensors, and its arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from stepseal.components._live_data import TensorData
from stepseal.components._tree_paths import array_paths, outline, without_devices
from stepseal.errors import InvalidInput
from stepseal.layout import (
    CHUNK_BYTES,
    Sharing,
    chunk_digests,
    digest,
    digest_of_all,
    digest_of_chunks,
    encode_document,
    rule_of,
    shared_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepseal.layout import AnySharing, DataSource, PartIndex, TensorSource, TreeSource

__all__ = [
    "ReplicaDigests",
    "ReplicaRule",
    "Replicas",
    "Validation",
    "as_patterns",
    "check_comparable",
    "check_rule",
    "share_out",
]

Validation: TypeAlias = Literal["none", "warn", "quick", "tensor", "full"]
"""How replicas are compared at a save. `warn`: a warning says on which ranks they differ. From
`quick` on, the save fails and says so. `tensor`: also in which tensors. `full`: also by how much,
against the files that were written."""

_BLOCK_BYTES = 8 * CHUNK_BYTES
_DOCUMENT = "\0document"
"""Name of a tree's document among its arrays, whose names are printable."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """What a participant holds that must be equal on others, and on which."""

    sets: Mapping[str, int]
    """Name of each set of participants that hold the same, to its size, at least 2."""
    set_of: Mapping[str, str]
    """Key of each tensor that is compared to the name of its set."""
    tree_set: str | None
    """Name of the set that holds the same tree; None where there is no tree to compare."""
    tensors: tuple[TensorSource, ...] = ()
    """Tensors that others write."""
    trees: tuple[TreeSource, ...] = ()
    """Trees that others write."""
    never: frozenset[str] = field(default_factory=frozenset)
    """Paths inside the tree that are never compared."""


@dataclass(frozen=True, slots=True)
class ReplicaRule:
    """How the replicas of one component are compared."""

    level: Validation | None = None
    """None takes the default of the component and its sharing."""
    default: Validation = "quick"
    """Level of a component that has replicas and no declared one."""
    exclude: tuple[str, ...] = ()
    """Patterns of paths that are left out, with all below them."""
    required: bool = True
    """Whether a save fails with this component."""

    def level_of(self, sharing: AnySharing) -> Validation:
        """Return the level for a component with the sharing that it was described with."""
        if not rule_of(sharing).has_replicas:
            return "none"
        return self.default if self.level is None else self.level

    def excludes(self, path: str) -> bool:
        """Return whether a path, or one above it, is left out."""
        return any(
            fnmatchcase(above, pattern) for pattern in self.exclude for above in _above(path)
        )


def _above(path: str) -> Iterable[str]:
    end = path.find(".")
    while end != -1:
        yield path[:end]
        end = path.find(".", end + 1)
    yield path


def as_patterns(exclude: Iterable[str]) -> tuple[str, ...]:
    """Return a list of patterns as a tuple; `check_rule` refuses what is none."""
    is_list = isinstance(exclude, Iterable) and not isinstance(exclude, (str, bytes))
    return tuple(exclude) if is_list else (f"{exclude}\0",)


def check_rule(name: str, rule: ReplicaRule, sharing: object) -> None:
    """Refuse a rule that says nothing, or contradicts the declared sharing.

    Raises:
        InvalidInput: what is wrong, and what is expected.
    """
    problem = ""
    if rule.level is not None and rule.level not in get_args(Validation):
        words = ", ".join(map(repr, get_args(Validation)))
        problem = f"validate: expected one of {words} or None, found {rule.level!r:.80}"
    elif not all(_is_pattern(one) for one in rule.exclude):
        problem = f"exclude: expected a list of patterns of paths, found {rule.exclude!r:.80}"
    elif rule.required not in (True, False):
        problem = f"required: expected True or False, found {rule.required!r:.80}"
    elif rule.level == "full" and not rule.required:
        problem = (
            "validate='full' compares what was written, and nothing can be left out of that: "
            "expected required=True, or another level"
        )
    elif rule.level not in (None, "none") and sharing in (Sharing.GLOBAL, Sharing.PER_RANK):
        problem = (
            f"validate={rule.level!r}: expected state that several ranks hold equal, found a "
            "sharing of which there are no replicas. Leave validate out"
        )
    if problem:
        raise InvalidInput(f"add({name!r}): {problem}.", component=name)


def check_comparable(name: str, kind: str, rule: ReplicaRule) -> None:
    """Refuse a rule for files of an engine, which are written after all ranks have agreed.

    Raises:
        InvalidInput: a rule was declared.
    """
    if kind == "external" and rule != ReplicaRule():
        raise InvalidInput(
            f"add({name!r}): the files of an External are not compared, and a save that lacks them "
            "fails: validate=, exclude= and required= do not apply. Leave them out.",
            component=name,
        )


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def share_out(
    written: Sequence[TensorSource],
    replicas: Replicas,
    rule: ReplicaRule,
    *,
    rank: int,
    world_size: int,
    proven: bool = True,
) -> tuple[tuple[TensorSource, ...], Replicas]:
    """Return what this rank writes, in place of the lowest one alone, and what it only compares.

    What is left out of the comparison is in no set, and stays with who wrote it.

    Args:
        written: what this rank would write without validation.
        replicas: what is compared, and what others would write.
        rule: what is left out.
        rank: own rank.
        world_size: number of ranks; all hold every plain tensor.
        proven: whether a step holds equal replicas alone; else the lowest rank writes them all.
    """
    set_of = {key: name for key, name in replicas.set_of.items() if not rule.excludes(key)}
    if not proven:
        return tuple(written), replace(replicas, set_of=set_of)
    together = (*written, *(t for t in replicas.tensors if t.key in set_of))
    sizes = {t.key: t.data.size_bytes for t in together if set_of.get(t.key) == ""}
    owners = shared_out(sizes, world_size)
    mine = {t.key for t in written} - owners.keys()
    mine |= {key for key, owner in owners.items() if owner == rank}
    others = tuple(t for t in together if t.key not in mine)
    return tuple(t for t in together if t.key in mine), replace(
        replicas, set_of=set_of, tensors=others
    )


class ReplicaDigests:
    """Digests of one component, by set of participants; complete after `take_written`.

    Args:
        component: its name.
        tensors: what is written here; private, or frozen until it is written.
        trees: the same.
        replicas: what is compared.
        rule: what is left out.
        level: not `none`.
    """

    def __init__(
        self,
        component: str,
        tensors: Sequence[TensorSource],
        trees: Sequence[TreeSource],
        replicas: Replicas,
        rule: ReplicaRule,
        level: Validation,
    ) -> None:
        self.level = level
        self.sets = replicas.sets
        self.held = replicas.tensors if level == "full" else ()
        """Tensors that others write; live, while state is frozen."""
        self._component = component
        self._set_of = replicas.set_of
        self._tree_set = replicas.tree_set
        self._written = {one.key for one in tensors if one.key in replicas.set_of}
        self._own_trees = tuple(trees) if replicas.tree_set is not None else ()
        self._trees = [_Tree(tree, rule, replicas.never) for tree in replicas.trees]
        self._digests: dict[str, dict[str, bytes]] = {name: {} for name in replicas.sets}
        self._left_out = (rule, replicas.never)
        for one in replicas.tensors:
            self._add(one.key, _digest_of(one.data))

    def take_data(self, tensors: Iterable[TensorSource]) -> None:
        """Complete the digests from data that was not written yet."""
        for one in tensors:
            if one.key in self._written:
                self._add(one.key, _digest_of(one.data))
        self._take_trees()

    def take_written(self, index: PartIndex | None) -> None:
        """Complete the digests from the index of what was written, and from private trees."""
        for one in () if index is None else index.tensors:
            if one.component == self._component and one.key in self._written:
                self._add(one.key, digest_of_chunks(one.chunk_digests))
        self._take_trees()

    def _take_trees(self) -> None:
        self._trees += [_Tree(tree, *self._left_out) for tree in self._own_trees]
        self._own_trees = ()

    def _add(self, key: str, found: bytes) -> None:
        self._digests[self._set_of[key]][key] = found

    def of_sets(self) -> dict[str, str]:
        """Return one digest per set."""
        return {name: digest_of_all(self._all(name)) for name in self.sets}

    def of_paths(self, name: str) -> dict[str, str]:
        """Return the digest of each tensor, and of each other value of a set, by path."""
        found = {key: value.hex() for key, value in self._digests[name].items()}
        for tree in self._trees if name == self._tree_set else ():
            found |= tree.by_path()
        return found

    def _all(self, name: str) -> Mapping[str, bytes]:
        found = dict(self._digests[name])
        for tree in self._trees if name == self._tree_set else ():
            found |= {f"\0{key}": value for key, value in tree.digests.items()}
        return found


class _Tree:
    """The digests of one tree."""

    __slots__ = ("_document", "_paths", "digests")

    def __init__(self, tree: TreeSource, rule: ReplicaRule, never: frozenset[str]) -> None:
        self._document = without_devices(tree.document)
        self._paths: Mapping[str, str] | None = None
        arrays = tree.arrays
        if rule.exclude or never:
            leaves_out = _either(rule.excludes, never)
            self._document, self._paths = array_paths(self._document, leaves_out)
            arrays = tuple(one for one in arrays if one.name in self._paths)
        self.digests = {one.name: _digest_of(one.data) for one in arrays}
        self.digests[_DOCUMENT] = digest(encode_document(self._document))

    def by_path(self) -> dict[str, str]:
        """Return digests by path, of arrays and of each value of the document."""
        paths = self._paths
        if paths is None:
            _, paths = array_paths(self._document, lambda _path: False)
        found = {
            path: digest(encode_document(node)).hex() for path, node in outline(self._document)
        }
        for name, value in self.digests.items():
            if name != _DOCUMENT:
                path = paths[name]
                found[path] = value.hex() + found.get(path, "")
        return found


def _either(excludes: Callable[[str], bool], never: frozenset[str]) -> Callable[[str], bool]:
    return lambda path: path in never or excludes(path)


def _digest_of(data: DataSource) -> bytes:
    view = data.view()
    if view is not None:
        return digest_of_chunks(chunk_digests(view))
    if not isinstance(data, TensorData):  # a range of it would copy all of it first
        whole = memoryview(bytearray(data.size_bytes))
        data.fill(whole)
        return digest_of_chunks(chunk_digests(whole))
    buffer = memoryview(bytearray(min(_BLOCK_BYTES, data.size_bytes)))
    found = []
    for start in range(0, data.size_bytes, _BLOCK_BYTES):
        block = buffer[: data.size_bytes - start]
        data.fill(block, start)
        found.append(chunk_digests(block))
    return digest_of_chunks(b"".join(found))
