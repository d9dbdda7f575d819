"""A participant that owns only trees never loads torch, in any of its calls."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.actors._owners import Trainer, live
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


class Process:
    """The program `_trees_alone`, and this end of its pipe."""

    def __init__(self, how: str) -> None:
        self.pipe: Connection
        self.pipe, theirs = multiprocessing.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.actors._trees_alone", str(theirs.fileno()), how],
            cwd=REPOSITORY,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()

    def end(self) -> dict[str, Any]:
        """Let it end; return what it printed, with `failed`."""
        self.pipe.close()
        try:
            out, err = self._process.communicate(timeout=60)
        finally:
            self._process.kill()
        assert out, err
        return {**json.loads(out), "failed": self._process.returncode != 0, "errors": err}


def is_without_torch(report: Mapping[str, Any]) -> bool:
    """Judge a process by what it printed."""
    return not (report["refused"] or report["loaded"] or report["failed"])


async def save(root: Path, member: Process, trainer: Trainer) -> None:
    async with ss.Coordinator(root, deadlines=PATIENT) as coord:
        await coord.admit(*ss.processes("replay_buffer", [member.pipe]))
        await coord.admit(*ss.in_process(trainer.ss))
        await coord.save(3)


async def restore(root: Path, member: Process, trainer: Trainer) -> None:
    async with ss.Coordinator(root, deadlines=PATIENT) as coord:
        await coord.admit(*ss.processes("replay_buffer", [member.pipe]))
        await coord.admit(*ss.in_process(trainer.ss))
        assert await coord.restore() is not None
        await coord.save(4)


def test_a_process_of_trees_saves_and_another_takes_its_state(tmp_path: Path) -> None:
    """Beside a trainer whose tensors are in the same step."""
    trainer = Trainer()
    trainer.fill(3)
    maker = Process("make")
    try:
        live(save(tmp_path / "run", maker, trainer))
    finally:
        made = maker.end()
    assert is_without_torch(made), made
    trainer.fill(0)
    taker = Process("take")
    try:
        live(restore(tmp_path / "run", taker, trainer))
    finally:
        taken = taker.end()
    assert is_without_torch(taken), taken
    assert taken["state"] == made["state"]
    assert taken["in_place"]
    assert trainer.holds() == 3
    assert ss.open(tmp_path / "run").step(4).verify() == ()


def test_a_controller_of_trees_needs_no_torch_either(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.actors._trees_alone", os.fspath(tmp_path), "controller"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    report = {**json.loads(done.stdout), "failed": done.returncode != 0}
    assert is_without_torch(report), done.stderr
    assert "torch" not in ss.open(tmp_path).step(2).manifest.versions


def test_a_process_whose_module_imports_torch_is_caught() -> None:
    report = Process("breaks-at-import").end()
    assert not is_without_torch(report)
    assert report["refused"] == ["torch"]
    assert "TorchWasImported" in report["errors"]


def test_a_process_whose_state_imports_torch_is_caught(tmp_path: Path) -> None:
    broken, trainer = Process("breaks-in-save"), Trainer()
    try:
        with pytest.raises(errors.ParticipantFailed, match="torch was imported"):
            live(save(tmp_path / "run", broken, trainer))
    finally:
        report = broken.end()
    assert not is_without_torch(report)
    assert report["refused"] == ["torch"]


def test_a_tree_that_was_saved_with_tensors_loads_torch_when_it_is_restored(
    tmp_path: Path,
) -> None:
    state = {"value": torch.arange(3), "stack": [torch.full((2,), i) for i in range(1000)]}
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("held", [state])
        ckpt.save(1).wait()
    program = (
        "import asyncio, sys\nimport stepseal as ss\n"
        "live = []\n"
        "own = ss.Participant('buffer')\n"
        "own.add('held', live)\n"
        "assert 'torch' not in sys.modules\n"
        "async def life():\n"
        f"    async with ss.Coordinator({os.fspath(tmp_path)!r}) as coord:\n"
        "        await coord.admit(*ss.in_process(own))\n"
        "        await coord.restore()\n"
        "asyncio.run(life())\n"
        "import torch\n"
        "assert torch.equal(live[0]['value'], torch.arange(3))\n"
        "assert torch.equal(live[0]['stack'][7], torch.full((2,), 7))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
