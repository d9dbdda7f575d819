"""What a user of two lines can see: records, figures, texts of objects, and what cannot be set."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest
import torch

import stepseal as ss
from stepseal.layout import Metrics
from stepseal.testing import FaultyStorage, MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WAIT_S = 60.0
SAVED = r"stepseal: step 1: [\d.]+ (Ki)?B from 2 ranks, blocked [\d.]+ s, committed after [\d.]+ s"


def informed(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.INFO]
    return [text for text in told if "room:" not in text]


def test_one_record_per_save_restore_and_publication_on_the_coordinator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = MemoryStorage()

    def work(rank: int, ckpt: ss.Checkpointer) -> ss.Saved:
        with ckpt:
            ckpt.add("mine", {"w": torch.full((64,), rank)}, sharing=ss.PER_RANK)
            ckpt.restore()
            saved = ckpt.save(1).wait(WAIT_S)
            ckpt.publish(7, components=["mine"]).wait(WAIT_S)
            ckpt.restore()
            return saved

    with caplog.at_level(logging.INFO, logger="stepseal"):
        first, second = World(2, lambda _: memory).run(work)
    fresh, saved, published, restored = informed(caplog)
    assert fresh == "stepseal: fresh start: nothing was restored"
    assert re.fullmatch(SAVED, saved)
    assert published.startswith("stepseal: publication of version 7: ")
    assert re.fullmatch(r"stepseal: step 1: .* restored to 2 ranks in [\d.]+ s", restored)
    for name in ("size_bytes", "blocked_s", "committed_s"):
        assert getattr(first, name) == getattr(second, name) is not None
    assert first.size_bytes is not None
    assert first.size_bytes > 2 * 64 * 8
    assert first.blocked_s is not None
    assert first.committed_s is not None
    assert 0 < first.blocked_s <= first.committed_s


def test_a_synchronous_save_is_blocked_until_the_commit(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", {"w": torch.ones(8)})
        saved = ckpt.save(1).wait()
    assert saved.blocked_s == saved.committed_s is not None


def test_bytes_are_those_of_the_files_of_all_participants(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", {"w": torch.ones(1 << 16)})
        ckpt.add("counters", {"n": 1})
        saved = ckpt.save(1).wait()
    files = [one for one in (tmp_path / "step-1").rglob("*") if one.is_file()]
    of_coordinator = {"manifest.json", ".metadata"}
    assert saved.size_bytes == sum(f.stat().st_size for f in files if f.name not in of_coordinator)


def test_on_commit_has_the_figures(tmp_path: Path) -> None:
    told: list[ss.Commit] = []
    with ss.Checkpointer(tmp_path, on_commit=told.append) as ckpt:
        ckpt.add("model", {"w": torch.ones(8)})
        saved = ckpt.save(1, metrics={"loss": 0.5}).wait()
    (commit,) = told
    assert (commit.size_bytes, commit.blocked_s) == (saved.size_bytes, saved.blocked_s)
    with pytest.raises(TypeError, match="cannot be changed"):
        commit.metrics["loss"] = 0.0  # type: ignore[index]


def test_a_handle_shows_what_users_need_and_takes_nothing_else(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", {"w": torch.ones(8)})
        pending = ckpt.save(1)
        public = [name for name in dir(pending) if not name.startswith("_")]
        assert public == ["done", "path", "step", "wait"]
        with pytest.raises(AttributeError):
            pending.metrics = {"loss": 1.0}  # type: ignore[attr-defined]
        assert pending.wait().path == pending.path == str(tmp_path / "step-1")


def held_back(gate: threading.Event) -> Callable[[int, str, str], None]:
    def before(index: int, operation: str, key: str) -> None:
        if operation == "write" and key.endswith(".distcp"):
            assert gate.wait(WAIT_S)

    return before


def test_objects_say_what_they_are_and_what_is_in_flight() -> None:
    gate = threading.Event()
    world = World(1, lambda _: FaultyStorage(MemoryStorage(), before=held_back(gate)))
    with world.checkpointer(0) as ckpt:
        ckpt.add("model", {"w": torch.ones(2)})
        assert repr(ckpt) == "<Checkpointer of trainer/0 (of 1) at /world: idle>"
        pending = ckpt.save(3)
        assert repr(pending) == "<PendingSave of step 3: in flight>"
        assert repr(ckpt).endswith(": save of step 3>")
        gate.set()
        pending.wait(WAIT_S)
        assert repr(pending) == "<PendingSave of step 3: committed>"
        assert repr(ckpt).endswith(": idle>")
    assert repr(ckpt).endswith(": closed>")


def test_what_was_saved_is_read_only_and_still_a_value(tmp_path: Path) -> None:
    ss.save(tmp_path, step=1, counters={"n": 1})
    run = ss.open(tmp_path)
    step = run.step(1)
    assert repr(step) == f"<Step 1 at {tmp_path}/step-1>"
    assert repr(run) == f"<Run {run.run_id} at {tmp_path}>"
    with pytest.raises(TypeError, match=r"give them to save\(metrics=...\)"):
        step.metrics["loss"] = 1.0  # type: ignore[index]
    for change in (step.manifest.metrics.update, step.manifest.metrics.clear):
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    with pytest.raises(AttributeError):
        step.metrics = {"loss": 1.0}  # type: ignore[misc]
    metrics = Metrics(loss=0.5)
    assert copy.deepcopy(metrics) == pickle.loads(pickle.dumps(metrics)) == {"loss": 0.5}
    assert type(copy.copy(metrics)) is Metrics


@pytest.mark.slow
@pytest.mark.parametrize("waits", [True, False])
def test_who_is_not_closed_names_a_save_only_if_there_is_one(
    tmp_path: Path, *, waits: bool
) -> None:
    script = """
        import sys, threading, torch, stepseal as ss
        from stepseal.session import _exit
        from stepseal.transfer import _blocks
        told = threading.Event()
        _exit._log.warning = lambda *words, real=_exit._log.warning: (real(*words), told.set())
        write = _blocks.FileWriter._write
        def held(self, block):
            assert waits or told.wait(60)  # the save is in flight until somebody says so
            write(self, block)
        _blocks.FileWriter._write = held
        waits = sys.argv[2] == "True"
        ckpt = ss.Checkpointer(sys.argv[1])
        ckpt.add("model", {"w": torch.ones(1000)})
        pending = ckpt.save(1)
        if waits:
            pending.wait()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(waits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "a checkpointer was not closed" in done.stderr
    assert ("waiting for the save of step 1" in done.stderr) is not waits
    assert ss.open(tmp_path).steps() == (1,)
