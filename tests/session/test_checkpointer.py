from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._states import Net, adamw, train, whole_state
from torch import nn

import stepseal as ss
from stepseal.storage import LocalStorage
from stepseal.testing import Fail, Fault, FaultyStorage, World, assert_identical, snapshot

if TYPE_CHECKING:
    from pathlib import Path


def states(value: float = 0.0) -> dict[str, Any]:
    return {"model": {"w": torch.full((3,), value)}, "counters": {"value": value}}


def checkpointer_of(root: Path, state: dict[str, Any], **options: Any) -> ss.Checkpointer:  # noqa: ANN401
    checkpointer = ss.Checkpointer(root, **options)
    for name, part in state.items():
        checkpointer.add(name, part)
    return checkpointer


def set_all(state: dict[str, Any], value: float) -> None:
    state["model"]["w"].fill_(value)
    state["counters"]["value"] = value


def save_steps(root: Path, *steps: int) -> None:
    state = states()
    with checkpointer_of(root, state) as checkpointer:
        for step in steps:
            set_all(state, float(step))
            checkpointer.save(step)


def test_saves_and_restores_in_place(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    state = states()
    tensor, counters = state["model"]["w"], state["counters"]
    with checkpointer_of(tmp_path, state) as checkpointer:
        restored = checkpointer.restore()
    assert restored is not None
    assert (restored.step, restored.path) == (2, str(tmp_path / "step-2"))
    assert (restored.skipped, set(restored.report)) == ({}, {"model", "counters"})
    assert tensor.tolist() == [2.0] * 3
    assert counters == {"value": 2.0}


def test_restore_of_a_step_takes_that_one_and_goes_on_from_it(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    state = states()
    with checkpointer_of(tmp_path, state) as checkpointer:
        restored = checkpointer.restore(2)
        assert restored is not None
        assert restored.step == 2
        assert state["counters"] == {"value": 2.0}
        with pytest.raises(ss.errors.StepExists):
            checkpointer.save(1)
        set_all(state, 33.0)
        checkpointer.save(3).wait()
    run = ss.open(tmp_path)
    assert run.steps() == (1, 2, 3)
    assert run.step(3).value("counters") == {"value": 33.0}
    parent = run.step(3).manifest.parent
    assert parent is not None
    assert parent.step == 2


def test_restore_of_a_missing_step_names_it(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    state = states(7.0)
    with checkpointer_of(tmp_path, state) as checkpointer:
        with pytest.raises(ss.errors.StepNotFound, match="step 5"):
            checkpointer.restore(5)
        assert state["counters"] == {"value": 7.0}
        assert checkpointer.restore() is not None


def test_restore_never_starts_fresh_by_itself(tmp_path: Path) -> None:
    with checkpointer_of(tmp_path / "empty", states()) as checkpointer:
        assert checkpointer.restore() is None
        checkpointer.save(1).wait()
    with checkpointer_of(tmp_path / "empty", states()) as checkpointer:
        with pytest.raises(ss.errors.NotRestored, match="restore"):
            checkpointer.save(2)
        assert checkpointer.restore(fresh=True) is None
        checkpointer.save(2).wait()
    with checkpointer_of(tmp_path / "empty", states()) as checkpointer:
        with pytest.raises(ss.errors.InvalidInput):
            checkpointer.restore(1, fresh=True)
        with pytest.raises(ss.errors.InvalidInput):
            checkpointer.restore(-1)


def test_restore_falls_back_over_a_damaged_step_and_says_why(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    (payload,) = (tmp_path / "step-2").glob("*.distcp")
    content = payload.read_bytes()
    payload.unlink()
    payload.write_bytes(content[:-1])
    state = states()
    with checkpointer_of(tmp_path, state) as checkpointer:
        restored = checkpointer.restore()
    assert restored is not None
    assert restored.step == 1
    assert list(restored.skipped) == ["step-2"]
    assert payload.name in restored.skipped["step-2"]
    assert state["model"]["w"].tolist() == [1.0] * 3


def test_restore_lists_all_differences_and_changes_nothing(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    other = {"model": {"w": torch.ones(4), "v": torch.ones(1)}, "extra": {"a": 1}}
    before = snapshot(other)
    with (
        checkpointer_of(tmp_path, other) as checkpointer,
        pytest.raises(ss.errors.CheckpointError) as caught,
    ):
        checkpointer.restore(1)
    for part in ("component extra", "component counters", "w: shape", "v: missing"):
        assert part in str(caught.value)
    assert not caught.value.tainted
    assert_identical(before, other)


@pytest.mark.slow
def test_prewarm_touches_memory_once_and_changes_nothing(tmp_path: Path) -> None:
    model = Net(1)
    optimizer = adamw(model)
    train(model, optimizer, 0)
    before = snapshot(whole_state(model, optimizer))
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("model", model)
        checkpointer.add("optimizer", optimizer)
        held = checkpointer.prewarm()
        assert held > 0
        assert checkpointer.prewarm() == held
        checkpointer.save(1)
        assert checkpointer.prewarm() == held
        checkpointer.save(2)
    assert_identical(before, whole_state(model, optimizer))
    assert ss.open(tmp_path).steps() == (1, 2)


def test_staging_memory_has_a_bound(tmp_path: Path) -> None:
    big = {"model": {"w": torch.zeros(1 << 20)}}
    with (
        checkpointer_of(tmp_path, big, max_staging_bytes=1 << 20) as checkpointer,
        pytest.raises(ss.errors.InvalidInput, match="max_staging_bytes"),
    ):
        checkpointer.save(1)
    assert ss.open(tmp_path).steps() == ()


def test_close_twice_is_close_once_and_afterwards_all_refuse(tmp_path: Path) -> None:
    checkpointer = checkpointer_of(tmp_path, states())
    checkpointer.save(1)
    checkpointer.close()
    checkpointer.close()
    assert ss.open(tmp_path).steps() == (1,)
    for call in (
        lambda: checkpointer.save(2),
        lambda: checkpointer.step(2),
        checkpointer.restore,
        checkpointer.prewarm,
        lambda: checkpointer.add("x", {}),
        checkpointer.__enter__,
    ):
        with pytest.raises(ss.errors.InvalidInput, match="closed"):
            call()


def save_and_raise(checkpointer: ss.Checkpointer) -> None:
    with checkpointer:
        checkpointer.save(1)
        raise LookupError("the body")


def test_an_exception_in_the_body_is_kept_and_the_save_in_flight_too(tmp_path: Path) -> None:
    checkpointer = checkpointer_of(tmp_path, states())
    with pytest.raises(LookupError, match="the body"):
        save_and_raise(checkpointer)
    assert ss.open(tmp_path).steps() == (1,)


def broken_storage(root: Path) -> FaultyStorage:
    def payload(operation: str, key: str) -> bool:
        return operation == "write" and key.endswith(".distcp")

    return FaultyStorage(LocalStorage.create(str(root)), [Fault(payload, Fail(5), sticky=True)])


def test_a_failure_behind_does_not_hide_the_exception_in_the_body(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = World(1, lambda _: broken_storage(tmp_path)).checkpointer(0)
    checkpointer.add("model", {"w": torch.ones(2)})
    with pytest.raises(LookupError, match="the body"), caplog.at_level(logging.ERROR):
        save_and_raise(checkpointer)
    assert "EIO" in caplog.text


def test_leaving_the_block_raises_a_failure_that_nobody_saw(tmp_path: Path) -> None:
    checkpointer = World(1, lambda _: broken_storage(tmp_path)).checkpointer(0)
    checkpointer.add("model", {"w": torch.ones(2)})
    with pytest.raises(ss.errors.ParticipantFailed, match="EIO"), checkpointer:
        checkpointer.save(1)
    seen = World(1, lambda _: broken_storage(tmp_path)).checkpointer(0)
    seen.add("model", {"w": torch.ones(2)})
    with seen:
        pending = seen.save(1)
        with pytest.raises(ss.errors.ParticipantFailed):
            pending.wait()


def test_two_checkpointers_in_one_process_keep_apart(tmp_path: Path) -> None:
    first, second = states(1.0), states(2.0)
    with (
        checkpointer_of(tmp_path / "a", first) as one,
        checkpointer_of(tmp_path / "b", second) as two,
    ):
        pending = [ckpt.save(step) for step in (1, 2) for ckpt in (one, two)]
        assert [p.wait().path.split("/")[-2:] for p in pending] == [
            ["a", "step-1"],
            ["b", "step-1"],
            ["a", "step-2"],
            ["b", "step-2"],
        ]
    for name, value in (("a", 1.0), ("b", 2.0)):
        step = ss.open(tmp_path / name).step(2)
        assert step.value("counters") == {"value": value}
        assert step.tensors()["w"].tolist() == [value] * 3


def test_the_older_of_two_jobs_on_one_root_gives_way(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    with (
        checkpointer_of(tmp_path, states()) as old,
        checkpointer_of(tmp_path, states()) as new,
    ):
        old.restore()
        new.restore()
        with pytest.raises(ss.errors.NotCurrent):
            old.save(2).wait()
        new.save(2).wait()
    assert ss.open(tmp_path).step(2).manifest.incarnation == 3


def test_step_saves_when_the_rule_says_so(tmp_path: Path) -> None:
    rule = ss.every(steps=4) | ss.every(steps=6)
    with checkpointer_of(tmp_path, states(), save=rule) as checkpointer:
        started = [
            step
            for step in range(13)
            if checkpointer.step(step, metrics={"loss": 1.0 / (step + 1)}) is not None
        ]
    assert started == [4, 6, 8, 12]
    run = ss.open(tmp_path)
    assert list(run.steps()) == started
    assert run.step(6).metrics == {"loss": 1.0 / 7}


def test_step_without_a_rule_saves_nothing(tmp_path: Path) -> None:
    with checkpointer_of(tmp_path, states()) as checkpointer:
        assert all(checkpointer.step(step) is None for step in range(5))
        with pytest.raises(ss.errors.InvalidInput):
            checkpointer.step(-1)
    assert ss.open(tmp_path).steps() == ()


def test_steps_grow(tmp_path: Path) -> None:
    with checkpointer_of(tmp_path, states(), mode="sync") as checkpointer:
        checkpointer.save(5)
        with pytest.raises(ss.errors.StepExists):
            checkpointer.save(4)
        for wrong in (-1, True, 1.0, "1", 2**53):
            with pytest.raises(ss.errors.InvalidInput):
                checkpointer.save(wrong)  # type: ignore[arg-type]
        checkpointer.save(6)
    assert ss.open(tmp_path).steps() == (5, 6)


def test_components_are_fixed_once_a_job_runs(tmp_path: Path) -> None:
    with checkpointer_of(tmp_path, {}) as checkpointer:
        with pytest.raises(ss.errors.InvalidInput, match="nothing to save"):
            checkpointer.save(1)
        checkpointer.add("model", nn.Linear(1, 1))
        with pytest.raises(ss.errors.InvalidInput, match="there already"):
            checkpointer.add("model", nn.Linear(1, 1))
        checkpointer.save(1)
        with pytest.raises(ss.errors.InvalidInput, match="fixed"):
            checkpointer.add("late", {})


def test_a_component_that_raises_fails_the_save_and_nothing_else(tmp_path: Path) -> None:
    trouble = threading.Event()

    def get() -> dict[str, int]:
        if trouble.is_set():
            raise LookupError("no state today")
        return {"a": 1}

    with checkpointer_of(tmp_path, {"odd": (get, lambda _: None)}) as checkpointer:
        trouble.set()
        with pytest.raises(ss.errors.ParticipantFailed, match=r"odd.*no state today"):
            checkpointer.save(1)
        trouble.clear()
        checkpointer.save(1).wait()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "later"}, "mode='later'"),
        ({"mode": None}, "mode=None"),
        ({"save": 500}, "every"),
        ({"save": "every 500"}, "every"),
    ],
)
def test_arguments_are_checked_before_any_disk_is_touched(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ss.errors.InvalidInput, match=told):
        ss.Checkpointer(tmp_path / "root", **options)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["connect_s", "capture_s", "write_s", "close_s", "lost_s"])
@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, True, "5"])
def test_deadlines_are_positive_numbers(name: str, wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(ss.errors.InvalidInput, match=f"deadlines: {name}: expected"):
        ss.Deadlines(**{name: wrong})


def test_a_participant_is_not_lost_between_two_heartbeats() -> None:
    with pytest.raises(ss.errors.InvalidInput, match="two heartbeats"):
        ss.Deadlines(heartbeat_s=5, lost_s=9)
    assert ss.Deadlines(heartbeat_s=5, lost_s=10).lost_s == 10


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("mine")
    with pytest.raises(ss.errors.CheckpointError):
        ss.Checkpointer(tmp_path / "root")
    assert (tmp_path / "root").read_text() == "mine"
