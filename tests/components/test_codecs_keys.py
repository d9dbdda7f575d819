"""A container of keys whose hashes are equal is refused, by who saves it and by who reads it."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from tests._collisions import equal_ints, equal_tuples
from tests.components._roundtrip import round_trip

from stepseal.components._codecs import decode_tree, encode_tree
from stepseal.components._codecs_words import MAX_EQUAL_HASHES, most_equal_hashes
from stepseal.errors import Corrupt, UnsupportedState
from stepseal.layout import TreeContents

if TYPE_CHECKING:
    from collections.abc import Callable

MAKERS: dict[str, Callable[[list[Any]], object]] = {
    "set": set,
    "frozenset": frozenset,
    "dict": dict.fromkeys,
    "ordered": lambda keys: OrderedDict.fromkeys(keys, 0),
    "counter": lambda keys: Counter(dict.fromkeys(keys, 1)),
    "defaultdict": lambda keys: defaultdict(int, dict.fromkeys(keys, 1)),
}
KEYS: dict[str, Callable[[int], list[Any]]] = {"ints": equal_ints, "tuples": equal_tuples}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("container", MAKERS)
def test_a_state_with_many_equal_hashes_is_refused_when_it_is_saved(
    container: str, kind: str
) -> None:
    keys = KEYS[kind](MAX_EQUAL_HASHES + 1)
    fits = MAKERS[container](keys[:-1])
    assert round_trip({"a": fits}) == {"a": fits}
    with pytest.raises(UnsupportedState, match=r'\["a"\].*at most 64 .* of one hash, found 65'):
        encode_tree({"a": MAKERS[container](keys)}, component="loader")


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("tag", ["$set", "$frozenset", "$dict", "$odict", "$counter"])
def test_a_document_with_many_equal_hashes_is_corrupt(tag: str, kind: str) -> None:
    keys = KEYS[kind](MAX_EQUAL_HASHES + 1)
    nodes = [{"$int": str(key)} if isinstance(key, int) else {"$tuple": list(key)} for key in keys]
    node: object = nodes
    if "set" not in tag:
        node = [[key, 0] for key in nodes]
    if tag in ("$odict", "$counter"):
        node = {"$dict": node}
    with pytest.raises(Corrupt, match="at most 64 keys or members of one hash"):
        decode_tree(TreeContents({tag: node}, {}))


def test_equal_keys_of_different_types_are_one_key() -> None:
    for node in (True, 1.0):
        with pytest.raises(Corrupt, match="each key or member once"):
            decode_tree(TreeContents({"$dict": [[1, 0], [node, 0]]}, {}))


def test_few_keys_may_have_any_hashes() -> None:
    assert most_equal_hashes(equal_ints(3)) == 3
    assert most_equal_hashes(range(1000)) == 1
    assert most_equal_hashes([*range(1000), *equal_ints(70)]) == 71  # beside 0
