"""What a key may be: a relative path whose every segment names an entry and leads nowhere else.

As wide as Linux: whatever a listing returns can be looked at and removed, be it a backslash, a
control character, or bytes that are no UTF-8. What stepseal itself names is much narrower; `layout`
has those rules.
"""

from __future__ import annotations

from stepseal.errors import InvalidInput

__all__ = ["check_key", "check_pair", "parent_key", "split_key"]


def split_key(key: str) -> tuple[str, ...]:
    """Return the segments of a key, none for the root.

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
    """Return the directory's segments and the last segment of a key that names an entry.

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
    """Check two keys that one verb moves or links.

    Raises:
        InvalidInput: one is unsafe or the root, they are equal, or one holds the other.
    """
    check_key(source)
    check_key(target)
    if f"{target}/".startswith(f"{source}/") or f"{source}/".startswith(f"{target}/"):
        raise InvalidInput(
            f"keys {source!r} and {target!r} refused: expected two of which neither holds the "
            "other. Choose another target.",
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
        return "text that no file name has"
    return None
