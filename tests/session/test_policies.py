"""Restore policies: what is restored, left alone or begun anew, and that all ranks hear alike."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import stepseal as ss
from stepseal.steps import PosixSteps
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

InvalidInput, StateMismatch = ss.errors.InvalidInput, ss.errors.StateMismatch


class Live:
    """A model, a counter of each rank, and random streams of its own."""

    def __init__(self, value: float = 0.0, position: int = -1) -> None:
        self.model = {"w": torch.full((4,), value)}
        self.data = {"position": position}
        self.torch = torch.Generator().manual_seed(5)
        self.numpy = np.random.Generator(np.random.PCG64(5))
        self.legacy = np.random.RandomState(5)

    def rng(self) -> ss.RNG:
        return ss.RNG(torch=[self.torch], numpy=[self.numpy, self.legacy])

    def draws(self) -> tuple[float, ...]:
        drawn: torch.Tensor = torch.rand(1, generator=self.torch)
        return drawn.item(), self.numpy.random(), self.legacy.random()

    def add_to(self, ckpt: ss.Checkpointer, **data: Any) -> None:  # noqa: ANN401 - as of add
        ckpt.add("model", self.model)
        ckpt.add("data", self.data, sharing=ss.PER_RANK, **data)


def saved(num_participants: int = 1) -> MemoryStorage:
    storage = MemoryStorage()

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        live = Live(1.0, position=rank)
        with ckpt:
            live.add_to(ckpt)
            ckpt.restore()
            ckpt.save(10)

    World(num_participants, lambda _: storage).run(work)
    return storage


def alone(storage: MemoryStorage, work: Callable[[ss.Checkpointer], Any]) -> Any:  # noqa: ANN401
    """Return what `work` returns in a job of one."""

    def run(_: int, ckpt: ss.Checkpointer) -> Any:  # noqa: ANN401 - its own
        with ckpt:
            return work(ckpt)

    return World(1, lambda _: storage).run(run)[0]


@pytest.mark.parametrize("policy", ["skip", "fresh"])
def test_what_is_skipped_or_fresh_is_not_touched(policy: Any) -> None:  # noqa: ANN401
    live = Live()

    def work(ckpt: ss.Checkpointer) -> ss.Restored | None:
        live.add_to(ckpt, on_restore=policy)
        return ckpt.restore()

    restored = alone(saved(), work)
    assert live.data == {"position": -1}
    assert live.model["w"].tolist() == [1.0] * 4
    assert restored.report["model"] == "restored (tensors, 1 tensors)"
    assert policy in restored.report["data"]
    assert "left as it was" in restored.report["data"]


def test_if_present_takes_what_is_there_and_leaves_what_is_not() -> None:
    live, ema = Live(), {"w": torch.zeros(2)}

    def work(ckpt: ss.Checkpointer) -> ss.Restored | None:
        live.add_to(ckpt, on_restore="if-present")
        ckpt.add("ema", ema, on_restore="if-present")
        return ckpt.restore()

    restored = alone(saved(), work)
    assert live.data == {"position": 0}
    assert ema["w"].tolist() == [0.0, 0.0]
    assert restored.report["ema"] == "left as it was (if-present, and not in the step)"


def test_require_lists_everything_that_is_missing_on_either_side_and_the_advice_works() -> None:
    def work(ckpt: ss.Checkpointer) -> None:
        ckpt.add("model", {"w": torch.zeros(4)})
        ckpt.add("ema", {"w": torch.zeros(4)})
        with pytest.raises(StateMismatch) as caught:
            ckpt.restore()
        data, ema = caught.value.problems
        assert "restore(policies={'ema': 'skip'})" in ema
        assert "restore(policies={'data': 'skip'})" in data
        restored = ckpt.restore(policies={"ema": "skip", "data": "skip"})
        assert restored is not None
        assert restored.report["data"] == "left out (skip): not added here"

    alone(saved(), work)


def test_only_skips_all_others_added_or_not() -> None:
    live, ema = Live(), {"w": torch.zeros(4)}

    def work(ckpt: ss.Checkpointer) -> None:
        ckpt.add("data", live.data, sharing=ss.PER_RANK, on_restore="skip")
        ckpt.add("ema", ema)
        restored = ckpt.restore(only=["data"])
        assert restored is not None
        assert restored.report["ema"] == "left as it was (skip)"
        assert "not added here" in restored.report["model"]
        assert live.data == {"position": 0}
        live.data["position"] = -1
        restored = ckpt.restore(only=[], policies={"data": "fresh"})
        assert restored is not None
        assert "fresh" in restored.report["data"]
        assert live.data == {"position": -1}

    alone(saved(), work)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"policies": {"modle": "skip"}}, "modle: neither added here nor in step 10"),
    ({"policies": {"modle": "require"}}, "no such component was added"),
    ({"policies": {"model": "never"}}, "expected one of 'require'"),
    ({"policies": ["model"]}, "expected a dict"),
    ({"only": ["model", "modle"]}, "no component 'modle' was added"),
    ({"only": "model"}, r"only=\['model'\]"),
]


@pytest.mark.parametrize(("options", "problem"), WRONG)
def test_wrong_names_and_policies_are_refused_and_nothing_is_touched(
    options: dict[str, Any], problem: str
) -> None:
    live = Live()

    def work(ckpt: ss.Checkpointer) -> None:
        live.add_to(ckpt)
        with pytest.raises(InvalidInput, match=problem) as caught:
            ckpt.restore(**options)
        assert type(caught.value) is InvalidInput
        assert caught.value.problems
        assert not live.model["w"].any()

    alone(saved(), work)


ADDED: list[tuple[dict[str, Any], str]] = [
    ({"on_restore": "always"}, "on_restore: expected one of"),
    ({"on_world_change": "skip"}, "on_world_change: expected 'fresh'"),
    ({"on_world_change": "fresh"}, "expected state of each rank"),
]


@pytest.mark.parametrize(("options", "problem"), ADDED)
def test_add_refuses_policies_that_are_none(options: dict[str, Any], problem: str) -> None:
    def work(ckpt: ss.Checkpointer) -> None:
        with pytest.raises(InvalidInput, match=problem):
            ckpt.add("model", {"w": torch.zeros(4)}, **options)

    alone(MemoryStorage(), work)


def test_ranks_that_choose_differently_fail_alike() -> None:
    storage = saved(2)

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        live = Live()
        with ckpt:
            live.add_to(ckpt)
            with pytest.raises(StateMismatch, match="component data=skip, but"):
                ckpt.restore(policies={"data": "skip"} if rank else None)
            assert not live.model["w"].any()

    World(2, lambda _: storage).run(work)


def test_a_required_component_that_the_step_lacks_is_named_on_all_ranks() -> None:
    def work(_: int, ckpt: ss.Checkpointer) -> ss.errors.StateMismatch:
        live = Live()
        with ckpt:
            live.add_to(ckpt)
            ckpt.add("ema", {"w": torch.zeros(4)})
            with pytest.raises(StateMismatch) as caught:
                ckpt.restore()
        assert live.data == {"position": -1}
        return caught.value

    storage = saved(3)
    first, *others = World(3, lambda _: storage).run(work)
    assert first.problems[0].startswith("component ema: added here, but not in the step")
    assert {(type(one), str(one)) for one in others} == {(type(first), str(first))}


@pytest.mark.parametrize("num_now", [2, 3])
def test_state_of_each_rank_is_exact_on_the_same_world_and_fresh_on_another(num_now: int) -> None:
    storage = saved(2)

    def work(rank: int, ckpt: ss.Checkpointer) -> tuple[int, ss.Restored]:
        live = Live()
        with ckpt:
            live.add_to(ckpt, on_world_change="fresh")
            restored = ckpt.restore()
            assert restored is not None
            ckpt.save(11)
        return live.data["position"], restored

    found = World(num_now, lambda _: storage).run(work)
    reports = [dict(restored.report) for _, restored in found]
    assert reports == [reports[0]] * num_now
    same = num_now == 2
    assert [position for position, _ in found] == ([0, 1] if same else [-1] * 3)
    assert reports[0]["data"] == (
        "restored (tree)" if same else "fresh: left as it was (2 participants at the save, now 3)"
    )
    manifest = PosixSteps(storage).entry(11).manifest
    assert manifest is not None
    options = {entry.name: entry.options for entry in manifest.components}
    assert options == {"model": {}, "data": {} if same else {"fresh": {"step": 10}}}


def restart_streams(root: Path, generators: Live) -> tuple[ss.Restored, list[float]]:
    with ss.Checkpointer(root, mode="sync") as ckpt:
        ckpt.add("rng", generators.rng())
        restored = ckpt.restore(1, policies={"rng": "fresh"})
        assert restored is not None
        draws = [random.random(), torch.rand(1).item(), np.random.random(), *generators.draws()]
        ckpt.save(2 if not (root / "step-2").exists() else 3)
    return restored, draws


def test_fresh_streams_come_from_a_recorded_seed_again_and_again(tmp_path: Path) -> None:
    live = Live()
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("rng", live.rng())
        ckpt.save(1)
        old = [random.random(), torch.rand(1).item(), np.random.random(), *live.draws()]
    restored, draws = restart_streams(tmp_path, live)
    assert not set(draws) & set(old)
    assert len(set(draws)) == len(draws)
    seed = restored.fresh["rng"]["seed"]
    assert restored.report["rng"] == f"fresh: streams from seed {seed}, step and rank"
    (entry,) = ss.open(tmp_path).step(2).manifest.components
    assert entry.options == {"fresh": {"step": 1, "seed": seed}}
    assert restart_streams(tmp_path, Live())[1] == draws


def test_fresh_ranks_share_no_stream() -> None:
    storage = MemoryStorage()

    def work(rank: int, ckpt: ss.Checkpointer) -> tuple[float, ...]:
        live = Live()
        with ckpt:
            ckpt.add("rng", live.rng(), on_world_change="fresh")
            if ckpt.restore() is None:
                ckpt.save(1)
        return live.draws()

    World(1, lambda _: storage).run(work)
    draws = World(3, lambda _: storage).run(work)
    assert len({one for pair in draws for one in pair}) == 9


def test_a_check_says_what_a_restore_would_do_and_touches_nothing() -> None:
    storage, live = saved(), Live()
    before = storage.list_dir(".stepseal/incarnations")

    def work(ckpt: ss.Checkpointer) -> None:
        live.add_to(ckpt)
        checked = ckpt.restore(check_only=True)
        assert checked is not None
        assert (checked.step, checked.incarnation) == (10, None)
        assert live.data == {"position": -1}
        assert not live.model["w"].any()
        assert storage.list_dir(".stepseal/incarnations") == before
        with pytest.raises(ss.errors.NotRestored):
            ckpt.save(11)
        restored = ckpt.restore()
        assert restored is not None
        assert restored.report == checked.report
        assert restored.incarnation == 2

    alone(storage, work)


def test_a_check_raises_what_a_restore_would_raise() -> None:
    def work(ckpt: ss.Checkpointer) -> None:
        ckpt.add("model", {"w": torch.zeros(3)})
        with pytest.raises(StateMismatch) as caught:
            ckpt.restore(check_only=True)
        assert len(caught.value.problems) == 2
        ckpt.add("data", Live().data, sharing=ss.PER_RANK)  # nothing has begun

    alone(saved(), work)
    alone(MemoryStorage(), lambda ckpt: ckpt.restore(check_only=True))
