"""The examples on real Ray and Monarch: a trainer killed in mid-save, and exact nevertheless."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import stepseal as ss

_HOUSE = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.serial]


@pytest.mark.parametrize("framework", ["ray", "monarch"])
def test_a_job_of_actors_goes_on_exactly(framework: str, tmp_path: Path) -> None:
    if find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    root = tmp_path / "root"
    command = [sys.executable, "-m", f"examples.actors.{framework}_grpo", str(root)]
    done = subprocess.run(
        command, cwd=_HOUSE, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "save of step 5, phase capture: trainer/1: connection closed" in done.stdout
    checked = [line for line in done.stdout.splitlines() if line.startswith("checked: ")]
    assert len(checked) == 4, done.stdout
    assert ss.open(root).steps() == (3, 5)
    cut = ss.open(root).step(5).manifest.cut
    assert cut == {"trained": 160, "held": 160, "policy_version": 5}
