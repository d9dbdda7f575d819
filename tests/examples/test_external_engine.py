"""The engine with a checkpointer of its own: resumed to the last bit, and on other worlds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from examples.external_engine import train

import stepseal as ss
from stepseal.testing import run_ranks

_HOUSE = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def losses(_rank: int, root: str, num_steps: int) -> dict[int, float]:
    found: dict[int, float] = {}
    train(root, num_steps, found.__setitem__)
    return found


def test_it_goes_on_exactly_and_on_other_worlds(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    whole = run_ranks(2, losses, str(tmp_path / "whole"), 8)
    first = run_ranks(2, losses, root, 7)  # the last save is that of step 6
    second = run_ranks(2, losses, root, 8)
    for rank in range(2):
        assert sorted(second[rank]) == [7, 8]
        assert first[rank] | second[rank] == whole[rank]
    assert ss.open(root).step(6).verify() == ()
    assert sorted(run_ranks(3, losses, root, 8)[0]) == [7, 8]


def test_it_runs_under_torchrun(tmp_path: Path) -> None:
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "examples.external_engine", str(tmp_path / "root"), "3"]
    done = subprocess.run(
        command, cwd=_HOUSE, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 3: ") == 2
    assert ss.open(tmp_path / "root").steps() == (3,)
