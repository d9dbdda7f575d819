"""How the command line prints: JSON, tables, sizes, errors."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.errors import CheckpointError

__all__ = ["fail", "print_json", "print_table", "size_text"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


def fail(error: CheckpointError) -> None:
    """Print an error on stderr."""
    sys.stderr.write(f"stepseal: {error}\n")


def size_text(size_bytes: int) -> str:
    """Return a size for people, such as `1.4 GiB`."""
    size = float(size_bytes)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit takes every size")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns aligned to their widest cell; plain text, for `grep` and `awk`."""
    cells = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
