"""A forked child never speaks in the name of its parent: it closes what it inherited, no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests._forks import in_child
from torch.utils.data import DataLoader, TensorDataset

import stepseal as ss
from stepseal.process import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CALLS: dict[str, Callable[[ss.Checkpointer, ss.PendingSave], object]] = {
    "add": lambda ckpt, _: ckpt.add("more", {"n": 1}),
    "restore": lambda ckpt, _: ckpt.restore(),
    "step": lambda ckpt, _: ckpt.step(2),
    "save": lambda ckpt, _: ckpt.save(2),
    "publish": lambda ckpt, _: ckpt.publish(2, components=["counters"]),
    "prewarm": lambda ckpt, _: ckpt.prewarm(),
    "with": lambda ckpt, _: ckpt.__enter__(),
    "wait": lambda _, pending: pending.wait(),
    "done": lambda _, pending: pending.done(),
}


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[tuple[ss.Checkpointer, ss.PendingSave]]:
    with ss.Checkpointer(tmp_path / "run") as ckpt:
        ckpt.add("counters", {"n": 1})
        ckpt.restore()
        pending = ckpt.save(1)
        pending.wait()
        yield ckpt, pending


@pytest.mark.parametrize("call", CALLS)
def test_every_call_of_a_child_is_refused_at_once(call: str, saved: Any) -> None:  # noqa: ANN401
    ckpt, pending = saved
    assert in_child(lambda: CALLS[call](ckpt, pending)) == "InvalidInput"
    assert ckpt.save(2).wait().step == 2


def test_a_handle_without_the_check_answers_in_a_child(
    saved: tuple[ss.Checkpointer, ss.PendingSave], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Home, "is_here", property(lambda _: True))
    assert in_child(saved[1].done) == "True"


def test_the_refusal_says_which_process_may_call(
    saved: tuple[ss.Checkpointer, ss.PendingSave],
) -> None:
    ckpt, _ = saved

    def message() -> str:
        try:
            ckpt.step(2)
        except ss.errors.InvalidInput as error:
            return str(error)
        return ""

    assert "this Checkpointer belongs to process" in in_child(message)


def test_a_child_that_leaves_the_block_ends_nothing(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("weights", {"w": torch.ones(1 << 16)})
        ckpt.restore()
        ckpt.save(1)

        def leave() -> str:
            with ckpt:
                return "never gets here"

        assert in_child(leave) == "InvalidInput"
        assert in_child(lambda: ckpt.__exit__(None, None, None)) == "None"
        assert in_child(ckpt.close) == "None"
        assert ckpt.save(2).wait().step == 2


@pytest.mark.parametrize("is_naive", [False, True])
def test_a_child_that_leaves_a_block_of_a_publication_keeps_its_lease(
    tmp_path: Path, is_naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("weights", {"w": torch.ones(8)})
        ckpt.restore()
        ckpt.publish(1, components=["weights"]).wait()
    if is_naive:
        monkeypatch.setattr(Home, "is_here", property(lambda _: True))
    leases = tmp_path / ".stepseal" / "leases"
    with ss.open(tmp_path).publication(1) as found:
        assert len(list(leases.iterdir())) == 1
        assert in_child(lambda: found.__exit__(None, None, None)) == "None"
        assert len(list(leases.iterdir())) == (0 if is_naive else 1)


@pytest.mark.slow
def test_workers_of_a_loader_are_not_hurt(tmp_path: Path) -> None:
    loader = DataLoader(
        TensorDataset(torch.arange(8.0)), batch_size=2, num_workers=2,
        multiprocessing_context="fork",
    )  # fmt: skip
    with ss.Checkpointer(tmp_path, save=ss.every(steps=1)) as ckpt:
        state = {"sum": torch.zeros(())}
        ckpt.add("state", state)
        ckpt.restore()
        for step, (batch,) in enumerate(ckpt.batches(loader), start=1):
            state["sum"] += batch.sum()
            ckpt.step(step)
    assert ss.open(tmp_path).steps() == (1, 2, 3, 4)


def test_a_child_makes_a_checkpointer_of_its_own(tmp_path: Path) -> None:
    def save() -> int:
        with ss.Checkpointer(tmp_path / "child") as own:
            own.add("counters", {"n": 1})
            return own.save(1).wait().step

    with ss.Checkpointer(tmp_path / "parent") as ckpt:
        ckpt.add("counters", {"n": 1})
        ckpt.save(1).wait()
        assert in_child(save) == "1"
        assert ckpt.save(2).wait().step == 2
