"""A real file system after power loss: whole steps only, and every one that was promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.ext4._check import Found, Task
from tests.campaigns.ext4._mounts import why_not
from tests.campaigns.ext4._record import Job
from tests.campaigns.ext4._variants import VARIANTS
from tests.campaigns.ext4.run import row_of, run

if TYPE_CHECKING:
    from collections.abc import Callable

_HOUSE = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.slow
needs_mounts = pytest.mark.skipif(
    why_not("ext4") is not None, reason=f"power loss: {why_not('ext4')}"
)


def test_a_variant_is_caught_as_what_it_breaks_only() -> None:
    names = ["lying-disk", *(name for name in VARIANTS if name != "none")]
    crashed = [Found("mixed", name, 1, 0, ["workload: TypeError: ..."]) for name in names]
    assert set(row_of("ext4", crashed, 1.0).missed) == set(names)
    lost = [Found("mixed", name, 1, 0, ["lost: step 10 is gone"]) for name in names]
    assert set(row_of("ext4", lost, 1.0).caught) == set(names)


@needs_mounts
@pytest.mark.serial
@pytest.mark.timeout(300)
def test_power_loss_on_ext4(capsys: pytest.CaptureFixture[str]) -> None:
    row = run("fast")
    with capsys.disabled():
        print(f"\n{row.text()}")
    assert row.good, row


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_power_loss_on_more_images(filesystem: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (problem := why_not(filesystem)) is not None:
        pytest.skip(f"power loss on {filesystem}: {problem}")
    row = run("nightly", filesystem)
    with capsys.disabled():
        print("", row.text(), *row.notes, sep="\n")
    assert row.good, row


@needs_mounts
@pytest.mark.serial
def test_a_killed_campaign_leaves_no_mount_and_no_device() -> None:
    command = [sys.executable, "-m", "tests.campaigns.ext4._check"]
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    with subprocess.Popen(
        command,
        cwd=_HOUSE,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        print(json.dumps(asdict(Task(Job("mixed"), 1000))), file=program.stdin, flush=True)
        _until(lambda: "stepseal" in _mounts_of(program.pid), "nothing was mounted")
        devices: set[str] = set()

        def has_device() -> bool:
            devices.update(_devices())
            return bool(devices)

        _until(has_device, "no loop device was made")
        program.kill()
    _until(lambda: not devices & _devices(), "a loop device is left")
    assert "stepseal-disk" not in Path("/proc/self/mounts").read_text()


def _mounts_of(pid: int) -> str:
    return Path(f"/proc/{pid}/mounts").read_text()


def _devices() -> set[str]:
    """Return the loop devices over files of this campaign."""
    found = {}
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found[path.parts[3]] = path.read_text()
        except OSError:
            continue  # released meanwhile
    return {name for name, backing in found.items() if "stepseal-ext4-" in backing}


def _until(condition: Callable[[], bool], problem: str) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 60, problem
        time.sleep(0.02)
