"""Trainers in Forgather's shape, added as they are: every pattern, and all that can be wrong."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from tests.integrations._providers import Counter, Pattern, StateComponent, Trainer
from tests.session._sets import in_world

import stepseal as ss
from stepseal.errors import InvalidInput, ParticipantFailed, StateMismatch
from stepseal.integrations.forgather import add_provider
from stepseal.testing import MemoryStorage, RanksFailed, run_ranks

if TYPE_CHECKING:
    from pathlib import Path

SETS = [[0, 2], [1, 3]]
"""Ranks that hold equal state, on a mesh (dp=2, pp=2)."""


def trainer_of(rank: int, groups: Any = None) -> Trainer:  # noqa: ANN401 - any way to say it
    values = {"model": 3, "trainer": 10, "dataset": 20, "stage": 30 + rank % 2}
    values |= {"cache": 40 + rank // 2, "rng": 50 + rank}
    return Trainer(values, {"dp_group": SETS} if groups is None else groups)


def fresh(groups: Any = None) -> Trainer:  # noqa: ANN401 - any way to say it
    keys = ("model", "trainer", "dataset", "stage", "cache", "rng")
    return Trainer(dict.fromkeys(keys, 0), {"dp_group": SETS} if groups is None else groups)


def saved(
    storage: MemoryStorage, *, dynamic: tuple[str, ...] = (), dispatches: bool = True
) -> list[Any]:
    def work(rank: int, ckpt: ss.Checkpointer) -> tuple[str, ...]:
        trainer = trainer_of(rank)
        trainer.dispatches = dispatches
        trainer.counters["dataset"].value += 0 if dispatches else rank
        keys = add_provider(ckpt, trainer, dynamic=dynamic)
        ckpt.save(1).wait()
        return keys

    return in_world(4, storage, work, nodes=(0, 0, 1, 1))


def restored(
    storage: MemoryStorage, *, dynamic: tuple[str, ...] = (), dispatches: bool = True
) -> Any:  # noqa: ANN401
    def work(_: int, ckpt: ss.Checkpointer) -> dict[str, int]:
        trainer = fresh()
        trainer.dispatches = dispatches
        add_provider(ckpt, trainer, dynamic=dynamic)
        ckpt.restore()
        return trainer.values()

    return in_world(4, storage, work, nodes=(0, 0, 1, 1))


def test_every_pattern_is_saved_and_comes_back_to_the_ranks_that_it_is_of() -> None:
    storage = MemoryStorage()
    keys = ("model", "optimizer", "trainer", "dataset", "stage", "cache", "rng")
    assert saved(storage) == [keys] * 4
    assert restored(storage) == [trainer_of(rank).values() for rank in range(4)]


def test_a_pattern_that_changed_goes_by_the_record_or_is_an_error_that_names_both() -> None:
    storage = MemoryStorage()
    saved(storage, dynamic=("dataset",), dispatches=False)
    found = restored(storage, dynamic=("dataset",), dispatches=True)
    assert [one["dataset"] for one in found] == [20, 21, 22, 23]
    for error in restored(storage, dispatches=True):  # as if the pattern of now counted
        assert isinstance(error, StateMismatch)
        assert "dataset" in str(error)
        assert "saved with sharing per_rank, now global" in str(error)


def test_a_group_of_ranks_that_differ_commits_nothing_and_names_them() -> None:
    storage = MemoryStorage()

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        stages = {"dp_group": [[0, 1], [2, 3]]}  # the ranks of a pipeline, whose stages differ
        add_provider(ckpt, trainer_of(rank, stages))
        ckpt.save(1).wait()

    for error in in_world(4, storage, work, nodes=(0, 0, 1, 1)):
        assert isinstance(error, ParticipantFailed)
        assert set(error.failures) == {"trainer/1", "trainer/3"}
        assert "component stage" in str(error)
        assert "must hold equal state" in str(error)
    assert restored(storage) == [fresh().values()] * 4


def test_what_is_not_required_may_be_missing_in_the_step() -> None:
    storage = MemoryStorage()

    def save(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("counter", Counter(5))
        ckpt.save(1).wait()

    def restore(_: int, ckpt: ss.Checkpointer, required: bool) -> Any:  # noqa: ANN401
        counter, other = Counter(0), Counter(7)
        provider = Trainer({}, {})
        provider.get_state_components = lambda: [  # type: ignore[method-assign]
            StateComponent("counter", counter, "global"),
            StateComponent("other", other, "global", required=required),
        ]
        add_provider(ckpt, provider)
        found = ckpt.restore()
        assert found is not None
        return counter.value, other.value

    assert in_world(1, storage, save) == [None]
    assert in_world(1, storage, lambda r, c: restore(r, c, False)) == [(5, 7)]
    (error,) = in_world(1, storage, lambda r, c: restore(r, c, True))
    assert isinstance(error, StateMismatch)
    assert "other" in str(error)


def test_replicas_are_compared_at_the_level_of_the_description() -> None:
    def work(rank: int, ckpt: ss.Checkpointer, level: str, required: bool = True) -> None:
        provider = Trainer({}, {})
        provider.get_state_components = lambda: [  # type: ignore[method-assign]
            StateComponent("fixed", Counter(1), "global"),
            StateComponent(
                "scale",
                Counter(rank),
                "replicated",
                required=required,
                validate_replication=True,
                validation_level=level,
            ),
        ]
        add_provider(ckpt, provider)
        ckpt.save(1).wait()

    for error in in_world(2, MemoryStorage(), lambda r, c: work(r, c, "quick")):
        assert isinstance(error, ParticipantFailed)
        assert set(error.failures) == {"trainer/1"}
    assert in_world(2, MemoryStorage(), lambda r, c: work(r, c, "none")) == [None] * 2
    assert in_world(2, MemoryStorage(), lambda r, c: work(r, c, "quick", False)) == [None] * 2


class Bad:
    """A provider of descriptions."""

    def __init__(self, *components: Any, groups: Any = None) -> None:  # noqa: ANN401 - also wrong ones
        self.components, self.groups = components, groups

    def get_state_components(self) -> Any:  # noqa: ANN401 - also wrong ones
        return self.components

    def get_process_groups(self) -> Any:  # noqa: ANN401 - also wrong ones
        return {"dp": [[0]], "uneven": [[0], []]} if self.groups is None else self.groups


def described(**changes: Any) -> StateComponent:  # noqa: ANN401 - any attribute
    given = {"key": "a", "stateful": Counter(0), "sharing_pattern": "global", **changes}
    return StateComponent(**given)


@pytest.mark.parametrize(
    ("component", "problem"),
    [
        (described(sharing_pattern="shared"), "sharing_pattern: expected one of global, per_rank"),
        (described(sharing_pattern=None), "found None"),
        (described(sharing_pattern=["global"]), "found ['global']"),
        (described(sharing_pattern=Pattern.PER_GROUP), "the group of ranks that hold equal state"),
        (
            described(sharing_pattern="per_group", process_group_name="pp"),
            "process_group_name: expected one of ['dp', 'uneven'], found 'pp'",
        ),
        (described(sharing_pattern="per_group", process_group_name="uneven"), "expected ranks in"),
        (described(process_group_name="dp"), "expected none with global, found 'dp'"),
        (described(validate_replication=True), "validate_replication: expected it with replicated"),
        (described(validation_level="deep"), "validation_level: expected one of"),
        (described(key="a/b"), "'a/b'"),
        ({"key": "a"}, "component 0: expected key, stateful, sharing_pattern, found {'key': 'a'}"),
    ],
)
def test_a_wrong_description_is_named_and_nothing_is_added(component: Any, problem: str) -> None:  # noqa: ANN401
    def work(_: int, ckpt: ss.Checkpointer) -> None:
        with pytest.raises(InvalidInput) as caught:
            add_provider(ckpt, Bad(component))
        assert problem in str(caught.value)
        assert "Nothing was added" in str(caught.value)
        add_provider(ckpt, Bad(described()))
        ckpt.save(1).wait()

    assert in_world(1, MemoryStorage(), work) == [None]


def test_all_that_is_wrong_is_listed_at_once() -> None:
    wrong = (
        described(),
        described(sharing_pattern="shared"),
        described(key="b", sharing_pattern="per_group", process_group_name="pp"),
        described(key="c", sharing_pattern="per_group"),
    )

    def work(_: int, ckpt: ss.Checkpointer) -> tuple[str, ...]:
        with pytest.raises(InvalidInput) as caught:
            add_provider(ckpt, Bad(*wrong), dynamic=("dataset",))
        with pytest.raises(InvalidInput, match="get_process_groups: expected a dict"):
            add_provider(ckpt, Bad(groups=["dp"]))
        return caught.value.problems

    (problems,) = in_world(1, MemoryStorage(), work)
    assert [one.split(":")[0] for one in problems] == ["a", "a", "b", "c", "dynamic"]
    assert "expected each key once" in problems[0]


def test_a_dynamic_component_that_is_gone_fails_the_save() -> None:
    def work(_: int, ckpt: ss.Checkpointer) -> None:
        provider = Bad(described())
        add_provider(ckpt, provider, dynamic=("a",))
        provider.components = ()
        ckpt.save(1)

    (error,) = in_world(1, MemoryStorage(), work)
    assert "expected one component 'a' of the provider, found 0" in str(error)


def save_then_die(rank: int, root: str) -> None:
    groups = [dist.new_group([one]) for one in range(2)]
    trainer = trainer_of(rank, {"dp_group": groups[rank], "world": dist.group.WORLD})
    ckpt = ss.Checkpointer(root, node=rank)
    add_provider(ckpt, trainer)
    ckpt.save(1).wait()
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def go_on(rank: int, root: str, differ: bool) -> dict[str, int] | str:
    groups = [dist.new_group([one]) for one in range(2)]
    group = dist.group.WORLD if differ else groups[rank]
    trainer = fresh({"dp_group": group})
    with ss.Checkpointer(root, node=rank) as ckpt:
        add_provider(ckpt, trainer)
        if differ:  # both ranks in one group, though their stages differ
            trainer.counters["stage"].value = rank
            try:
                ckpt.restore(fresh=True)
                ckpt.save(2).wait()
            except ParticipantFailed as error:
                return str(error)
        ckpt.restore()
    return trainer.values()


@pytest.mark.slow
def test_process_groups_over_two_ranks_killed_and_restored(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(RanksFailed, match="died without a report"):
        run_ranks(2, save_then_die, root)
    expected = [{**trainer_of(rank).values(), "cache": 40} for rank in range(2)]
    assert run_ranks(2, go_on, root, False) == expected
    for said in run_ranks(2, go_on, root, True):
        assert "must hold equal state" in str(said)
        assert "trainer/1" in str(said)
    assert ss.open(root).steps() == (1,)
