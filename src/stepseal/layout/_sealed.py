"""What the manifest and the part documents share: file entries, references, and their envelope.

Each is a sealed JSON document that holds one dataclass. The encoder decodes its own output, so a
document that readers would refuse is never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar

import msgspec

from stepseal.errors import Corrupt, IncompatibleFormat, InvalidInput
from stepseal.layout._digests import num_chunks
from stepseal.layout._documents import MAX_INT, DocumentLimits, is_same, refuse, seal, unseal
from stepseal.layout._names import DCP_INDEX, MAX_STEP, parse_payload_path, path_problem
from stepseal.layout._validate import Problems, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout._digests import Buffer

__all__ = [
    "FORMAT_VERSION",
    "LIMITS",
    "DocumentRef",
    "FileEntry",
    "FormatVersion",
    "Hex32",
    "Hex64",
    "Role",
    "Size",
    "StepNumber",
    "decode_sealed",
    "encode_sealed",
    "file_problem",
    "refuse_newer_format",
]

FORMAT_VERSION = 1
"""Newest format version that this release writes and reads."""
LIMITS = DocumentLimits(max_depth=16, max_values=900_000)
"""Limits of manifests and part documents."""

_T = TypeVar("_T")

Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex64 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
StepNumber = Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP)]
FormatVersion = Annotated[int, msgspec.Meta(ge=1, le=FORMAT_VERSION)]
Role: TypeAlias = Literal["payload", "tree", "index", "dcp-index", "external"]
"""What a file of a step is for."""


@dataclass(frozen=True, slots=True)
class DocumentRef:
    """A document of the step and the expected digest of its bytes."""

    path: str
    """Relative to the step folder."""
    size_bytes: Size
    sha256: Hex64
    """Of all bytes of the file."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the step and the expected digests of its bytes."""

    path: str
    """Relative to the step folder."""
    size_bytes: Size
    role: Role
    """Purpose of the file; it decides which paths are allowed."""
    digests: tuple[Hex32, ...]
    """xxh3-128 of each MiB from the file's start; none for payload, which the part index covers."""


def file_problem(entry: FileEntry) -> str | None:
    """Return why an entry is not sound, or None."""
    if problem := path_problem(entry.path):
        return problem
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


def refuse_newer_format(version: int, what: str) -> None:
    """Raise IncompatibleFormat if a newer release wrote the document."""
    if version > FORMAT_VERSION:
        raise IncompatibleFormat(
            f"{what} is too new: expected format version {FORMAT_VERSION}, found {version}. "
            "Read it with a newer stepseal.",
            path=what,
            expected=FORMAT_VERSION,
            found=version,
        )


def encode_sealed(
    value: _T, check: Callable[[_T, Problems], None], *, what: str, max_bytes: int
) -> bytes:
    """Return a dataclass as a sealed document.

    Args:
        value: the dataclass.
        check: see `decode_sealed`.
        what: name of the document in errors.
        max_bytes: largest document.

    Raises:
        InvalidInput: a reader would refuse the document; `.problems` says why.
    """
    data = seal(msgspec.to_builtins(value), LIMITS)
    try:
        decode_sealed(type(value), data, check, what=what, max_bytes=max_bytes)
    except Corrupt as error:
        raise InvalidInput(
            f"{what} is not writable: {error.problems[0]}", path=what, problems=error.problems
        ) from None
    return data


def decode_sealed(
    cls: type[_T],
    data: Buffer,
    check: Callable[[_T, Problems], None],
    *,
    what: str,
    max_bytes: int,
) -> _T:
    """Return the dataclass that a sealed document holds, or refuse it; safe on hostile bytes.

    Args:
        cls: the dataclass; it has a field `format_version`.
        data: the whole document.
        check: reports further problems; called when all types and bounds are right.
        what: name of the document in errors.
        max_bytes: largest document.

    Raises:
        IncompatibleFormat: a newer release wrote it.
        Corrupt: anything else is wrong; `.problems` has the first value of a wrong type, or
            otherwise every finding.
    """
    body = unseal(data, what=what, max_bytes=max_bytes, limits=LIMITS)
    version = body.get("format_version") if isinstance(body, dict) else None
    if type(version) is int:
        refuse_newer_format(version, what)
    try:
        value = msgspec.convert(body, cls)
    except msgspec.ValidationError as error:
        raise refuse(what, [str(error)]) from None
    # Unknown fields are left out of the value, missing ones got defaults, ints became floats.
    if not is_same(value, body):
        raise refuse(what, [f"expected exactly the fields of a {cls.__name__}, each of its type"])
    problems = Problems()
    check(value, problems)
    if problems.listed:
        raise refuse(what, problems.all())
    return value
