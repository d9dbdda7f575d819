"""Asynchronous saves: what was captured is what is written, and what fails behind is heard of."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from tests.session._states import Net, adamw, every_kind, train

import stepseal as ss
from stepseal.protocol import ParticipantDriver, Write
from stepseal.protocol._messages import Aborted, Welcome
from stepseal.session._saving import capture_all
from stepseal.storage import LocalStorage
from stepseal.testing import (
    Fail,
    Fault,
    FaultyStorage,
    MemoryStorage,
    World,
    assert_identical,
    find_difference,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WAIT_S = 30.0


class Gate:
    """Lets nobody write payload before it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def __call__(self, index: int, operation: str, key: str) -> None:
        if operation == "create_file" and (key.endswith(".distcp") or "/components/" in key):
            assert self._open.wait(WAIT_S)


def save_then_overwrite(root: Path) -> dict[str, torch.Tensor]:
    """Save while the disk stands still, overwrite all that was saved, then let it write."""
    gate = Gate()
    tensors, tree = every_kind(1), {"buffer": [torch.arange(5.0)], "count": 1}
    world = World(1, lambda _: FaultyStorage(LocalStorage.create(str(root)), before=gate))
    with world.checkpointer(0) as checkpointer:
        checkpointer.add("model", tensors)
        checkpointer.add("tree", tree)
        pending = checkpointer.save(1)
        assert not pending.done()
        for tensor in (*tensors.values(), tree["buffer"][0]):  # type: ignore[index]
            tensor.untyped_storage().fill_(0x5A)
        tree["count"] = 2
        gate.open()
        pending.wait(WAIT_S)
    return ss.open(root).step(1).tensors()


def test_what_is_overwritten_after_save_returns_is_stored_as_it_was(tmp_path: Path) -> None:
    assert_identical(every_kind(1), save_then_overwrite(tmp_path))
    tree = ss.open(tmp_path).step(1).value("tree")
    assert_identical({"buffer": [torch.arange(5.0)], "count": 1}, tree)


def test_a_save_without_a_private_copy_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views(components: Any, topology: Any, _: object, step: int, **rest: Any) -> Any:  # noqa: ANN401
        return capture_all(components, topology, None, step, **rest)

    monkeypatch.setattr("stepseal.session._save_call.capture_all", views)
    assert find_difference(every_kind(1), save_then_overwrite(tmp_path)) is not None


def test_memory_is_used_again_and_never_too_early(tmp_path: Path) -> None:
    state = {"x": torch.zeros(1000)}
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("model", state)
        for step in range(1, 6):
            state["x"].fill_(step)
            checkpointer.save(step)
            state["x"].fill_(-step)
    run = ss.open(tmp_path)
    assert [run.step(n).tensors()["x"].tolist() for n in run.steps()] == [
        [step] * 1000 for step in range(1, 6)
    ]


@pytest.mark.slow
def test_sync_and_async_store_the_same_bytes(tmp_path: Path) -> None:
    modes: tuple[Literal["sync", "async"], ...] = ("sync", "async")
    stored = []
    for mode in modes:
        model = Net(1)
        optimizer = adamw(model)
        train(model, optimizer, 0)
        with ss.Checkpointer(tmp_path / mode, mode=mode) as checkpointer:
            checkpointer.add("model", model)
            checkpointer.add("optimizer", optimizer)
            checkpointer.add("odd", every_kind(1))
            checkpointer.add("tree", {"array": torch.ones(3), "text": "x"})
            checkpointer.save(1)
        step = tmp_path / mode / "step-1"
        stored.append(
            {
                str(path.relative_to(step)): path.read_bytes()
                for path in sorted(step.rglob("*"))
                if path.is_file() and path.name not in ("manifest.json", "0.json")
            }
        )
    assert stored[0] == stored[1]
    assert any(name.endswith(".distcp") for name in stored[0])
    assert any(name.startswith("components/tree/") for name in stored[0])


class Failure:
    """How one participant's background write failed, as one participant saw it."""

    def __init__(self, step: int, error: ss.errors.CheckpointError) -> None:
        self.seen = (step, type(error), error.errno, tuple(error.failures))
        self.message = str(error)


def _train_on(checkpointer: ss.Checkpointer, first: int) -> Failure:
    """Go on training until the failure shows."""
    deadline = time.monotonic() + WAIT_S
    for step in itertools.count(first):
        assert time.monotonic() < deadline, "the failure never showed"
        try:
            checkpointer.step(step)
        except ss.errors.CheckpointError as error:
            return Failure(step, error)
    raise AssertionError


def _save_next(checkpointer: ss.Checkpointer, first: int) -> Failure:
    with pytest.raises(ss.errors.ParticipantFailed) as caught:
        checkpointer.save(first)
    return Failure(first, caught.value)


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("go_on", [_train_on, _save_next])
@pytest.mark.parametrize("where", ["mine/trainer/{}.safetensors", "parts/trainer/{}.json"])
def test_a_failure_behind_raises_for_all_at_the_same_step(
    broken: int, go_on: Callable[[ss.Checkpointer, int], Failure], where: str
) -> None:
    memory = MemoryStorage()
    suffix = where.format(broken)

    def fails(operation: str, key: str) -> bool:
        return operation == "write" and key.endswith(suffix)

    def storage(rank: int) -> FaultyStorage:
        plan = [Fault(fails, Fail(errno.ENOSPC))] if rank == broken else []
        return FaultyStorage(memory, plan)

    def work(rank: int, checkpointer: ss.Checkpointer) -> Failure:
        state = {"x": torch.full((2000,), 1.0 + rank)}
        with checkpointer:
            checkpointer.add("mine", state, sharing=ss.PER_RANK)
            checkpointer.add("model", {"w": torch.ones(3000)})
            checkpointer.save(1)
            failure = go_on(checkpointer, 2)
            again = checkpointer.save(failure.seen[0])
            assert again.wait(WAIT_S).step == failure.seen[0]
        return failure

    world = World(2, storage)
    first, second = world.run(work)
    assert first.seen == second.seen
    assert first.message == second.message
    _, kind, number, failed = first.seen
    assert (kind, number, failed) == (
        ss.errors.ParticipantFailed,
        errno.ENOSPC,
        (f"trainer/{broken}",),
    )
    assert "Nothing was committed" in first.message
    names = [entry.name for entry in memory.list_dir("") if entry.name.startswith("step-")]
    assert names == [f"step-{first.seen[0]}"]


class Line:
    """A line over which everything arrived at once, before the participant looked."""

    def __init__(self, *messages: Any) -> None:  # noqa: ANN401 - messages of any kind
        self._messages = messages

    def start(self, on_message: Callable[[Any], None]) -> None:
        for message in self._messages:
            on_message(message)

    def send(self, message: object) -> None:
        pass

    def close(self) -> None:
        pass


def test_an_order_counts_even_if_the_save_failed_before_it_was_seen() -> None:
    """Else one participant would raise in this call, and the others in their next."""
    order = Write(1, "a" * 32, ".stepseal/staging/step-1.1.a", "nonce", 0)
    aborted = Aborted(1, 1, "participant_failed", "save of step 1: failed", {})
    slow = ParticipantDriver("trainer/0", Line(Welcome(), order, aborted), ss.Deadlines())
    assert slow.wait_write(slow.new_call()) == order
    assert slow.ended(1)
    never = ParticipantDriver("trainer/0", Line(Welcome(), aborted), ss.Deadlines())
    assert never.wait_write(never.new_call()) is None


def _outcomes(rank: int, checkpointer: ss.Checkpointer) -> list[str]:
    """Save four steps and close; return what every call came to."""
    checkpointer.add("mine", {"x": torch.ones(5), "rank": rank}, sharing=ss.PER_RANK)
    checkpointer.add("model", {"w": torch.ones(7)})
    calls: list[Callable[[], object]] = [partial(checkpointer.save, step) for step in range(1, 5)]
    seen = []
    for call in (*calls, checkpointer.close):
        try:
            call()
        except ss.errors.CheckpointError as error:
            seen.append(f"{type(error).__name__}: {error}")
        else:
            seen.append("")
    return seen


def faulty_world(broken: int, plan: Sequence[Fault]) -> tuple[World, FaultyStorage]:
    memory = MemoryStorage()
    faulty = FaultyStorage(memory, plan)
    return World(2, lambda rank: faulty if rank == broken else memory), faulty


@pytest.mark.slow
@pytest.mark.parametrize("broken", [0, 1])
def test_wherever_storage_fails_all_participants_see_the_same(broken: int) -> None:
    """One fault at each operation of the job, one job after the other."""
    world, counted = faulty_world(broken, [])
    world.run(_outcomes)
    num_failed = 0
    for operation in counted.count.operations():
        try:
            world, _ = faulty_world(broken, [Fault(operation.index, Fail(errno.EIO))])
        except ss.errors.StorageUnavailable:
            continue  # the root could not even be made
        first, second = world.run(_outcomes)
        assert first == second, operation
        failed = [text for text in first if text]
        assert len(failed) <= 1, operation
        num_failed += len(failed)
    assert num_failed > 10
