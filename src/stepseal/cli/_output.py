"""How the command line prints: JSON, tables, sizes, errors."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["abandon_stdout", "finish", "print_line", "print_table", "say", "warn"]

T = TypeVar("T")


def finish(
    found: T, show: Callable[[T], None], *, as_json: bool = False, code: int = 0
) -> NoReturn:
    """Print the result and exit with `code`.

    A reader that stops early (`| head`) or a closed stdout does not change the code. Any other
    error while printing changes code 0 to a failure.
    """
    try:
        if as_json:
            _print_json(found)
        else:
            show(found)
        _flush()
    except OSError as error:
        if error.errno != errno.EPIPE:
            say(f"cannot print on stdout: {error.strerror}. Free space, or print elsewhere.")
            code = code or 1
        abandon_stdout()
    sys.exit(code)


def abandon_stdout() -> None:
    """Discard unwritten output; otherwise Python would write it again when the process ends."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush() -> None:
    if sys.stdout is not None:  # None: it was closed before we started
        sys.stdout.flush()


def _write(text: str) -> None:
    if sys.stdout is not None:
        sys.stdout.write(text)


def _print_json(value: object) -> None:
    """Print one JSON document on stdout; NaN and Inf are strings, as in a manifest."""
    _write(json.dumps(_finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def print_line(text: str) -> None:
    """Print one line on stdout; control characters and undecodable bytes are escaped."""
    _write(f"{_printable(text)}\n")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """Print a message on stderr; ignore a failure to print it."""
    lines = "\n".join(_printable(line) for line in text.splitlines())
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"stepseal: {lines}\n")


def warn(text: str) -> None:
    """Print a message on stderr that does not change the exit code."""
    say(f"warning: {text}")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns aligned to their widest cell; plain text, for `grep` and `awk`."""
    cells = [[_printable(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _write(line.rstrip() + "\n")
