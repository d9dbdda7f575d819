"""What the manifest and the part documents share: file entries, references, and sealed records.

A record is a sealed JSON document that holds one dataclass. Writing checks exactly what reading
checks, so nothing is written that would be refused later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar

from stepseal.errors import IncompatibleFormat, InvalidInput
from stepseal.layout._digests import num_chunks
from stepseal.layout._documents import MAX_INT, DocumentLimits, refuse, seal, unseal
from stepseal.layout._names import (
    DCP_INDEX,
    MAX_STEP,
    parse_payload_path,
    participant_problem,
    path_problem,
)
from stepseal.layout._validate import Problems, bounded_int, read_value, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout._digests import Buffer

__all__ = [
    "FORMAT_VERSION",
    "LIMITS",
    "DocumentRef",
    "FileEntry",
    "Hex32",
    "Hex64",
    "ParticipantId",
    "Role",
    "Size",
    "StepNumber",
    "decode_record",
    "encode_record",
    "file_problem",
]

FORMAT_VERSION = 1
"""Newest format version that this release writes and reads."""
LIMITS = DocumentLimits(max_depth=16, max_values=900_000)
"""What a manifest or part document may hold."""

_T = TypeVar("_T")
_HEX = re.compile(r"[0-9a-f]+")


def _hex_check(num_chars: int) -> Callable[[str], str | None]:
    def check(value: str) -> str | None:
        if len(value) == num_chars and _HEX.fullmatch(value):
            return None
        return f"expected {num_chars} lower-case hex digits, found {show(value)}"

    return check


Hex32 = Annotated[str, _hex_check(32)]
Hex64 = Annotated[str, _hex_check(64)]
Size = Annotated[int, bounded_int(0, MAX_INT)]
StepNumber = Annotated[int, bounded_int(0, MAX_STEP)]
StepPath = Annotated[str, path_problem]
ParticipantId = Annotated[str, participant_problem]
Role: TypeAlias = Literal["payload", "tree", "index", "dcp-index", "external"]
"""What a file of a step is for."""


@dataclass(frozen=True, slots=True)
class DocumentRef:
    """A document of the step and the digest that its bytes must have."""

    path: StepPath
    """Relative to the step folder."""
    size_bytes: Size
    sha256: Hex64
    """Of all bytes of the file."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the step and the digests that its bytes must have."""

    path: StepPath
    """Relative to the step folder."""
    size_bytes: Size
    role: Role
    """What the file is for; it decides where the path may lead."""
    digests: tuple[Hex32, ...]
    """xxh3-128 of each MiB from the file's start; none for payload, which the part index covers."""


def file_problem(entry: FileEntry) -> str | None:
    """Say why an entry contradicts itself, or None."""
    segments = entry.path.split("/")
    fits = {
        "payload": parse_payload_path(entry.path) is not None,
        "tree": segments[0] == "components" and len(segments) > 2,
        "index": segments[0] == "parts" and entry.path.endswith(".safetensors"),
        "dcp-index": entry.path == DCP_INDEX,
        "external": segments[0] == "external" and len(segments) > 2,
    }
    if not fits[entry.role]:
        return f"a file of role {entry.role} cannot have the path {show(entry.path)}"
    expected = 0 if entry.role == "payload" else num_chunks(entry.size_bytes)
    if len(entry.digests) != expected:
        return (
            f"expected {expected} digests for {entry.size_bytes} bytes, found {len(entry.digests)}"
        )
    return None


def encode_record(
    cls: type[_T],
    plain: object,
    check: Callable[[_T, Problems], None],
    *,
    what: str,
    max_bytes: int,
) -> bytes:
    """Return a record as a sealed document.

    Args:
        cls: dataclass of the record.
        plain: the record as `to_plain` gives it.
        check: adds what is wrong beyond types and bounds.
        what: names the record in errors.
        max_bytes: largest document.

    Raises:
        InvalidInput: the record would be refused on reading; `.problems` lists why.
    """
    problems = Problems()
    record = read_value(cls, plain, problems)
    if not problems.listed:
        check(record, problems)
    if found := problems.all():
        raise InvalidInput(f"{what} is not writable: {found[0]}", path=what, problems=found)
    data = seal(plain, LIMITS)
    if len(data) > max_bytes:
        raise InvalidInput(
            f"{what} is not writable: expected at most {max_bytes} bytes, found {len(data)}",
            path=what,
        )
    return data


def decode_record(
    cls: type[_T],
    data: Buffer,
    check: Callable[[_T, Problems], None],
    *,
    what: str,
    max_bytes: int,
) -> _T:
    """Return the record that a sealed document holds, or refuse it; safe on hostile bytes.

    Args:
        cls: dataclass of the record; it has a field `format_version`.
        data: the whole document.
        check: adds what is wrong beyond types and bounds; called when those are right.
        what: names the document in errors.
        max_bytes: largest document.

    Raises:
        IncompatibleFormat: a newer release wrote it.
        Corrupt: anything else is wrong; `.problems` lists every finding.
    """
    body = unseal(data, what=what, max_bytes=max_bytes, limits=LIMITS)
    version = body.get("format_version") if isinstance(body, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise IncompatibleFormat(
            f"{what} is too new: expected format version {FORMAT_VERSION}, found {version}. "
            "Read it with a newer stepseal.",
            path=what,
            expected=FORMAT_VERSION,
            found=version,
        )
    problems = Problems()
    record = read_value(cls, body, problems)
    if not problems.listed:
        check(record, problems)
    if problems.listed:
        raise refuse(what, problems.all())
    return record
