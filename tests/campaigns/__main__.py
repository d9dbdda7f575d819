"""Every campaign, one after another: `python -m tests.campaigns --size nightly [NAME ...]`; with
`--variants`, the list of all broken variants.

Prints what each prints: its row, its notes, its violations with the command that repeats them. What
this machine lacks something for is skipped with the reason, which the last line repeats.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tests.campaigns._registry import registry
from tests.campaigns.actors import _frameworks
from tests.campaigns.ext4 import _mounts
from tests.campaigns.harness._sizes import Size
from tests.campaigns.strace import _calls as _strace_calls

if TYPE_CHECKING:
    from collections.abc import Callable

CAMPAIGNS = {
    "kill": "kill",
    "errno": "errno",
    "power-loss": "power_loss",
    "ext4": "ext4",
    "strace": "strace",
    "simulator": "simulator",
    "model": "model",
    "corruption": "corruption",
    "fuzz": "fuzz",
    "hang": "hang",
    "placements": "placements",
    "soak": "soak",
    "actors": "actors",
}
"""Name to the folder whose `run` it is."""
_WHY_NOT: dict[str, Callable[[], str | None]] = {
    "ext4": partial(_mounts.why_not, "ext4"),
    "strace": _strace_calls.why_not,
    "actors": _frameworks.why_not,
}
"""Each says what this machine lacks for a campaign, if anything."""
_HOUSE = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the campaigns that were named, or all; return 1 if one of them was not clean."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CAMPAIGNS))
    parser.add_argument("--size", choices=get_args(Size), default="fast")
    parser.add_argument("--variants", action="store_true", help="list what each must catch")
    asked = parser.parse_args()
    if asked.variants:
        print("\n".join(each.text() for each in registry()))
        return 0
    unknown = set(asked.names) - CAMPAIGNS.keys()
    if unknown:
        parser.error(f"no such campaign: {', '.join(sorted(unknown))}")
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    failed, skipped = [], []
    for name in asked.names or CAMPAIGNS:
        reason = _WHY_NOT[name]() if name in _WHY_NOT else None
        if reason is not None:
            print(f"== {name}: skipped: {reason}", flush=True)
            skipped.append(f"{name} ({reason})")
            continue
        print(f"== {name}", flush=True)
        module = f"tests.campaigns.{CAMPAIGNS[name]}.run"
        command = [sys.executable, "-m", module, "--size", asked.size]
        done = subprocess.run(command, cwd=_HOUSE, env={**os.environ, "PYTHONPATH": path})
        if done.returncode:
            failed.append(name)
    last = f"not clean: {', '.join(failed)}" if failed else "all clean"
    print(f"{last}; skipped: {', '.join(skipped)}" if skipped else last)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
