"""The changed call sites run, crash, and go on exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_HOUSE = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["torchforge_shaped", "trinity_shaped", "verl_shaped"])
def test_it_goes_on_exactly_after_a_crash(name: str) -> None:
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    done = subprocess.run(
        [sys.executable, "-m", f"examples.actors.{name}"],
        cwd=_HOUSE,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *_, crashed, undisturbed, resumed, equal = [
        line for line in done.stdout.splitlines() if "latest_" not in line
    ]
    assert crashed.startswith("crashed in step 5")
    assert undisturbed.split()[1:] == resumed.split()[1:]
    assert equal == "equal"


def test_a_job_that_did_not_go_on_is_told(tmp_path: Path) -> None:
    """The proof of the examples fails for a job that begins anew after the crash."""
    from examples.actors.common import Crash, prove

    async def forgetful(_folder: str, crash_at: int | None) -> list[float]:
        lives.append(crash_at)
        if crash_at is not None:
            raise Crash
        return [float(len(lives))]

    lives: list[int | None] = []
    with pytest.raises(SystemExit, match="ended elsewhere"):
        prove(forgetful)
