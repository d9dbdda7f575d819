"""A reader beside a prune: a whole step, or `StepNotFound`; never damage that is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import stepseal as ss
from stepseal.steps import PosixSteps
from stepseal.steps._catalog import read_step
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import ReadHandle, Storage

READS: dict[str, Callable[[ss.Step], object]] = {
    "value": lambda step: step.value("progress"),
    "tensors": lambda step: step.tensors()["weight"].tolist(),
    "tensor_names": lambda step: step.tensor_names(),
    "verify": lambda step: step.verify(),
}


class _Absent:
    """A step that a prune takes out of its place for the time of one read."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.num_times = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the verb
        return getattr(self._inner, name)

    def open_read(self, key: str) -> ReadHandle:
        if self.num_times or not key.startswith("step-1/parts/"):
            return self._inner.open_read(key)
        self.num_times += 1
        self._inner.rename("step-1", ".stepseal/trash/step-1")
        try:
            return self._inner.open_read(key)
        finally:
            self._inner.rename(".stepseal/trash/step-1", "step-1")


@pytest.fixture
def memory() -> MemoryStorage:
    """A root with one step."""
    memory = MemoryStorage()

    def work(_rank: int, checkpointer: ss.Checkpointer) -> None:
        with checkpointer:
            checkpointer.add("model", {"weight": torch.ones(3)}, kind="tensors")
            checkpointer.add("progress", {"seen": 7})
            checkpointer.save(1).wait()

    World(1, lambda _: memory).run(work)
    return memory


def _step(memory: MemoryStorage, storage: Any) -> ss.Step:  # noqa: ANN401 - wrapped
    manifest = read_step(memory, 1, None).manifest
    assert manifest is not None
    return ss.Step(PosixSteps(storage), "/root", manifest)


@pytest.mark.parametrize("name", READS)
def test_a_step_that_is_put_back_is_read_whole(name: str, memory: MemoryStorage) -> None:
    absent = _Absent(memory)
    assert READS[name](_step(memory, absent)) == READS[name](_step(memory, memory))
    assert absent.num_times == 1
    assert memory.list_dir(".stepseal/leases") == ()


@pytest.mark.parametrize("name", READS)
def test_a_step_that_was_pruned_is_not_found(name: str, memory: MemoryStorage) -> None:
    step = _step(memory, memory)
    memory.rename("step-1", ".stepseal/trash/step-1")
    with pytest.raises(ss.errors.StepNotFound, match="pruned or superseded"):
        READS[name](step)
