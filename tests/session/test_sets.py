"""PER_GROUP and PER_NODE: one payload per set of ranks, found again by its coordinate."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tests.session._sets import GROUPS, Live, in_world, restored, save

import stepseal as ss
from stepseal.components._tree_paths import without_devices
from stepseal.layout import decode_manifest
from stepseal.storage import LocalStorage, read_bytes
from stepseal.testing import MemoryStorage, World

InvalidInput, StateMismatch = ss.errors.InvalidInput, ss.errors.StateMismatch


def entry_of(storage: MemoryStorage, component: str = "tree") -> Any:  # noqa: ANN401
    """Return what the manifest of step 1 says about a component."""
    manifest = decode_manifest(read_bytes(storage, "step-1/manifest.json", 1 << 20))
    return next(one for one in manifest.components if one.name == component)


def test_each_set_has_one_payload_and_each_rank_gets_that_of_its_set() -> None:
    storage, sharing = MemoryStorage(), ss.per_group(same_on=GROUPS)
    assert save(storage, sharing, [5, 6, 5, 6]) == [None] * 4
    for component in ("tree", "module", "optimizer"):
        entry = entry_of(storage, component)
        assert (entry.kind, entry.sharing) == ("tree", "per_group")
        assert entry.payloads == {f"trainer/{rank}": f"trainer/{rank % 2}" for rank in range(4)}
        assert entry.options == {
            "sets": {
                "axes": {"set": 2},
                "coordinates": {"trainer/0": "set=0", "trainer/1": "set=1"},
            }
        }
    assert restored(storage, sharing, 4) == [{5}, {6}, {5}, {6}]


@pytest.mark.parametrize(
    ("num", "groups", "found"),
    [
        (2, [[0], [1]], [5, 6]),
        (6, [[0, 1, 2], [3, 4, 5]], [5, 5, 5, 6, 6, 6]),
        (4, [[1, 3], [0, 2]], [5, 6, 5, 6]),
        (4, [[0, 1], [2, 3]], [5, 5, 6, 6]),
    ],
)
def test_sets_are_numbered_by_their_lowest_rank_whatever_their_size(
    num: int, groups: list[list[int]], found: list[float]
) -> None:
    storage = MemoryStorage()
    save(storage, ss.per_group(same_on=GROUPS), [5, 6, 5, 6])
    assert restored(storage, ss.per_group(same_on=groups), num) == [{one} for one in found]


def test_a_node_has_one_payload_and_the_number_of_nodes_may_not_change() -> None:
    storage = MemoryStorage()
    assert save(storage, ss.PER_NODE, [5, 5, 6, 6], nodes=(0, 0, 1, 1)) == [None] * 4
    assert entry_of(storage).payloads["trainer/3"] == "trainer/2"
    assert entry_of(storage).options["sets"]["axes"] == {"node": 2}
    assert restored(storage, ss.PER_NODE, 4, nodes=(0, 0, 1, 1)) == [{5}, {5}, {6}, {6}]
    assert restored(storage, ss.PER_NODE, 2, nodes=(0, 1)) == [{5}, {6}]
    for error in restored(storage, ss.PER_NODE, 2, nodes=(0, 0)):
        assert isinstance(error, StateMismatch)
        assert "saved for each node (2 nodes at the save, now 1 node)" in error.problems[0]


def test_another_number_of_sets_is_refused_on_all_ranks_and_says_how_to_go_on() -> None:
    storage = MemoryStorage()
    save(storage, ss.per_group(same_on=GROUPS), [5, 6, 5, 6])
    fewer = ss.per_group(same_on=[[0, 1]])
    for error in restored(storage, fewer, 2):
        assert isinstance(error, StateMismatch)
        assert len(error.problems) == 3
        assert "(2 sets at the save, now 1 set): restore on 2 sets" in error.problems[0]
        assert "on_world_change='fresh'" in error.problems[0]
        assert "policies={'tree': 'skip'}" in error.problems[0]
    assert restored(storage, fewer, 2, on_world_change="fresh") == [{-1}, {-1}]
    same = ss.per_group(same_on=[[0], [1]])
    assert restored(storage, same, 2, on_world_change="fresh") == [{5}, {6}]


def test_state_of_each_rank_is_refused_on_another_number_of_ranks() -> None:
    storage = MemoryStorage()
    save(storage, ss.PER_RANK, [1, 2, 3, 4])
    for error in restored(storage, ss.PER_RANK, 2):
        assert "saved per rank by 4 participants, now 2: restore with 4" in str(error)


GROUP = ss.per_group(same_on=[[0], [1]])


@pytest.mark.parametrize(
    ("saved", "live", "names"),
    [
        (ss.GLOBAL, ss.PER_RANK, ("global", "per_rank", "ss.GLOBAL")),
        (ss.PER_RANK, ss.REPLICATED, ("per_rank", "replicated", "ss.PER_RANK")),
        (GROUP, ss.PER_RANK, ("per_group", "per_rank", "ss.per_group(same_on=...)")),
        (GROUP, ss.REPLICATED, ("per_group", "replicated", "ss.per_group(same_on=...)")),
        (ss.REPLICATED, GROUP, ("replicated", "per_group", "ss.REPLICATED")),
        (ss.PER_NODE, GROUP, ("per_node", "per_group", "ss.PER_NODE")),
        (GROUP, ss.PER_NODE, ("per_group", "per_node", "ss.per_group(same_on=...)")),
    ],
)
def test_another_sharing_than_the_saved_one_is_refused_and_both_are_named(
    saved: Any,  # noqa: ANN401 - a sharing
    live: Any,  # noqa: ANN401 - a sharing
    names: tuple[str, ...],
) -> None:
    storage = MemoryStorage()
    assert save(storage, saved, [5, 5], nodes=(0, 1)) == [None] * 2
    for options in ({}, {"on_world_change": "fresh"} if live is not ss.REPLICATED else {}):
        for error in restored(storage, live, 2, nodes=(0, 1), **options):
            assert isinstance(error, StateMismatch)
            for problem in error.problems:
                assert "saved with sharing {}, now {}: declare sharing={}".format(*names) in problem


@pytest.mark.parametrize(
    ("saved", "live"), [(ss.GLOBAL, ss.REPLICATED), (ss.REPLICATED, ss.GLOBAL)]
)
def test_what_the_job_holds_once_is_read_as_global_or_replicated(saved: Any, live: Any) -> None:  # noqa: ANN401
    storage = MemoryStorage()
    save(storage, saved, [5, 5])
    assert restored(storage, live, 3) == [{5}] * 3


OTHER = [[0, 1], [2, 3]]


def test_ranks_that_declare_different_sets_commit_and_restore_nothing() -> None:
    storage, same = MemoryStorage(), ss.per_group(same_on=GROUPS)
    mixed = {**dict.fromkeys(range(4), same), 3: ss.per_group(same_on=OTHER)}
    for error in save(storage, mixed, [5, 5, 5, 5]):
        assert isinstance(error, ss.errors.ParticipantFailed)
        assert set(error.failures) == {"trainer/3"}
        assert "set=0: 0 1; set=1: 2 3" in str(error)
        assert "set=0: 0 2; set=1: 1 3" in str(error)
        assert "pass the same same_on= on every rank" in str(error)
    save(storage, same, [5, 6, 5, 6])
    for error in restored(storage, mixed, 4):
        assert isinstance(error, StateMismatch)
        assert "with the sets [set=0: 0 1; set=1: 2 3] of tree and module and opt" in str(error)
        assert "but trainer/0 with the sets [set=0: 0 2; set=1: 1 3] of tree and" in str(error)
        assert "pass the same same_on= on every rank" in str(error)


def test_sets_that_differ_only_in_who_reads_are_told_apart() -> None:
    same, wide = ss.per_group(same_on=[[0, 1], [2, 3]]), ss.per_group(same_on=[[0, 1, 3], [2]])
    errors = save(MemoryStorage(), {0: same, 1: same, 2: same, 3: wide}, [5, 5, 6, 5])
    assert {type(error) for error in errors} == {ss.errors.ParticipantFailed}


def test_fresh_streams_are_equal_on_a_set_and_differ_between_sets() -> None:
    storage, sharing = MemoryStorage(), ss.per_group(same_on=GROUPS)

    def work(rank: int, ckpt: ss.Checkpointer) -> float:
        stream = torch.Generator().manual_seed(rank % 2)
        ckpt.add("rng", ss.RNG(torch=[stream]), sharing=sharing)
        if ckpt.restore(policies={"rng": "fresh"}) is None:
            ckpt.save(1).wait()
        drawn: torch.Tensor = torch.rand(1, generator=stream)
        return drawn.item()

    in_world(4, storage, work)
    drawn = in_world(4, storage, work)
    assert drawn[:2] == drawn[2:]
    assert len(set(drawn)) == 2


BAD_SETS: list[tuple[Any, str]] = [
    ([], "expected at least one set of ranks, found none"),
    ([[0, 1], []], "expected ranks in set=0, found none"),
    ([[0, 1], [1, 2]], "expected each rank in one set, found in several: 1"),
    ([[0, 0]], "expected each rank in one set, found in several: 0"),
    ([0, 1], "expected a part of a device mesh"),
    ([[0, -1]], "expected a part of a device mesh"),
    ([[0, True]], "expected a part of a device mesh"),
    ("dp", "expected a part of a device mesh"),
    (None, "expected a part of a device mesh"),
    (-100, "found that this rank is in no group"),
]


@pytest.mark.parametrize(("sets", "text"), BAD_SETS)
def test_what_is_no_set_of_ranks_is_refused_when_it_is_declared(sets: Any, text: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidInput, match=text):
        ss.per_group(same_on=sets)


BAD_SHARINGS: list[tuple[Any, str]] = [
    (ss.Sharing.PER_GROUP, "PER_GROUP without them. Declare sharing=ss.per_group"),
    (ss.per_group(same_on=[[0]]), "expected each of 2 ranks in a set, found in none: 1"),
    (ss.per_group(same_on=[[0, 1], [2]]), "expected ranks below 2, found 2"),
    (GROUPS, "sharing: expected one of ss.GLOBAL"),
    (ss.Sharing, "sharing: expected one of ss.GLOBAL"),
]


@pytest.mark.parametrize(("sharing", "text"), BAD_SHARINGS)
def test_sets_that_do_not_fit_the_job_are_refused_when_it_is_added(sharing: Any, text: str) -> None:  # noqa: ANN401
    for error in save(MemoryStorage(), sharing, [5, 5]):
        assert isinstance(error, InvalidInput)
        assert text in str(error)


def test_a_rank_that_does_not_know_its_node_cannot_declare_per_node() -> None:
    for error in save(MemoryStorage(), ss.PER_NODE, [5, 5], nodes=()):
        assert isinstance(error, InvalidInput)
        assert "Checkpointer(node=...)" in str(error)


def test_a_load_takes_what_the_same_ranks_saved(tmp_path: Any) -> None:  # noqa: ANN401
    root = str(tmp_path / "root")

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        with ckpt:
            Live(5.0 + rank).add_to(ckpt, ss.per_group(same_on=[[0], [1]]))
            ckpt.save(1).wait()

    World(2, lambda _: LocalStorage.create(root)).run(work)
    assert ss.open(root).step(1).value("tree", "trainer/1")["value"] == 6.0
    assert ss.open(root).step(1).verify() == ()
    with pytest.raises(StateMismatch, match="saved per set of ranks by 2 participants, now 1"):
        ss.load(root, tree={"value": 0.0, "table": None})

    def alone(_: int, ckpt: ss.Checkpointer) -> None:
        with ckpt:
            Live(7.0).add_to(ckpt, ss.per_group(same_on=[[0]]))
            ckpt.save(1).wait()

    other = str(tmp_path / "other")
    World(1, lambda _: LocalStorage.create(other)).run(alone)
    live = Live()
    ss.load(other, tree=live.tree, module=live.module, optimizer=live.optimizer)
    assert live.values() == {7.0}


def test_ranks_of_a_set_whose_values_differ_commit_nothing_and_are_named_on_all_ranks() -> None:
    storage = MemoryStorage()
    for sharing, nodes in ((ss.per_group(same_on=GROUPS), None), (ss.PER_NODE, (0, 1, 0, 1))):
        for error in save(storage, sharing, [5, 6, 5, 7], nodes=nodes):
            assert isinstance(error, ss.errors.ParticipantFailed)
            assert set(error.failures) == {"trainer/3"}
            assert "must hold equal state" in str(error)
            assert "trainer/1" in str(error)
        assert restored(storage, sharing, 4, nodes=nodes) == [{-1}] * 4


def test_one_element_or_one_leaf_that_differs_is_found_and_another_device_is_not() -> None:
    sharing = ss.per_group(same_on=[[0, 1]])

    def work(rank: int, ckpt: ss.Checkpointer, change: str) -> None:
        live = Live(5.0)
        if rank and change == "element":
            live.tree["table"][2] += 1e-6
        elif rank and change == "key":
            live.tree["other"] = None
        elif rank and change == "momentum":
            live.optimizer.state[live.module.bias]["momentum_buffer"] += 1
        live.add_to(ckpt, sharing)
        ckpt.save(1).wait()

    for change, component in (("element", "tree"), ("key", "tree"), ("momentum", "optimizer")):
        found = in_world(2, MemoryStorage(), functools.partial(work, change=change))
        assert [type(error) for error in found] == [ss.errors.ParticipantFailed] * 2
        assert f"component {component}: the ranks of set=0" in str(found[0])
    there = {"a": [{"$tensor": {"leaf": "1", "device": "cuda:1"}}], "device": 1}
    assert without_devices(there) == {"a": [{"$tensor": {"leaf": "1"}}], "device": 1}
