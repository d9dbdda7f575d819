"""`python -m tests.campaigns` skips what the machine lacks something for, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.campaigns._registry import registry

if TYPE_CHECKING:
    from collections.abc import Sequence

_HOUSE = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def started_without_tools(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the house on a machine that has neither strace nor mkfs."""
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    command: Sequence[str] = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONPATH": path, "PATH": "/nowhere"}
    return subprocess.run(command, cwd=_HOUSE, env=environment, stdout=subprocess.PIPE, text=True)


def test_every_campaign_has_its_broken_variants() -> None:
    assert Counter(each.campaign for each in registry()) == {
        "kill": 8,
        "errno": 11,
        "power-loss": 17,
        "ext4": 8,
        "strace": 3,
        "simulator": 68,
        "model": 15,
        "corruption": 9,
        "fuzz": 13,
        "hang": 10,
        "placements": 12,
        "soak": 4,
        "actors": 4,
    }
    assert all(each.name and each.seen for each in registry())


@pytest.mark.parametrize("size", ["nightly", "release"])
def test_what_the_machine_lacks_is_skipped_with_the_reason(size: str) -> None:
    done = started_without_tools("tests.campaigns", "--size", size, "strace", "ext4")
    first, second, last = done.stdout.splitlines()
    assert first == "== strace: skipped: strace is not installed"
    assert second.startswith("== ext4: skipped: needs ")
    reason = second.removeprefix("== ext4: skipped: ")
    assert last == f"all clean; skipped: strace (strace is not installed), ext4 ({reason})"
    assert done.returncode == 0


@pytest.mark.parametrize("module", ["strace", "ext4"])
def test_a_campaign_by_hand_says_why_it_is_skipped(module: str) -> None:
    done = started_without_tools(f"tests.campaigns.{module}.run")
    assert done.stdout.startswith("skipped: ")
    assert done.returncode == 0
