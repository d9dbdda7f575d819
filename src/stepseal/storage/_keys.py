"""Which keys are valid: relative paths without empty segments, `.` and `..`.

All file names of Linux are valid, so every listed entry can be read and removed: names with
backslashes, control characters or bytes that are not UTF-8. The names that stepseal itself gives
follow much stricter rules; see `layout`.
"""

from __future__ import annotations

from stepseal.errors import InvalidInput

__all__ = ["check_key", "check_pair", "parent_key", "split_key"]


def split_key(key: str) -> tuple[str, ...]:
    """Return the segments of a key; empty for the root.

    Raises:
        InvalidInput: the key is not a safe relative path.
    """
    if not isinstance(key, str):
        raise InvalidInput(
            f"key {key!r} refused: expected str, found {type(key).__name__}. Pass a relative path."
        )
    if not key:
        return ()
    segments = tuple(key.split("/"))
    for segment in segments:
        problem = _segment_problem(segment)
        if problem:
            raise InvalidInput(
                f"key {key!r} refused: expected a safe relative path, found {problem}. "
                "Use segments joined by single slashes.",
                path=key,
                found=segment,
            )
    return segments


def check_key(key: str) -> tuple[tuple[str, ...], str]:
    """Return the segments of a key's directory, and the last segment.

    Raises:
        InvalidInput: the key is unsafe, or is the root.
    """
    segments = split_key(key)
    if not segments:
        raise InvalidInput(
            "key '' refused: expected an entry below the root, found the root itself. "
            "Name an entry.",
            path=key,
        )
    return segments[:-1], segments[-1]


def check_pair(source: str, target: str) -> None:
    """Check the two keys of a move or link.

    Raises:
        InvalidInput: a key is unsafe or the root, they are equal, or one is inside the other.
    """
    check_key(source)
    check_key(target)
    if f"{target}/".startswith(f"{source}/") or f"{source}/".startswith(f"{target}/"):
        raise InvalidInput(
            f"keys {source!r} and {target!r} refused: expected two keys, neither inside the other. "
            "Choose another target.",
            path=target,
        )


def parent_key(key: str) -> str:
    """Return the key of the directory that names `key`."""
    return "/".join(check_key(key)[0])


def _segment_problem(segment: str) -> str | None:
    if not segment:
        return "an empty segment"
    if segment in {".", ".."}:
        return f"the segment {segment!r}"
    if "\x00" in segment:
        return "a NUL"
    try:
        segment.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "text that is not valid in a file name"
    return None
