"""Runs a campaign in a process of its own: those that fork must not inherit the threads of pytest.

python -m tests.campaigns._apart tests.campaigns._errno fast
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.campaigns._sizes import Row

if TYPE_CHECKING:
    from tests.campaigns._sizes import Size

__all__ = ["run_apart"]

_HOUSE = Path(__file__).resolve().parents[2]


def run_apart(module: str, size: Size) -> Row:
    """Return what `module.run(size)` returns in another process."""
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns._apart", module, size],
        cwd=_HOUSE,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for name in ("violations", "caught", "missed", "notes"):
        found[name] = tuple(found[name])
    return Row(**found)


if __name__ == "__main__":
    print(json.dumps(asdict(import_module(sys.argv[1]).run(sys.argv[2]))))
