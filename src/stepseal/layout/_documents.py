"""JSON documents with exactly one spelling, and documents that carry their own digest.

A value has one canonical form: sorted keys, one value per line, shortest numbers, UTF-8, a newline
at the end. Readers refuse any other form, such as duplicate keys, NaN, odd escapes and changed
whitespace. Size, nesting and the number of values are checked before a value is built.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from stepseal.errors import Corrupt, InvalidInput
from stepseal.layout._digests import sha256_hex

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.layout._digests import Buffer

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_DOCUMENT_BYTES",
    "MAX_INT",
    "DocumentLimits",
    "Outline",
    "decode_document",
    "encode_document",
    "is_same",
    "outline",
    "refuse",
    "seal",
    "unseal",
]

MAX_INT = 2**63 - 1
"""Largest absolute value of an integer."""
MAX_DOCUMENT_BYTES = 64 << 20
"""Largest document, unless a caller says otherwise."""

_WINDOW_BYTES = 1 << 20
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
"""As many digits as `MAX_INT` has."""
_BEFORE_BODY = b'{\n "body": '
_NUM_BYTES_AFTER_BODY = len(b',\n "sha256": "') + 64 + len(b'"\n}\n')
_DEPTH_STEP = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    """Limits of a document; writers and readers of one kind of document use the same limits."""

    max_depth: int = 64
    """Deepest nesting of lists and dicts; a scalar has depth 0."""
    max_values: int = 2_000_000
    """Most values and keys together; an empty list or dict counts twice."""


DEFAULT_LIMITS = DocumentLimits()
"""Limits that keep the memory of a hostile document near its size plus 200 MB."""


@dataclass(frozen=True, slots=True)
class Outline:
    """Counts from a scan of JSON text that builds no values; the text may still be malformed."""

    num_values: int
    """Number of values and keys, with empty lists and dicts counted twice."""
    num_pairs: int
    """Number of key-value pairs, duplicates included."""
    depth: int
    """Deepest nesting."""
    has_long_numbers: bool = field(default=False, compare=False)
    """A number may exceed `MAX_INT`; always so for long texts, which are scanned in windows."""


def outline(text: bytes, limits: DocumentLimits) -> Outline:
    """Count the values in JSON text, in bounded memory; stops soon after a limit is exceeded."""
    # A quote that is not a delimiter is always escaped, so without escapes every quote is one.
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_values, num_pairs, depth, deepest, in_string, outside = 1, 0, 0, 0, 0, b""
    for start in range(0, len(text), _WINDOW_BYTES):
        pieces = text[start : start + _WINDOW_BYTES].split(b'"')
        outside = b"".join(pieces[in_string::2])
        in_string ^= (len(pieces) - 1) & 1
        new_pairs = outside.count(b":")
        num_pairs += new_pairs
        num_values += new_pairs + sum(map(outside.count, (b",", b"[", b"{")))
        if num_values > limits.max_values:
            break
        steps = map(_DEPTH_STEP.__getitem__, outside.translate(None, _NOT_BRACKETS))
        depths = list(accumulate(steps, initial=depth))
        depth = depths[-1]
        deepest = max(deepest, *depths)
        # Below zero the text is malformed; the decoder has the better message.
        if deepest > limits.max_depth or min(depths) < 0:
            break
    is_long = len(text) > _WINDOW_BYTES or _LONG_NUMBER.search(outside) is not None
    return Outline(num_values, num_pairs, deepest, is_long)


def encode_document(value: object, limits: DocumentLimits = DEFAULT_LIMITS) -> bytes:
    """Return the canonical JSON of a value; `decode_document` with the same limits accepts it.

    Args:
        value: None, bool, int, finite float, str, and lists, tuples (written as lists) and
            str-keyed dicts of these; subclasses are refused, because JSON does not preserve their
            type.
        limits: limits of the document.

    Raises:
        InvalidInput: JSON cannot hold the value exactly, or a limit is exceeded; `.problems` says
            where.
    """
    problem = _value_problem(value, limits)
    if problem is None:
        try:
            data = _canonical(value)
        except UnicodeEncodeError as error:  # a lone surrogate
            problem = str(error)
        else:
            if outline(data, limits).num_values <= limits.max_values:
                return data
            problem = f"expected at most {limits.max_values} values and keys"
    problem = problem.removeprefix(": ")
    raise InvalidInput(f"value is not writable as JSON: {problem}", problems=(problem,))


def decode_document(
    data: Buffer,
    *,
    what: str,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    limits: DocumentLimits = DEFAULT_LIMITS,
) -> object:
    """Return the value of a canonical JSON document, or refuse it; safe on hostile bytes.

    Args:
        data: the whole document.
        what: name of the document in errors, usually its path.
        max_bytes: largest size; checked before anything else.
        limits: limits of the document.

    Raises:
        Corrupt: the bytes are not the canonical JSON of an allowed value; `.problems` says why.
    """
    num_bytes = memoryview(data).nbytes
    if num_bytes > max_bytes:
        raise refuse(what, [f"expected at most {max_bytes} bytes, found {num_bytes}"])
    text = bytes(data)
    found = outline(text, limits)
    if found.num_values > limits.max_values:
        raise refuse(what, [f"expected at most {limits.max_values} values and keys, found more"])
    if found.depth > limits.max_depth:
        raise refuse(what, [f"expected nesting of at most {limits.max_depth}, found more"])
    try:
        value: object = msgspec.json.decode(text)
    except ValueError as error:  # malformed, not UTF-8, or a number out of range
        raise refuse(what, [f"expected JSON, found {error}"]) from error
    # What is canonical and nested as allowed holds no other problem than an int out of range.
    is_canonical = _is_canonical(text, value)
    if is_canonical and not found.has_long_numbers:
        return value
    if problem := _value_problem(value, limits):
        raise refuse(what, [problem.removeprefix(": ")])
    if not is_canonical:
        raise refuse(what, ["expected canonical JSON: unique sorted keys, one value per line"])
    return value


def seal(body: object, limits: DocumentLimits = DEFAULT_LIMITS) -> bytes:
    """Return a document that holds `body` and the SHA-256 of the canonical JSON of `body`.

    Raises:
        InvalidInput: `body` cannot be written; see `encode_document`.
    """
    digest = sha256_hex(encode_document(body, limits))
    return encode_document({"body": body, "sha256": digest}, _sealed(limits))


def unseal(
    data: Buffer,
    *,
    what: str,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    limits: DocumentLimits = DEFAULT_LIMITS,
) -> object:
    """Check the digest of a document that `seal` made, and return its body.

    Raises:
        Corrupt: the bytes are not a canonical sealed document, or the body differs from its digest.
    """
    document = decode_document(data, what=what, max_bytes=max_bytes, limits=_sealed(limits))
    if not isinstance(document, dict) or document.keys() != {"body", "sha256"}:
        raise refuse(what, ["expected exactly the keys `body` and `sha256`"])
    body: object = document["body"]
    if document["sha256"] != sha256_hex(_body_text(bytes(data))):
        found = sha256_hex(_canonical(body))
        raise refuse(what, [f"sha256: the body has {found}, the document says otherwise"])
    return body


def _body_text(text: bytes) -> bytes:
    """Return the canonical JSON of the body of a canonical sealed document, as it stands there."""
    lines = text[len(_BEFORE_BODY) : -_NUM_BYTES_AFTER_BODY]
    return lines.replace(b"\n ", b"\n") + b"\n"  # strings hold no newlines


def is_same(value: object, other: object) -> bool:
    """Return whether two values have the same canonical JSON; dataclasses are accepted, too."""
    return _compact(value) == _compact(other)


def refuse(what: str, problems: list[str]) -> Corrupt:
    """Return the error for a document that must not be used; it carries all problems."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Corrupt(
        f"{what} is damaged: {problems[0]}{more}. Verify the step, or use another one.",
        path=what,
        problems=tuple(problems),
    )


def _sealed(limits: DocumentLimits) -> DocumentLimits:
    """Return the limits of the sealed document around a body."""
    return DocumentLimits(limits.max_depth + 1, limits.max_values + 4)


def _canonical(value: object) -> bytes:
    return _lines(value) + b"\n"


def _is_canonical(text: bytes, value: object) -> bool:
    # Compared in two steps, because adding the newline would copy a large document.
    lines = _lines(value)
    return len(text) == len(lines) + 1 and text.startswith(lines) and text.endswith(b"\n")


def _lines(value: object) -> bytes:
    lines: bytes = msgspec.json.format(_compact(value), indent=1)
    return lines


def _compact(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _value_problem(value: object, limits: DocumentLimits, depth: int = 0) -> str | None:
    """Return the first problem that keeps a value from being JSON, with its path, or None."""
    if value is None or type(value) in (str, bool):
        return None
    if type(value) is int:
        fits = -MAX_INT <= value <= MAX_INT
        return None if fits else f": expected an int within +-{MAX_INT}"
    if type(value) is float:
        return None if math.isfinite(value) else f": expected a finite float, found {value}"
    if type(value) is dict:
        if any(type(key) is not str for key in value):
            return ": expected keys of type str"
        children: Iterable[tuple[object, object]] = value.items()
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        children = enumerate(value)
    else:
        return f": expected a JSON value, found {type(value).__name__}"
    if depth >= limits.max_depth:
        return f": expected nesting of at most {limits.max_depth}"
    for name, child in children:
        if problem := _value_problem(child, limits, depth + 1):
            return f"[{name!r:.80}]{problem}"
    return None
