"""`on_commit=` is told of each commit, in order, and can neither block nor harm a save."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors
from stepseal.protocol import Deadlines
from stepseal.session._announcing import Announcer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.protocol import Cost


def checkpointer(root: Path, on_commit: Any, **options: Any) -> ss.Checkpointer:  # noqa: ANN401
    options = {"deadlines": PATIENT, "on_commit": on_commit} | options
    ckpt = ss.Checkpointer(root, **options)
    ckpt.add("state", {"n": 0})
    return ckpt


def test_it_is_told_what_the_manifest_says_once_the_step_is_there(tmp_path: Path) -> None:
    seen: list[ss.Commit] = []

    def told(commit: ss.Commit) -> None:
        manifest = ss.open(tmp_path).step(commit.step).manifest  # committed by now
        assert commit.metrics == manifest.metrics
        assert os.path.isfile(f"{commit.path}/manifest.json")
        seen.append(commit)

    with checkpointer(tmp_path, told) as ckpt:
        ckpt.restore()
        saved = [
            ckpt.save(n, metrics={"loss": 1.0 / n}, tags=["x"], cut={"n": n}).wait() for n in (1, 2)
        ]
    assert [(one.step, one.path, one.manifest_sha256) for one in seen] == [
        (one.step, one.path, one.manifest_sha256) for one in saved
    ]
    assert [(dict(one.metrics), one.tags, one.cut) for one in seen] == [
        ({"loss": 1.0}, ("x",), {"n": 1}),
        ({"loss": 0.5}, ("x",), {"n": 2}),
    ]
    assert isinstance(seen[0], ss.Saved)


def a_slow_one_blocks_no_save(root: Path) -> None:
    go_on = threading.Event()
    seen: list[int] = []

    def told(commit: ss.Commit) -> None:
        assert go_on.wait(60)
        seen.append(commit.step)

    with checkpointer(root, told) as ckpt:
        for step in (1, 2, 3):
            ckpt.save(step).wait(20)
        assert seen == []
        go_on.set()
    assert seen == [1, 2, 3], "close waits for it, and the order is that of the commits"


def what_it_raises_harms_nothing(root: Path) -> None:
    seen: list[int] = []

    def fails(commit: ss.Commit) -> None:
        raise ConnectionError(f"no upload of {commit.step}")

    with checkpointer(root, [fails, lambda commit: seen.append(commit.step)]) as ckpt:
        for step in (1, 2):
            ckpt.save(step).wait(20)
    assert seen == [1, 2]
    assert ss.open(root).steps() == (1, 2)


def _on_the_caller(self: Announcer, manifest: Any, sha256: str, cost: Cost) -> None:  # noqa: ANN401
    commit = ss.Commit(manifest.step, "", sha256, *cost, {}, (), {})
    for function in self._functions:
        function(commit)


def _without_shelter(self: Announcer) -> None:
    while (commit := self._commits.get()) is not None:
        for function in self._functions:
            function(commit)
        self._untold.remove(commit.step)


@pytest.mark.parametrize("promise", [a_slow_one_blocks_no_save, what_it_raises_harms_nothing])
def test_a_promise_is_kept(promise: Callable[[Path], None], tmp_path: Path) -> None:
    promise(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_without_shelter_breaks_it(tmp_path: Path) -> None:
    short = mock.patch.object(Announcer, "_run", _without_shelter)
    with short, pytest.raises(AssertionError):
        what_it_raises_harms_nothing(tmp_path)


def test_one_that_runs_on_the_threads_of_the_protocol_is_seen(tmp_path: Path) -> None:
    """The broken variant of `a slow one blocks no save` would hang: look at the thread instead."""
    threads: list[str] = []

    def told(_commit: ss.Commit) -> None:
        threads.append(threading.current_thread().name)

    with checkpointer(tmp_path / "a", told) as ckpt:
        ckpt.save(1).wait()
    with (
        mock.patch.object(Announcer, "commit", _on_the_caller),
        checkpointer(tmp_path / "b", told) as ckpt,
    ):
        ckpt.save(1).wait()
    assert threads == ["stepseal-on-commit", "stepseal-commit"]


def test_close_waits_within_its_limit_and_names_what_was_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()
    short = Deadlines(close_s=0.01)
    with (
        caplog.at_level(logging.ERROR, "stepseal"),
        checkpointer(tmp_path, lambda _: go_on.wait(60), deadlines=short) as ckpt,
    ):
        ckpt.save(1).wait()
        ckpt.save(2).wait()
    go_on.set()
    assert "on_commit: still running 0.01 s after the end, for steps 1, 2" in caplog.text
    assert ss.open(tmp_path).steps() == (1, 2)


def test_a_failed_save_is_not_told(tmp_path: Path) -> None:
    seen: list[int] = []

    class Broken:
        fails = False

        def state_dict(self) -> dict[str, int]:
            if self.fails:
                raise RuntimeError("no")
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None: ...

    broken = Broken()
    with checkpointer(tmp_path, lambda commit: seen.append(commit.step)) as ckpt:
        ckpt.add("broken", broken)
        ckpt.save(1).wait()
        broken.fails = True
        with pytest.raises(errors.ParticipantFailed):
            ckpt.save(2)
        broken.fails = False
        ckpt.save(3).wait()
    assert seen == [1, 3]


@pytest.mark.parametrize("wrong", [3, [print, "upload"]])
def test_something_else_is_refused(wrong: Any, tmp_path: Path) -> None:  # noqa: ANN401
    with pytest.raises(errors.InvalidInput, match="on_commit: expected a function"):
        ss.Checkpointer(tmp_path, on_commit=wrong)
