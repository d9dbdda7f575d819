"""How the command line prints: JSON, tables, sizes, errors."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.errors import CheckpointError

__all__ = ["fail", "print_json", "print_line", "print_table", "size_text", "warn"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def print_json(value: object) -> None:
    """Print one JSON document on stdout; NaN and Inf stand as strings, as in a manifest."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def print_line(text: str) -> None:
    """Print one line on stdout; what could drive a terminal or is no text stands escaped."""
    sys.stdout.write(f"{_printable(text)}\n")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fail(error: CheckpointError) -> None:
    """Print an error on stderr."""
    lines = "\n".join(_printable(line) for line in str(error).splitlines())
    sys.stderr.write(f"stepseal: {lines}\n")


def warn(text: str) -> None:
    """Print one line on stderr that does not change the exit code."""
    sys.stderr.write(f"stepseal: warning: {_printable(text)}\n")


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
    cells = [[_printable(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
