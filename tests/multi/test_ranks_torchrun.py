"""torchrun kills nothing of what was committed: its automatic restart goes on, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stepseal as ss

pytestmark = [pytest.mark.slow, pytest.mark.serial]

_JOB = Path(__file__).with_name("torchrun_job.py")


def run_job(folder: Path, bad_step: int) -> subprocess.CompletedProcess[str]:
    """Run the job on two ranks with one restart; its histories and its root lie in `folder`."""
    folder.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "1", str(_JOB), str(folder / "root"), str(folder), str(bad_step),
    ]  # fmt: skip
    # Else the gloo of a restarted rank may find the addresses of the life before, which torchrun
    # leaves in one store (https://github.com/pytorch/pytorch/issues/135712).
    settings = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=settings
    )


def history(folder: Path, life: int, rank: int) -> dict[str, Any]:
    """Return what a rank wrote: `resumed`, `weights`, and the loss of each step."""
    found: dict[str, Any] = {}
    for line in (folder / f"history.{life}.{rank}").read_text("utf-8").splitlines():
        event = json.loads(line)
        found |= {f"step {event['step']}": event["loss"]} if "step" in event else event
    return found


def test_restart_after_a_kill_in_the_middle_of_a_save_is_exact(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder, bad_step in ((whole, 0), (broken, 6)):
        done = run_job(folder, bad_step)
        assert done.returncode == 0, done.stderr[-4000:]
        assert ss.open(folder / "root").steps() == (2, 4, 6, 8)
    for rank in range(2):
        expected = history(whole, 0, rank)
        first, second = history(broken, 0, rank), history(broken, 1, rank)
        assert second["resumed"] == 4
        assert "step 6" in first
        assert "step 7" not in first
        for life in (first, second):
            assert {key: expected[key] for key in life if key != "resumed"} == {
                key: life[key] for key in life if key != "resumed"
            }
        assert second["weights"] == expected["weights"]
    found = ss.open(broken / "root")
    assert [found.step(step).verify() for step in found.steps()] == [()] * 4
