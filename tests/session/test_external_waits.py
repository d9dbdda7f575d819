"""Nobody waits for ever for an engine: one that never returns, and one whose process dies."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.session._engines import QUICK, FilePerRank

import stepseal as ss
from stepseal import errors
from stepseal.storage import LocalStorage
from stepseal.testing import RanksFailed, World, run_ranks


def test_an_engine_that_does_not_return_is_named_at_the_deadline(tmp_path: Path) -> None:
    told = threading.Event()
    deadlines = dataclasses.replace(QUICK, write_s=0.5)

    def work(rank: int, ckpt: ss.Checkpointer) -> str:
        engine = FilePerRank(rank)

        def save(folder: str) -> None:
            engine.save(folder)
            if rank == 1:
                assert told.wait(20)  # stuck until the others have long been told

        ckpt.add("engine", ss.External(save=save, load=engine.load))
        with ckpt:
            with pytest.raises(errors.CommitTimeout) as caught:
                ckpt.save(1)
            told.set()
        assert list(caught.value.failures) == ["trainer/1"]
        return str(caught.value)

    world = World(2, lambda _: LocalStorage.create(tmp_path), deadlines=deadlines)
    first, second = world.run(work)
    assert first == second
    assert "did not answer within 0.5 s in phase engines" in first


UNCLOSED = """
import concurrent.futures.thread as pools
import sys, time
from pathlib import Path
import stepseal as ss
from stepseal.transfer._external import Inventory

take = Inventory.take


def take_late(self):
    while not pools._shutdown:
        time.sleep(0.01)
    return take(self)


Inventory.take = take_late
ckpt = ss.Checkpointer(sys.argv[1])
ckpt.add("engine", ss.External(save=lambda path: Path(path, "f").write_text("x"), load=print))
ckpt.save(1)
"""


def test_a_save_in_flight_ends_while_the_interpreter_does(tmp_path: Path) -> None:
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", UNCLOSED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ss.open(tmp_path).step(1).verify() == (), done.stderr


def dies_in_its_engine(rank: int, root: str) -> None:
    deadlines = ss.Deadlines(heartbeat_s=0.3, lost_s=1.2, close_s=1)
    engine = FilePerRank(rank)

    def save(folder: str) -> None:
        engine.save(folder)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    ckpt = ss.Checkpointer(f"{root}/root", deadlines=deadlines)
    ckpt.add("engine", ss.External(save=save, load=engine.load))
    began = time.monotonic()
    try:
        ckpt.save(1)
    except errors.ParticipantFailed as error:
        seconds = time.monotonic() - began
        Path(root, "told").write_text(f"{sorted(error.failures)} {seconds < 10}")


@pytest.mark.slow
def test_a_rank_that_dies_in_its_engine_ends_the_save_of_the_others(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed):
        run_ranks(2, dies_in_its_engine, str(tmp_path))
    assert (tmp_path / "told").read_text() == "['trainer/1'] True"
    assert ss.open(tmp_path / "root").steps() == ()
