"""Campaigns that fork run as programs of their own, whose one thread imported everything once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.campaigns.harness._sizes import Row

__all__ = ["finish", "print_row", "row_of"]

_HOUSE = Path(__file__).parents[3]


def row_of(module: str, *arguments: str) -> Row:
    """Run a campaign program; return what it reports.

    Raises:
        subprocess.CalledProcessError: it did not come to its end.
    """
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=_HOUSE,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in found.items()
    }
    return Row(**values)


def print_row(row: Row) -> None:
    """Report to `row_of`."""
    print(json.dumps(asdict(row)), flush=True)


def finish(row: Row, *, as_json: bool) -> int:
    """Print the result of a campaign; return the exit code of its program."""
    if as_json:
        print_row(row)
        return 0
    print(row.text())
    for note in row.notes:
        print(f"  {note}")
    for name in row.missed:
        print(f"  MISSED VARIANT: {name}")
    for violation in row.violations:
        print(f"  VIOLATION: {violation}")
    return 1 if row.violations or row.missed else 0
