"""Every campaign, one after another: `python -m tests.campaigns --size nightly [NAME ...]`.

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

from tests.campaigns import _mounts, _strace_calls
from tests.campaigns._sizes import Size

if TYPE_CHECKING:
    from collections.abc import Callable

CAMPAIGNS = {
    "kill": "_kill_row",
    "errno": "_errno",
    "power-loss": "_power_loss",
    "ext4": "_ext4",
    "strace": "_strace",
    "simulator": "_simulator",
    "model": "_model",
    "corruption": "_corruption",
    "fuzz": "_fuzz",
    "hang": "_hang",
    "soak": "_soak",
}
_WHY_NOT: dict[str, Callable[[], str | None]] = {
    "ext4": partial(_mounts.why_not, "ext4"),
    "strace": _strace_calls.why_not,
}
"""Each says what this machine lacks for a campaign, if anything."""
_HOUSE = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the campaigns that were named, or all; return 1 if one of them was not clean."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CAMPAIGNS))
    parser.add_argument("--size", choices=get_args(Size), default="fast")
    asked = parser.parse_args()
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
        command = [sys.executable, "-m", f"tests.campaigns.{CAMPAIGNS[name]}", "--size", asked.size]
        done = subprocess.run(command, cwd=_HOUSE, env={**os.environ, "PYTHONPATH": path})
        if done.returncode:
            failed.append(name)
    last = f"not clean: {', '.join(failed)}" if failed else "all clean"
    print(f"{last}; skipped: {', '.join(skipped)}" if skipped else last)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
