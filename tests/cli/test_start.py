"""The command line as a process: it loads no torch, and few modules."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_MODULES = """
import json, sys
from stepseal.cli import main
for verb in ("ls", "show", "verify", "doctor"):
    try:
        main([verb, sys.argv[1]])
    except SystemExit:
        pass
print(json.dumps(sorted(sys.modules)))
"""
_MOST_MODULES = 350
"""What a start loads is what it takes: a count does not depend on the machine."""


def test_no_verb_loads_torch_or_the_wings_that_do(eventful_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MODULES, str(eventful_root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    modules = json.loads(done.stdout.splitlines()[-1])
    assert "stepseal.transfer" in modules
    for unwanted in ("torch", "numpy", "rich", "stepseal.components", "stepseal.session"):
        assert unwanted not in modules
    assert len(modules) < _MOST_MODULES


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-m", "stepseal"], ["-m", "stepseal.cli"]])
def test_it_runs_as_a_module(eventful_root: Path, how: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *how, "ls", str(eventful_root)],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert b"committed" in done.stdout


def test_a_reader_that_stops_early_is_no_failure_of_ours(eventful_root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "stepseal", "show", str(eventful_root), "--json", "--tensors"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
