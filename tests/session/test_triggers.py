"""Triggers as a user meets them, in one process."""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

import stepseal as ss
from stepseal.process import _signals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USR1 = ss.on_signal("SIGUSR1", stop=False)
USR2 = ss.on_signal("SIGUSR2")


def new(root: Path, save: Any, **options: Any) -> ss.Checkpointer:  # noqa: ANN401
    ckpt = ss.Checkpointer(root, save=save, **options)
    ckpt.add("state", {"n": 1})
    return ckpt


@pytest.fixture(autouse=True)
def _nothing_stays_installed() -> Iterator[None]:
    before = [signal.getsignal(one) for one in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)]
    yield
    after = [signal.getsignal(one) for one in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)]
    assert after == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "stepseal-signals" not in {thread.name for thread in threading.enumerate()}


def test_a_signal_saves_at_the_next_step_and_ends_the_loop(tmp_path: Path) -> None:
    done = []
    with new(tmp_path, ss.every(steps=100) | USR2) as ckpt:
        ckpt.restore()
        for step in ckpt.steps(1000):
            if step == 7:
                signal.raise_signal(signal.SIGUSR2)
            pending = ckpt.step(step)
            done.append(step)
            assert (pending is not None) is ckpt.should_stop is (step == 7)
    assert done == [*range(1, 8)]
    assert ss.open(tmp_path).steps() == (7,)


def test_a_loop_of_batches_ends_as_well(tmp_path: Path) -> None:
    seen, step = [], 0
    with new(tmp_path, USR2) as ckpt:
        ckpt.restore()
        for _ in range(3):
            for batch in ckpt.batches(range(10)):
                seen.append(batch)
                step += 1
                if step == 14:
                    signal.raise_signal(signal.SIGUSR2)
                ckpt.step(step)
    assert seen == [*range(10), *range(4)]


def test_a_trigger_that_does_not_stop_fires_again(tmp_path: Path) -> None:
    with new(tmp_path, USR1) as ckpt:
        ckpt.restore()
        for step in ckpt.steps(20):
            if step in (5, 6, 15):
                signal.raise_signal(signal.SIGUSR1)
                signal.raise_signal(signal.SIGUSR1)
            ckpt.step(step)
            ckpt.step(step)  # what is saved is not saved again
    assert ss.open(tmp_path).steps() == (5, 6, 15)


def test_a_signal_before_the_first_step_or_in_a_restore_counts(tmp_path: Path) -> None:
    class State:
        def state_dict(self) -> dict[str, int]:
            return {"n": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            signal.raise_signal(signal.SIGUSR2)

    for first, raises in ((1, True), (2, False)):
        ckpt = ss.Checkpointer(tmp_path, save=USR2)
        ckpt.add("state", State())
        with ckpt:
            ckpt.restore()
            if raises:
                signal.raise_signal(signal.SIGUSR2)
            assert not ckpt.should_stop, "it changes at a safe point, where all ranks are"
            assert [ckpt.step(step) is not None for step in ckpt.steps(10)] == [True]
        assert ss.open(tmp_path).steps()[-1] == first


def test_a_signal_in_a_save_ends_the_loop_at_the_next_step(tmp_path: Path) -> None:
    ckpt = ss.Checkpointer(tmp_path, save=ss.every(steps=3) | USR2)

    at = 0

    def get() -> dict[str, int]:
        if at == 3:
            signal.raise_signal(signal.SIGUSR2)
        return {"n": 1}

    ckpt.add("state", (get, lambda state: None))
    with ckpt:
        ckpt.restore()
        for at in ckpt.steps(10):
            ckpt.step(at)
    assert ss.open(tmp_path).steps() == (3, 4)


def test_an_explicit_save_is_a_safe_point_too(tmp_path: Path) -> None:
    with new(tmp_path, USR2) as ckpt:
        ckpt.restore()
        for step in range(1, 10):
            if step == 4:
                signal.raise_signal(signal.SIGUSR2)
            if step % 2 == 0:
                ckpt.save(step)
            if ckpt.should_stop:
                break
    assert ss.open(tmp_path).steps() == (2, 4)


def test_handlers_and_owners_from_before_go_on(tmp_path: Path) -> None:
    """An event loop that watches another signal, and a handler for the same one."""
    heard: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, heard.append, "loop")
        with new(tmp_path, USR2) as ckpt:
            ckpt.restore()
            signal.raise_signal(signal.SIGUSR1)
            for _ in range(1000):
                if heard:
                    break
                await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGUSR2)
            ckpt.step(1)
            assert ckpt.should_stop
        heard.append("closed")
        signal.raise_signal(signal.SIGUSR1)
        for _ in range(1000):
            if len(heard) > 3:
                break
            await asyncio.sleep(0.01)

    old = signal.signal(signal.SIGUSR2, lambda *_: heard.append("handler"))
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGUSR2, old)
    assert heard == ["loop", "handler", "closed", "loop"]


def test_an_event_loop_that_takes_the_descriptor_afterwards_does_not_hide_signals(
    tmp_path: Path,
) -> None:
    heard: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.append, "loop")
        signal.raise_signal(signal.SIGUSR2)
        ckpt.step(1)
        signal.raise_signal(signal.SIGUSR1)
        for _ in range(1000):
            if heard:
                break
            await asyncio.sleep(0.01)

    with new(tmp_path, USR2) as ckpt:
        ckpt.restore()
        asyncio.run(main())
        assert ckpt.should_stop
    assert heard == ["loop"]


def test_the_second_interrupt_interrupts(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with new(tmp_path, ss.on_signal("SIGINT")) as ckpt:
            ckpt.restore()
            signal.raise_signal(signal.SIGINT)
            ckpt.step(1)
            assert ckpt.should_stop
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_child_neither_tells_its_parent_nor_survives(tmp_path: Path) -> None:
    with new(tmp_path, ss.on_signal("SIGTERM")) as ckpt:
        ckpt.restore()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)  # it has survived the signal
        os.kill(child, signal.SIGTERM)
        os.close(write)
        os.close(read)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert ckpt.step(1) is None


def test_a_child_that_keeps_the_descriptor_is_seen(tmp_path: Path) -> None:
    with (
        mock.patch.object(_signals._Process, "forked"),
        pytest.raises(AssertionError),
    ):
        test_a_forked_child_neither_tells_its_parent_nor_survives(tmp_path)
    # its handler waited for nobody: what the test left is put back here
    signal.set_wakeup_fd(-1)


def test_minutes_save_by_themselves(tmp_path: Path) -> None:
    with new(tmp_path, ss.every(minutes=0.001)) as ckpt:
        ckpt.restore()
        steps = iter(range(1, 10_000))
        for _ in range(3):
            step = next(step for step in steps if _slowly(ckpt, step))
    assert ss.open(tmp_path).latest() is not None
    assert len(ss.open(tmp_path).steps()) == 3
    assert ss.open(tmp_path).steps()[-1] == step


def test_a_time_limit_saves_and_stops(tmp_path: Path) -> None:
    with new(tmp_path, ss.before(time.time() + 3600.05, margin_s=3600)) as ckpt:
        ckpt.restore()
        step = next(step for step in ckpt.steps(10_000) if _slowly(ckpt, step))
        assert ckpt.should_stop
    assert ss.open(tmp_path).steps() == (step,)


def _slowly(ckpt: ss.Checkpointer, step: int) -> bool:
    time.sleep(0.005)
    return ckpt.step(step) is not None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ss.every(), "expected one of them"),
        (lambda: ss.every(steps=1, minutes=1), "combine"),
        (lambda: ss.every(minutes=0), "above 0"),
        (lambda: ss.every(minutes=float("nan")), "above 0"),
        (lambda: ss.on_signal("TERM"), "name of a signal"),
        (lambda: ss.on_signal(15), "name of a signal"),  # type: ignore[arg-type]
        (lambda: ss.on_signal("SIGKILL"), "no process can handle"),
        (lambda: ss.on_signal("SIGTERM", grace_s=-1), "grace_s"),
        (lambda: ss.before(time.time() - 1), "has passed"),
        (lambda: ss.before(datetime.datetime(2020, 1, 1)), "2020-01-01"),
        (lambda: ss.before("soon"), "deadline"),  # type: ignore[arg-type]
        (lambda: ss.before(time.time() + 10, margin_s=0), "margin_s"),
    ],
)
def test_wrong_triggers_are_refused(make: Any, text: str) -> None:  # noqa: ANN401
    with pytest.raises(ss.errors.InvalidInput, match=text):
        make()


def test_signals_need_the_main_thread(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def make() -> None:
        try:
            ss.Checkpointer(tmp_path / "root", save=USR2)
        except ss.errors.InvalidInput as error:
            raised.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(60)
    assert "main thread" in str(raised[0])
    assert not (tmp_path / "root").exists()


def test_rules_and_triggers_combine_in_any_order(tmp_path: Path) -> None:
    class Odd:
        def due(self, step: int) -> bool:
            return step % 2 == 1

    with new(tmp_path, USR1 | Odd() | ss.every(steps=4) | ss.every(minutes=99)) as ckpt:
        ckpt.restore()
        for step in ckpt.steps(5):
            ckpt.step(step)
    assert ss.open(tmp_path).steps() == (1, 3, 4, 5)
    with pytest.raises(ss.errors.InvalidInput, match="expected a rule"):
        ss.Checkpointer(tmp_path, save=USR1 | 500)  # type: ignore[operator]


@pytest.mark.parametrize("saves", ["in flight", "committed", "none"])
def test_sigterm_without_a_trigger_lets_the_save_in_flight_end(tmp_path: Path, saves: str) -> None:
    """The process ends by the signal, as it does by default, after the commit."""
    script = f"""
        import logging, os, signal, sys, threading, time
        import stepseal as ss
        from stepseal.protocol._actions import Publish
        from stepseal.protocol._incarnation import Incarnation
        logging.basicConfig(level="INFO")
        signalled, perform = threading.Event(), Incarnation.perform
        def held(self, action):
            assert not isinstance(action, Publish) or signalled.wait(60)
            return perform(self, action)
        Incarnation.perform = held
        ckpt = ss.Checkpointer(sys.argv[1])
        ckpt.add("state", {{"n": 1}})
        ckpt.restore()
        if {saves != "in flight"}:
            signalled.set()
        if {saves != "none"}:
            pending = ckpt.save(5)
        if {saves == "committed"}:
            pending.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        signalled.set()
        time.sleep(60)
        print("still here")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert found.returncode == -signal.SIGTERM, found.stderr
    assert "still here" not in found.stdout
    assert ss.open(tmp_path).steps() == (() if saves == "none" else (5,))
    is_told = "SIGTERM: step 5 is committed" in found.stderr
    assert is_told is ("SIGTERM" in found.stderr) is (saves == "in flight")


def test_a_loop_around_batches_that_never_ends_is_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with new(tmp_path, USR2) as ckpt:
        ckpt.restore()
        signal.raise_signal(signal.SIGUSR2)
        ckpt.step(1)
        for _ in range(2000):
            assert list(ckpt.batches(range(3))) == []
    assert caplog.text.count("while step < num_steps and not ckpt.should_stop") == 1
