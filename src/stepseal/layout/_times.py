"""Times in documents: UTC to the microsecond, in one form of ISO 8601; figures for people."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from stepseal.layout._validate import show

__all__ = ["duration_text", "size_text", "time_problem", "unix_time", "utc_text"]

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(?:Z|\+00:00)", re.ASCII
)  # of what it lets through, `fromisoformat` refuses all that is no time


def utc_text(unix_s: float) -> str:
    """Return Unix time in the format of documents."""
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="microseconds")


def unix_time(text: str) -> float:
    """Return the Unix time of a text in a document.

    Raises:
        ValueError: the text is not `YYYY-MM-DDTHH:MM:SS`, with up to six decimals, and `Z` or
            `+00:00`.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a UTC time in ISO 8601, found {show(text)}")
    # Python 3.10 reads neither `Z` nor decimals of any number but three and six
    found = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc)
    return found.replace(microsecond=int((match[2] or "0").ljust(6, "0"))).timestamp()


def time_problem(value: str) -> str | None:
    """Return what is wrong with the text of a time, or None."""
    try:
        unix_time(value)
    except ValueError:
        return f"expected a UTC time in ISO 8601, found {show(value)}"
    return None


def duration_text(seconds: float) -> str:
    """Return a readable duration, in minutes, hours or days."""
    hours = seconds / 3600
    if hours < 1:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} days"


def size_text(size_bytes: int) -> str:
    """Return a size for people, such as `1.4 GiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = min((size_bytes.bit_length() - 1) // 10, len(_UNITS))
    return f"{size_bytes / 1024**power:.1f} {_UNITS[power - 1]}"
