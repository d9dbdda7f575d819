"""Arguments and components that cannot be saved: an exact error on all ranks, nothing written."""

from __future__ import annotations

import re
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._bad_input import contents, outcomes, restored_value, save_steps, steps_of

import stepseal as ss
from stepseal.errors import (
    CheckpointError,
    InvalidInput,
    NotRestored,
    ParticipantFailed,
    StateMismatch,
    StepExists,
    StepNotFound,
    UnsupportedState,
)

if TYPE_CHECKING:
    from pathlib import Path

BAD_STEPS = (-1, True, False, 1.0, float("nan"), "1", b"1", None, 2**53, torch.tensor(1))
BAD_NAMES = (
    "", ".", "..", "../model", "a/b", "/model", "a\\b", ".hidden", "-model", "a b", "a\n", "a\0b",
    "modèle", "\uff4dodel", "a" * 65, "a:b", "a*", "~", "$HOME", "%2e%2e", None, 3, b"model",
)  # fmt: skip


@pytest.mark.parametrize("step", BAD_STEPS, ids=repr)
def test_what_is_no_step_number_is_refused(tmp_path: Path, step: Any) -> None:  # noqa: ANN401
    save_steps(tmp_path, 1)
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("counters", {"seen": 0})
        checkpointer.restore()
        before = contents(tmp_path)
        for call in (checkpointer.save, checkpointer.step):
            with pytest.raises(InvalidInput, match="expected an int from 0"):
                call(step)
        if step is not None:
            with pytest.raises(InvalidInput, match="expected an int from 0"):
                checkpointer.restore(step)
        assert contents(tmp_path) == before
        checkpointer.save(2).wait()


def test_a_committed_step_is_never_overwritten(tmp_path: Path) -> None:
    save_steps(tmp_path, 5)
    state = {"seen": -1}
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("counters", state)
        checkpointer.restore()
        before = contents(tmp_path)
        for step in (4, 0):
            with pytest.raises(StepExists, match="expected a step above 5"):
                checkpointer.save(step)
        state["seen"] = -2
        assert checkpointer.save(5).wait().step == 5  # it is there, and nothing is written
        assert contents(tmp_path) == before
        checkpointer.save(6).wait()


def test_a_step_that_only_storage_knows_is_not_overwritten(tmp_path: Path) -> None:
    save_steps(tmp_path, 5)
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("counters", {"seen": -1})
        assert checkpointer.restore(fresh=True) is None
        before = steps_of(tmp_path)
        checkpointer.save(5).wait()  # outside the new lineage: put aside, and kept
    (superseded,) = (tmp_path / ".stepseal" / "superseded").iterdir()
    assert {f"step-5/{name}": found for name, found in contents(superseded).items()} == before


def test_a_root_with_steps_must_be_restored_first(tmp_path: Path) -> None:
    before = save_steps(tmp_path, 1, 2)
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("counters", {"seen": 99})
        for step in (1, 2, 3):
            with pytest.raises(NotRestored, match=r"steps up to step-2 \(2 in all\)"):
                checkpointer.save(step).wait()
        assert contents(tmp_path) == before
        restored = checkpointer.restore()
        assert restored is not None
        checkpointer.save(3).wait()


def test_all_ranks_hear_that_a_root_was_not_restored(tmp_path: Path) -> None:
    def work(rank: int, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("counters", {"seen": rank}, sharing=ss.PER_RANK)
        checkpointer.save(1).wait()

    assert outcomes(tmp_path, work) == [None, None]
    before = contents(tmp_path)
    found = outcomes(tmp_path, work)
    assert [type(error) for error in found] == [NotRestored, NotRestored]
    assert contents(tmp_path) == before


def test_restore_of_a_step_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    before = save_steps(tmp_path, 1)
    state = {"seen": 77}
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("counters", state)
        with pytest.raises(StepNotFound, match="step 2"):
            checkpointer.restore(2)
        with pytest.raises(InvalidInput, match="one of the two"):
            checkpointer.restore(1, fresh=True)
        assert state == {"seen": 77}
        assert contents(tmp_path) == before


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_that_is_no_safe_path_is_refused(tmp_path: Path, name: Any) -> None:  # noqa: ANN401
    with ss.Checkpointer(tmp_path) as checkpointer:
        before = contents(tmp_path)
        with pytest.raises(InvalidInput, match="component name is not usable"):
            checkpointer.add(name, {"seen": 0})
        with pytest.raises(InvalidInput, match="no component was added"):
            checkpointer.save(1)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["a", "A9_.-", "0", "_x", "a.json", "con", "a" * 64, "step-1"])
def test_names_at_the_edge_come_back(tmp_path: Path, name: str) -> None:
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add(name, {"seen": 5})
        checkpointer.save(1).wait()
    state = {"seen": 0}
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add(name, state)
        assert checkpointer.restore() is not None
    assert state == {"seen": 5}


def test_a_component_is_added_once_and_before_the_first_save(tmp_path: Path) -> None:
    state = {"seen": 5}
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("counters", state)
        with pytest.raises(InvalidInput, match="is there already"):
            checkpointer.add("counters", {"seen": 6})
        with pytest.raises(InvalidInput, match="differs from 'counters' in case only"):
            checkpointer.add("Counters", {"seen": 7})
        for other in (3, "text", None, object(), {1, 2}, (1, 2)):
            with pytest.raises(InvalidInput, match="component 'other'"):
                checkpointer.add("other", other)
        checkpointer.save(1).wait()
        with pytest.raises(InvalidInput, match="fixed once save or restore was called"):
            checkpointer.add("late", {"seen": 8})
    assert restored_value(tmp_path) == (1, 5)


def test_after_close_every_call_is_refused(tmp_path: Path) -> None:
    before = save_steps(tmp_path, 1)
    checkpointer = ss.Checkpointer(tmp_path)
    checkpointer.add("counters", {"seen": 0})
    checkpointer.close()
    checkpointer.close()
    for call in (
        lambda: checkpointer.add("late", {}),
        lambda: checkpointer.restore(),
        lambda: checkpointer.save(2),
        lambda: checkpointer.step(2),
        lambda: checkpointer.__enter__(),
    ):
        with pytest.raises(InvalidInput, match="closed"):
            call()
    assert contents(tmp_path) == before


_UNKNOWN: dict[str, tuple[Any, str]] = {
    "object": ({"a": [1, {"b": object()}]}, '["a"][1]["b"]'),
    "function": ({"hook": print}, '["hook"]'),
    "lock": ({"a": (threading.Lock(),)}, '["a"][0]'),
    "generator": ({"a": iter(())}, '["a"]'),
    "class": ({"a": int}, '["a"]'),
    "in a deque": ({"a": deque([1, object()])}, '["a"][1]'),
    "subclass": ({"a": type("Sub", (dict,), {})()}, '["a"]'),
}


@pytest.mark.parametrize("kind", _UNKNOWN)
def test_state_that_no_codec_knows_is_named_by_its_path(tmp_path: Path, kind: str) -> None:
    value, path = _UNKNOWN[kind]
    state: dict[str, Any] = {"seen": 1}
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("counters", state)
        checkpointer.save(1).wait()
        before = steps_of(tmp_path)
        state.update(value)
        with pytest.raises(UnsupportedState) as raised:
            checkpointer.save(2)
        assert (raised.value.component, raised.value.path) == ("counters", path)
        assert path in str(raised.value)
        assert steps_of(tmp_path) == before
        for key in value:
            del state[key]
        checkpointer.save(3).wait()
    assert restored_value(tmp_path) == (3, 1)


class _Moody:
    """Raises in `state_dict` while `error` is set."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def state_dict(self) -> dict[str, int]:
        if self.error is not None:
            raise self.error
        return {"n": 1}

    def load_state_dict(self, _: dict[str, int]) -> None: ...


def test_a_component_that_raises_aborts_the_save_on_all_ranks(tmp_path: Path) -> None:
    before: dict[str, Any] = {}

    def work(rank: int, checkpointer: ss.Checkpointer) -> CheckpointError | None:
        moody = _Moody()
        checkpointer.add("moody", moody, sharing=ss.PER_RANK)
        checkpointer.save(1).wait()
        if rank == 1:
            before.update(steps_of(tmp_path))
            moody.error = RuntimeError("not today")
        failed = None
        try:
            checkpointer.save(2).wait()
        except ParticipantFailed as error:
            failed = error
        moody.error = None
        checkpointer.save(3).wait()
        return failed

    for failed in outcomes(tmp_path, work):
        assert isinstance(failed, ParticipantFailed)
        assert list(failed.failures) == ["trainer/1"]
        assert "component moody raised RuntimeError: not today" in failed.failures["trainer/1"]
    assert ss.open(tmp_path).steps() == (1, 3)
    assert {name: kept for name, kept in steps_of(tmp_path).items() if "step-1" in name} == before
    assert list((tmp_path / ".stepseal" / "staging").iterdir()) == []


def test_unknown_state_on_one_rank_aborts_the_save_on_all(tmp_path: Path) -> None:
    def work(rank: int, checkpointer: ss.Checkpointer) -> None:
        state: dict[str, list[object]] = {"a": [1]}
        checkpointer.add("buffer", state, sharing=ss.PER_RANK)
        state["a"][0] = object() if rank else 1
        checkpointer.save(1).wait()

    first, second = outcomes(tmp_path, work)
    assert isinstance(first, ParticipantFailed)
    assert '["a"][0]' in first.failures["trainer/1"]
    assert isinstance(second, UnsupportedState)
    assert second.path == '["a"][0]'
    assert ss.open(tmp_path).steps() == ()


@pytest.mark.parametrize("names", [("a", ""), ("a", "b"), ("ab", "a")])
def test_different_components_on_two_ranks_are_named(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    def work(rank: int, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("base", {"n": rank}, sharing=ss.PER_RANK)
        for name in names[rank]:
            checkpointer.add(name, {"n": rank}, sharing=ss.PER_RANK)
        checkpointer.save(1).wait()

    for error in outcomes(tmp_path, work):
        assert isinstance(error, ParticipantFailed)
        assert list(error.failures) == ["trainer/1"]
        for rank in (0, 1):
            assert str(["a", "b", "base"] if names[rank] == "ab" else [*names[rank], "base"]) in (
                str(error)
            )
    assert ss.open(tmp_path).steps() == ()


def test_different_components_at_a_restore_touch_nothing(tmp_path: Path) -> None:
    def save(rank: int, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("base", {"n": rank}, sharing=ss.PER_RANK)
        checkpointer.save(1).wait()

    assert outcomes(tmp_path, save) == [None, None]
    before = contents(tmp_path)
    states = [{"n": 77}, {"n": 78}]

    def one_more(rank: int, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("base", states[rank], sharing=ss.PER_RANK)
        if rank == 1:
            checkpointer.add("more", {"n": 1}, sharing=ss.PER_RANK)
        checkpointer.restore()

    def other_name(rank: int, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("Base", states[rank], sharing=ss.PER_RANK)
        checkpointer.restore()

    for work in (one_more, other_name):
        for error in outcomes(tmp_path, work):
            assert isinstance(error, StateMismatch)
            assert not error.tainted
    assert states == [{"n": 77}, {"n": 78}]
    assert contents(tmp_path) == before


def test_ranks_that_save_different_steps_commit_neither(tmp_path: Path) -> None:
    def work(rank: int, checkpointer: ss.Checkpointer) -> CheckpointError | None:
        checkpointer.add("base", {"n": rank}, sharing=ss.PER_RANK)
        failed = None
        try:
            checkpointer.save(1 + rank).wait()
        except ParticipantFailed as error:
            failed = error
        checkpointer.save(5).wait()
        return failed

    for failed in outcomes(tmp_path, work):
        assert isinstance(failed, ParticipantFailed)
        assert "step 1" in str(failed)
        assert "step 2" in str(failed)
    assert ss.open(tmp_path).steps() == (5,)


def test_ranks_that_mix_up_save_and_restore_are_told(tmp_path: Path) -> None:
    def work(rank: int, checkpointer: ss.Checkpointer) -> CheckpointError | None:
        checkpointer.add("base", {"n": rank}, sharing=ss.PER_RANK)
        failed = None
        try:
            if rank == 0:
                checkpointer.restore()
            else:
                checkpointer.save(1).wait()
        except (ParticipantFailed, StateMismatch) as error:
            failed = error
        checkpointer.save(5).wait()
        return failed

    for failed in outcomes(tmp_path, work):
        assert isinstance(failed, (ParticipantFailed, StateMismatch))
        # which of the two came second is nobody's choice
        assert re.search(
            "called (save, but others called restore|restore, but others)", str(failed)
        )
    assert ss.open(tmp_path).steps() == (5,)


@pytest.mark.parametrize(
    ("state", "options", "advice"),
    [
        ({"a": 1}, {"sharing": "replicated"}, r"one of ss\.GLOBAL, .* found 'replicated'"),
        (ss.RNG, {}, r"add\('x', RNG\(\.\.\.\)\)"),
        (torch.ones(2), {}, r"add\('x', \{'value': it\}\)"),
        (torch.nn.Linear(1, 1).parameters(), {}, "the object that the generator comes from"),
    ],
)
def test_what_is_no_live_object_is_refused_with_what_to_add(
    tmp_path: Path, state: object, options: dict[str, Any], advice: str
) -> None:
    with ss.Checkpointer(tmp_path) as ckpt, pytest.raises(ss.errors.InvalidInput, match=advice):
        ckpt.add("x", state, **options)
