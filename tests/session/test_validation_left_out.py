"""What replicas may differ in, and components that a save does without: cases V5 and V6."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._replicas import manifest_of, refused, save_all
from tests.session._sets import in_world
from torch import nn

import stepseal as ss
from stepseal.cli._showing import describe_step, print_step
from stepseal.errors import InvalidInput, ParticipantFailed
from stepseal.storage import LocalStorage
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


# -- V5: what may differ ---------------------------------------------------------------------------


def test_v5_excluded_tensors_and_fields_may_differ_and_the_lowest_rank_stores_them() -> None:
    storage = MemoryStorage()
    states = [{"w": torch.ones(4), "own": {"r": torch.full((2,), float(r))}} for r in range(2)]
    assert refused(save_all(states, validate="tensor")).path == "own.r"
    assert refused(save_all(states, exclude=["own.x", "r", "ow"])).path is None
    for patterns in (["own"], ["own.*"], ["*.r"]):
        storage = MemoryStorage()
        assert save_all(states, storage, exclude=patterns) == [None, None]
    live: dict[str, Any] = {"w": torch.zeros(4), "own": {"r": torch.zeros(2)}}

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("state", live, kind="tensors")
        ckpt.restore()

    assert in_world(1, storage, work) == [None]
    assert live["own"]["r"].tolist() == [0, 0]
    assert live["w"].tolist() == [1] * 4


def test_v5_fields_of_a_tree_are_excluded_with_all_below_them() -> None:
    states: list[Any] = [
        {"process": {"index": rank, "seen": torch.full((2,), rank)}, "n": [1, {2: "a"}]}
        for rank in range(2)
    ]
    options: dict[str, Any] = {"kind": "tree", "sharing": ss.REPLICATED}
    assert refused(save_all(states, validate="tensor", **options)).path == "process.index"
    assert save_all(states, exclude=["process"], **options) == [None, None]
    assert refused(save_all(states, exclude=["process.index"], validate="tensor", **options))
    states[1]["n"][1][2] = "b"
    error = refused(save_all(states, exclude=["process"], validate="tensor", **options))
    assert error.path == "n.1.2"


def test_buffers_of_modules_are_not_compared_and_come_from_the_lowest_rank() -> None:
    storage = MemoryStorage()

    def work(rank: int, ckpt: ss.Checkpointer) -> float:
        live = nn.Sequential(nn.BatchNorm1d(3))
        means: Any = live[0].running_mean
        means.fill_(rank + 1.0)
        ckpt.add("model", live)
        if ckpt.restore() is None:
            ckpt.save(1).wait()
        return float(means[0])

    assert in_world(2, storage, work) == [1.0, 2.0]
    assert in_world(2, storage, work) == [1.0, 1.0]


# -- V6: optional components -----------------------------------------------------------------------


class Raises:
    """An object that cannot tell its state."""

    def state_dict(self) -> dict[str, Any]:
        raise OSError("no state")

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_optional(
    states: Sequence[Any],
    storage: MemoryStorage,
    **options: Any,  # noqa: ANN401 - of add
) -> list[Any]:
    """Save a component that must be there and one that need not."""

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("model", {"w": torch.ones(3)})
        ckpt.add("extra", states[rank], required=False, sharing=ss.REPLICATED, **options)
        ckpt.save(1).wait()

    return in_world(len(states), storage, work)


CASES: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "values": ([{"n": 1}, {"n": 1}, {"n": 2}], {"validate": "tensor"}, "n differs: trainer/0"),
    "quick": ([{"n": 1}, {"n": 2}], {}, "it differs: trainer/0 against trainer/1"),
    "tensors": (
        [{"w": torch.ones(2)}, {"w": torch.zeros(2)}],
        {"kind": "tensors", "validate": "tensor"},
        "w differs",
    ),
    "keys": ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], {"kind": "tensors"}, "the same keys"),
    "raises": ([{"n": 1}, Raises()], {}, "could not be captured: no state"),
    "lowest raises": ([Raises(), {"n": 1}], {}, "trainer/0: component extra could not"),
    "no codec": ([{"n": object()}, {"n": object()}], {"kind": "tree"}, "a type that a codec knows"),
}


@pytest.mark.parametrize("case", CASES)
def test_v6_an_optional_component_that_fails_is_left_out_on_all_and_recorded(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    states, options, reason = CASES[case]
    storage = MemoryStorage()
    if case == "no codec":
        states = [Late(one) for one in states]
        options = {}
    with caplog.at_level(logging.WARNING, logger="stepseal"):
        assert save_optional(states, storage, **options) == [None] * len(states)
    warned = [r for r in caplog.records if "goes on without extra" in r.getMessage()]
    assert len(warned) == len(states)
    manifest = manifest_of(storage)
    assert [entry.name for entry in manifest.components] == ["model"]
    assert reason in manifest.left_out["extra"]

    def work(_: int, ckpt: ss.Checkpointer) -> str:
        ckpt.add("model", {"w": torch.zeros(3)})
        ckpt.add("extra", {"n": 0}, required=False, sharing=ss.REPLICATED)
        restored = ckpt.restore()
        assert restored is not None
        return restored.report["extra"]

    for report in in_world(2, storage, work):
        assert report.startswith("left as it was (if-present, and not in the step; the save left")
        assert reason in report


class Late:
    """An object whose state shows only when it is asked."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_v6_an_optional_component_that_is_equal_is_saved_and_restored() -> None:
    storage = MemoryStorage()
    assert save_optional([{"n": 1}, {"n": 1}], storage) == [None, None]
    manifest = manifest_of(storage)
    assert {e.name: e.required for e in manifest.components} == {"extra": False, "model": True}
    assert manifest.left_out == {}


def test_v6_what_was_left_out_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "root")

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        with ckpt:
            ckpt.add("model", {"w": torch.ones(3)})
            ckpt.add("extra", {"n": rank}, required=False, sharing=ss.REPLICATED)
            ckpt.save(1).wait()

    World(2, lambda _: LocalStorage.create(root)).run(work)
    print_step(describe_step(root, None, tensors=False))
    assert "left out       extra: component extra: the ranks of the job" in capsys.readouterr().out
    assert ss.open(root).step(1).verify() == ()


def test_v6_a_required_component_that_raises_fails_all() -> None:
    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("extra", Raises() if rank else {"n": 1}, sharing=ss.REPLICATED)
        ckpt.save(1).wait()

    assert [type(one) for one in in_world(2, MemoryStorage(), work)] == [ParticipantFailed] * 2


# -- bad input -------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"validate": "some"}, "validate: expected one of 'none', 'warn', 'quick', 'tensor', 'full'"),
    ({"validate": 1}, "validate: expected one of"),
    ({"exclude": "state"}, "exclude: expected a list of patterns"),
    ({"exclude": [1]}, "exclude: expected a list of patterns"),
    ({"exclude": [""]}, "exclude: expected a list of patterns"),
    ({"required": "no"}, "required: expected True or False"),
    ({"validate": "full", "required": False}, "nothing can be left out"),
    ({"validate": "quick", "sharing": ss.PER_RANK}, "no replicas. Leave validate out"),
    ({"validate": "quick", "sharing": ss.GLOBAL}, "no replicas. Leave validate out"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_bad_rules_are_refused_when_they_are_declared(options: dict[str, Any], text: str) -> None:
    for error in save_all(
        [{"w": 1}, {"w": 1}], kind="tree", **({"sharing": ss.REPLICATED} | options)
    ):
        assert isinstance(error, InvalidInput)
        assert text in str(error)
