"""Ctrl-C at the worst moments: nothing false is committed, nothing half restored is saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

import stepseal as ss
from stepseal import transfer
from stepseal.session import _saving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

changed = threading.Event()
"""Set once the test has changed live state behind an interrupted save."""


@pytest.fixture(autouse=True)
def ctrl_c_raises() -> Iterator[None]:
    """Let SIGINT raise, also where the tests were started with it ignored (in the background)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a SIGINT arrive in the main thread while the first part is being written."""
    write = transfer.write_part
    sent: list[bool] = []

    def interrupted(*args: Any, **options: Any) -> object:  # noqa: ANN401 - handed on
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)
            assert changed.wait(20)
        return write(*args, **options)

    monkeypatch.setattr(_saving, "write_part", interrupted)


def test_an_interrupted_synchronous_save_never_commits_later_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed.clear()
    interrupt_writes(monkeypatch)
    weight = torch.ones(8)
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", {"w": weight})
        with pytest.raises(KeyboardInterrupt):
            ckpt.save(1)
        weight += 1
        changed.set()
        with pytest.raises(ss.errors.ParticipantFailed, match="interrupted"):
            ckpt.save(2)
        ckpt.save(3)
    assert ss.open(tmp_path).steps() == (3,)
    assert torch.equal(ss.open(tmp_path).step(3).tensors()["w"], torch.full((8,), 2.0))


def test_an_interrupted_restore_taints(tmp_path: Path) -> None:
    class Interrupts:
        armed = False

        def state_dict(self) -> dict[str, int]:
            return {"a": 1}

        def load_state_dict(self, _: object) -> None:
            if self.armed:
                raise KeyboardInterrupt

    weight, part = torch.ones(3), Interrupts()
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", {"w": weight})
        ckpt.add("part", part)
        ckpt.restore()
        ckpt.save(1)
        weight += 1
        ckpt.save(2)
        part.armed = True
        with pytest.raises(KeyboardInterrupt):
            ckpt.restore(step=1)
        with pytest.raises(ss.errors.Tainted):
            ckpt.save(3)
        part.armed = False
        assert ckpt.restore() is not None
        assert torch.equal(weight, torch.full((3,), 2.0))
        ckpt.save(3)


@pytest.mark.slow
def test_a_script_that_ends_without_close_still_finishes_its_save(tmp_path: Path) -> None:
    script = """
        import sys, torch, stepseal as ss
        ckpt = ss.Checkpointer(sys.argv[1])
        ckpt.add("model", {"w": torch.ones(1000)})
        ckpt.save(1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "was not closed" in done.stderr
    assert ss.open(tmp_path).steps() == (1,)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"metrics": {"loss": "a"}}, "metrics"),
        ({"metrics": {1: 2.0}}, "metrics"),
        ({"tags": "release"}, "tags"),
        ({"cut": {"v": torch.tensor(3)}}, "cut"),
    ],
)
def test_facts_are_checked_when_they_are_said(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", {"w": torch.ones(3)})
        with pytest.raises(ss.errors.InvalidInput, match=problem) as caught:
            ckpt.save(1, **options)
        assert caught.value.problems
        ckpt.save(1, metrics={"loss": torch.tensor(0.5)}).wait()  # type: ignore[dict-item]
    assert ss.open(tmp_path).step(1).metrics == {"loss": 0.5}


def test_policies_take_names_that_exist(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", {"w": torch.ones(3)})
        ckpt.restore()
        ckpt.save(1)
        with pytest.raises(ss.errors.InvalidInput, match="modle"):
            ckpt.restore(policies={"modle": "skip"})
        with pytest.raises(ss.errors.InvalidInput, match="list of names"):
            ckpt.restore(only="model")


def test_a_module_that_heeds_loading_hears_of_a_restore(tmp_path: Path) -> None:
    class Caches(torch.nn.Module):
        inverse: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.full((2,), 4.0))
            self.register_buffer("inverse", torch.full((2,), 0.25), persistent=False)
            add_hook: Any = self.register_load_state_dict_post_hook
            add_hook(lambda module, _: module.refresh())

        def refresh(self) -> None:
            self.inverse.copy_(1 / self.w.detach())

    saved = Caches()
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", saved)
        ckpt.save(1)
    live = Caches()
    with torch.no_grad():
        live.w.fill_(2.0)
        live.refresh()
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", live)
        ckpt.restore()
    assert torch.equal(live.inverse, saved.inverse)


def test_an_optimizer_that_keeps_state_elsewhere_is_refused(tmp_path: Path) -> None:
    class Lookahead(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.optimizer = inner

        def state_dict(self) -> dict[str, Any]:
            return {"fast": self.optimizer.state_dict(), "slow": super().state_dict()}

    optimizer = Lookahead(torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]))
    with (
        ss.Checkpointer(tmp_path) as ckpt,
        pytest.raises(ss.errors.InvalidInput, match="load_state_dict"),
    ):
        ckpt.add("optimizer", optimizer)


def test_readers_that_nobody_closes_hold_no_descriptors(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", {"w": torch.ones(3)})
        ckpt.save(1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert ss.open(tmp_path).latest() is not None
    assert len(os.listdir("/proc/self/fd")) <= before + 1
