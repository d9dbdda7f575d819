"""A checkpointer that nobody closes ends by itself once it is dropped."""

from __future__ import annotations

import errno
import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
import torch

import stepseal as ss
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def held() -> tuple[set[str], int]:
    """Return the threads and the number of descriptors of this process."""
    gc.collect()
    threads = {thread.name for thread in threading.enumerate()}
    return threads, len(os.listdir("/proc/self/fd"))


def leases(root: Path) -> list[str]:
    return [str(path) for path in root.glob(".stepseal/leases/**/*") if path.is_file()]


def wait_ended() -> None:
    for thread in threading.enumerate():
        if thread.name == "stepseal-end":
            thread.join(60)


def test_a_dropped_one_leaves_no_thread_descriptor_or_lease(tmp_path: Path) -> None:
    before = held()
    for step in range(1, 4):
        ckpt = ss.Checkpointer(tmp_path)
        ckpt.add("counters", {"n": step})
        ckpt.restore()
        ckpt.save(step).wait()
    del ckpt
    wait_ended()
    assert held() == before
    assert leases(tmp_path) == []


def test_a_save_in_flight_of_a_dropped_one_is_committed(tmp_path: Path) -> None:
    ckpt = ss.Checkpointer(tmp_path)
    ckpt.add("weights", {"w": torch.ones(1 << 20)})
    ckpt.save(1)
    del ckpt
    wait_ended()
    assert ss.open(tmp_path).steps() == (1,)


def test_a_failed_save_of_a_dropped_one_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    fault = Fault(lambda _, key: key.endswith(".distcp"), Fail(errno.EIO), sticky=True)
    storage = FaultyStorage(MemoryStorage(), [fault])
    ckpt = World(1, lambda _: storage).checkpointer(0)
    ckpt.add("weights", {"w": torch.ones(8)})
    ckpt.save(1)
    with caplog.at_level(logging.ERROR, logger="stepseal"):
        del ckpt
        gc.collect()
        wait_ended()
    assert "dropped without close()" in caplog.text
    assert "save of step 1" in caplog.text


def test_a_closed_one_ends_once(tmp_path: Path) -> None:
    before = held()
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("counters", {"n": 1})
    del ckpt
    assert held() == before


class Loader:
    def __iter__(self) -> Iterator[torch.Tensor]:
        yield torch.ones(2)
        yield torch.ones(2)

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.parametrize("closes", [True, False])
def test_what_was_added_is_freed_without_the_collector(tmp_path: Path, *, closes: bool) -> None:
    model, loader = torch.nn.Linear(2, 2), Loader()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    held = [weakref.ref(one) for one in (model, optimizer, loader)]
    gc.disable()
    try:
        ckpt = ss.Checkpointer(tmp_path)
        for name, state in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler)):
            ckpt.add(name, state)
        ckpt.add("loader", loader)
        ckpt.add("rng", ss.RNG())
        ckpt.restore()
        for batch in ckpt.batches(loader):
            model(batch).sum().backward()
            optimizer.step()
            ckpt.save(1).wait()
            ckpt.restore(1)
            break
        if closes:
            ckpt.close()
        del model, optimizer, scheduler, state, loader, batch, ckpt
        wait_ended()
        assert [one() for one in held] == [None] * 3
    finally:
        gc.enable()


CHILD = """
import os, sys
import stepseal as ss
ckpt = ss.Checkpointer(sys.argv[1])
ckpt.add("counters", {"n": 1})
if os.fork() == 0:
    del ckpt
    os._exit(0)
os.wait()
print(ckpt.save(1).wait(60).step)
"""


@pytest.mark.slow
def test_a_forked_child_ends_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "1\n", done.stderr


EXIT = """
import sys
import stepseal as ss
ckpt = ss.Checkpointer(sys.argv[1])
ckpt.add("counters", {"n": 1})
ckpt.save(1)
del ckpt
"""


@pytest.mark.slow
def test_a_process_that_drops_one_and_ends_has_saved(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ss.open(tmp_path).steps() == (1,)


NO_THREAD = """
import sys
import stepseal as ss
from tests._threads import no_more_threads
ckpt = ss.Checkpointer(sys.argv[1])
ckpt.add("counters", {"n": 1})
ckpt.save(1)
with no_more_threads():
    del ckpt
"""


@pytest.mark.slow
def test_one_that_finds_no_thread_to_end_on_ends_with_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_THREAD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "ends with the process" in done.stderr
    assert "ulimit -u" in done.stderr
    assert ss.open(tmp_path).steps() == (1,)
