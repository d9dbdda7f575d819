"""What `add` takes and refuses, and what is found out before the first training step."""

from __future__ import annotations

import copy
import logging
import random
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.components._roundtrip import world
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

import stepseal as ss
from stepseal.components import RNG
from stepseal.components._capture import capture
from stepseal.components._registry import Registry
from stepseal.components._tensors import TensorDictComponent
from stepseal.errors import InvalidInput, StateMismatch, UnsupportedState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class _Data(Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return index


def _add(state: object, kind: Any = None, name: str = "part") -> Registry:  # noqa: ANN401 - bad too
    registry = Registry()
    registry.add(name, state, sharing=None, kind=kind, topology=world(1))
    return registry


def _model() -> torch.nn.Module:
    return torch.nn.Linear(2, 1)


def _sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(_model().parameters(), lr=0.1, momentum=0.9)


SNAPSHOTS: dict[str, tuple[Callable[[], object], str]] = {
    "optimizer": (lambda: _sgd().state_dict(), "the optimizer itself"),
    "scheduler": (lambda: lr_scheduler.StepLR(_sgd(), 2).state_dict(), "the LR scheduler itself"),
    "plateau": (
        lambda: lr_scheduler.ReduceLROnPlateau(_sgd()).state_dict(),
        "the LR scheduler itself",
    ),
    "chained": (
        lambda: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(_sgd())]).state_dict(),
        "the LR scheduler itself",
    ),
    "module": (lambda: _model().state_dict(), r"the module itself.*kind='tensors'"),
    "averaged weights": (lambda: copy.deepcopy(_model().state_dict()), "kind='tensors'"),
}


@pytest.mark.parametrize(("make", "advice"), SNAPSHOTS.values(), ids=SNAPSHOTS)
@pytest.mark.parametrize("kind", [None, "tree"])
def test_snapshots_are_refused_and_the_object_is_asked_for(
    make: Callable[[], object], advice: str, kind: str | None
) -> None:
    with pytest.raises(InvalidInput, match=rf"state_dict\(\).*{advice}"):
        _add(make(), kind)


def test_averaged_weights_are_tensors_as_the_message_says() -> None:
    average = copy.deepcopy(_model().state_dict())
    (component,) = _add(average, "tensors").components()
    assert isinstance(component, TensorDictComponent)


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        (torch.Generator(), r"RNG\(torch=\[generator\]\)"),
        (np.random.default_rng(0), r"RNG\(numpy=\[generator\]\)"),
        (np.random.RandomState(0), r"RNG\(numpy=\[generator\]\)"),
        (DataLoader(_Data()), "StatefulDataLoader"),
    ],
)
def test_objects_with_a_better_way_in_are_told_it(state: object, advice: str) -> None:
    with pytest.raises(InvalidInput, match=advice):
        _add(state)


def test_the_better_way_in_for_generators_works() -> None:
    _add(RNG(torch=[torch.Generator()], numpy=[np.random.default_rng(0)]))


NEVER: dict[str, tuple[Callable[[], object], str]] = {
    "optimizers": (lambda: [_sgd()], r"add\('part\.0', \.\.\.\)"),
    "modules": (lambda: {"G": _model()}, r"add\('part\.G', \.\.\.\)"),
    "scheduler": (lambda: {"a b": lr_scheduler.StepLR(_sgd(), 1)}, r"add\('part\.a_b', \.\.\.\)"),
    "function": (lambda: {"f": len}, "look it up after the restore"),
    "class": (lambda: deque([int]), "look it up after the restore"),
    "loader": (lambda: {"l": DataLoader(_Data())}, "StatefulDataLoader"),
    "unknown": (lambda: {"x": object()}, r"stepseal\.register"),
}


@pytest.mark.parametrize(("make", "advice"), NEVER.values(), ids=NEVER)
def test_what_can_never_be_saved_is_told_at_add(make: Callable[[], object], advice: str) -> None:
    with pytest.raises(UnsupportedState, match=advice):
        _add(make())


def test_the_advice_for_a_list_of_optimizers_works() -> None:
    registry = Registry()
    for name in ("optimizers.0", "optimizers.1"):
        registry.add(name, _sgd(), sharing=None, kind=None, topology=world(1))
    assert registry.names() == ("optimizers.0", "optimizers.1")


@pytest.mark.parametrize("first", ["model", "ema"])
def test_a_submodule_with_the_name_of_a_component_is_told_at_add(first: str) -> None:
    net = torch.nn.ModuleDict({"ema": _model()})
    parts: dict[str, object] = {"model": net, "ema": _model()}
    registry = _add(parts.pop(first), name=first)
    ((name, state),) = parts.items()
    with pytest.raises(InvalidInput, match="another name"):
        registry.add(name, state, sharing=None, kind=None, topology=world(1))
    assert registry.names() == (first,)
    registry.add("average", _model(), sharing=None, kind=None, topology=world(1))


class Loader:
    """Draws from the global streams when it is asked for its state, as torchdata's do."""

    def __init__(self) -> None:
        self._iterator: object = None
        self.asked = 0

    def __iter__(self) -> Any:  # noqa: ANN401 - never used
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        return {"seed": random.random(), "torch": float(torch.rand(1)), "bad": object()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def test_trees_that_were_never_encoded_are_tried_out() -> None:
    held: dict[str, Any] = {}
    registry = _add((lambda: held["x"], print))
    registry.check_savable(world(1))  # the state is not there yet
    held["x"] = _model()
    for first_step in (False, True):
        with pytest.raises(UnsupportedState, match=r"add\('part', \.\.\.\)"):
            registry.check_savable(world(1), first_step=first_step)
    registry.check_savable(world(1), first_step=True)  # once


def test_a_loader_is_asked_only_once_it_is_under_way_and_no_stream_moves() -> None:
    loader = Loader()
    registry = _add(loader)
    for first_step in (False, True):
        registry.check_savable(world(1), first_step=first_step)
    assert loader.asked == 0
    loader._iterator = iter(())
    registry = _add(loader)
    expected = random.getstate(), torch.get_rng_state().tolist()
    with pytest.raises(UnsupportedState, match="bad"):
        registry.check_savable(world(1), first_step=True)
    assert loader.asked == 1
    assert (random.getstate(), torch.get_rng_state().tolist()) == expected


def test_restore_and_the_first_step_tell_what_could_never_be_saved(tmp_path: Path) -> None:
    held: dict[str, Any] = {"x": {"G": _model()}}
    with ss.Checkpointer(tmp_path, save=ss.every(steps=500)) as ckpt:
        ckpt.add("models", (lambda: held["x"], print))
        with pytest.raises(UnsupportedState, match=r"'models\.G'"):
            ckpt.restore()
        held["x"] = 1
        ckpt.restore()
        held["x"] = object()
        with pytest.raises(UnsupportedState):
            ckpt.step(1)


def test_a_pair_of_tensors_is_filled_and_handed_to_set() -> None:
    live: dict[str, Any] = {"net": {"w": torch.ones(2)}, "n": 3}
    taken: list[Any] = []
    (component,) = _add((lambda: live, taken.append), "tensors").components()
    captured = capture(component, world(1), None)
    assert [one.key for one in captured.tensors] == ["net.w"]
    assert captured.kind == "tensors"
    with pytest.raises(InvalidInput, match=r"\(get, set\) pair"):
        _add(3, "tensors")


def test_a_pair_of_tensors_comes_back(tmp_path: Path) -> None:
    class Agent:
        def __init__(self, value: float) -> None:
            self.nets: dict[str, Any] = {"q": {"w": torch.full((2,), value)}, "updates": int(value)}

        def take(self, nets: Any) -> None:  # noqa: ANN401 - as it was given
            self.nets = nets

    with ss.Checkpointer(tmp_path) as ckpt:
        agent = Agent(5)
        ckpt.add("agent", (lambda: agent.nets, agent.take), kind="tensors")
        ckpt.save(1)
    with ss.Checkpointer(tmp_path) as ckpt:
        again = Agent(0)
        weights = again.nets["q"]["w"]
        ckpt.add("agent", (lambda: again.nets, again.take), kind="tensors")
        ckpt.restore()
    assert again.nets["q"]["w"] is weights
    assert again.nets == {"q": {"w": weights}, "updates": 5}
    assert weights.tolist() == [5, 5]
    assert set(ss.open(tmp_path).step(1).tensors("*")) == {"agent.q.w"}


@pytest.mark.parametrize("at_add", [{}, {"w": torch.zeros(1)}])
@pytest.mark.parametrize("live", [{}, {"w": torch.zeros(2)}, {"v": 1}])
def test_a_dict_comes_back_whatever_it_holds_at_the_moment(
    tmp_path: Path, at_add: dict[str, Any], live: dict[str, Any]
) -> None:
    first, live = dict(at_add), copy.deepcopy(live)
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("ema", first)
        first["w"] = torch.ones(2)
        ckpt.save(1)
    if at_add and "v" in live:  # tensors are strict
        with ss.Checkpointer(tmp_path) as ckpt:
            ckpt.add("ema", live)
            with pytest.raises(StateMismatch, match="v: missing in the checkpoint"):
                ckpt.restore()
        return
    for step in (1, 2):  # and the name keeps its kind
        with ss.Checkpointer(tmp_path) as ckpt:
            ckpt.add("ema", live)
            ckpt.restore()
            assert list(live) == ["w"]
            assert live["w"].tolist() == [1, 1]
            ckpt.save(step + 1)
        live.clear()
    has_tensors = {bool(ss.open(tmp_path).step(step).tensor_names()) for step in (1, 2, 3)}
    assert has_tensors == {bool(at_add)}


def test_an_empty_dict_does_not_guess_how_tensors_were_nested(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("ema", {"layer": {"w": torch.ones(1)}}, kind="tensors")
        ckpt.save(1)
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("ema", {})
        with pytest.raises(StateMismatch, match=r"layer\.w.*kind='tree'"):
            ckpt.restore()


def test_a_deque_is_a_component(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("window", deque([1.0, 2.0], maxlen=5))
        ckpt.save(np.int64(1))  # type: ignore[arg-type]
    with ss.Checkpointer(tmp_path) as ckpt:
        live: deque[float] = deque(maxlen=5)
        ckpt.add("window", live)
        restored = ckpt.restore(np.int32(1))  # type: ignore[arg-type]
        assert restored is not None
        assert type(restored.step) is int
        ckpt.step(np.int64(2))  # type: ignore[arg-type]
    assert live == deque([1.0, 2.0], maxlen=5)


def test_an_ordered_dict_of_the_user_is_no_snapshot() -> None:
    _add(OrderedDict(a=1))
    _add({"state": {}, "param_groups": [], "mine": 1})
    _add({"last_epoch": 3})


@pytest.mark.parametrize(
    ("broadcast", "buffers", "warns"),
    [(False, True, True), (True, True, False), (False, False, False)],
)
def test_buffers_that_ddp_does_not_broadcast_are_told_when_the_module_is_added(
    broadcast: bool, buffers: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    module: Any = nn.BatchNorm1d(2) if buffers else nn.Linear(2, 2)
    module.broadcast_buffers = broadcast
    for size in (1, 2):
        registry = Registry()
        with caplog.at_level(logging.WARNING, logger="stepseal"):
            registry.add("model", module, sharing=None, kind=None, topology=world(size))
        assert ("add('model_buffers'" in caplog.text) is (warns and size == 2)
