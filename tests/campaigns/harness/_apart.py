"""Runs a campaign in a process of its own: those that fork must not inherit the threads of pytest.

python -m tests.campaigns.harness._apart tests.campaigns.errno.run fast
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from tests.campaigns.harness._programs import print_row, row_of

if TYPE_CHECKING:
    from tests.campaigns.harness._sizes import Row, Size

__all__ = ["run_apart"]


def run_apart(module: str, size: Size) -> Row:
    """Return what `module.run(size)` returns in another process."""
    return row_of("tests.campaigns.harness._apart", module, size)


if __name__ == "__main__":
    print_row(import_module(sys.argv[1]).run(sys.argv[2]))
