"""The part document: the files that one participant wrote into a step.

The participant writes it; the manifest records its path and digest. Details of each tensor are in
the part's index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from stepseal.layout._documents import refuse
from stepseal.layout._names import (
    parse_payload_path,
    part_index_path,
    participant_problem,
    path_set_problems,
)
from stepseal.layout._sealed import (
    FORMAT_VERSION,
    DocumentRef,
    FileEntry,
    FormatVersion,
    Hex32,
    Size,
    StepNumber,
    decode_sealed,
    encode_sealed,
    file_problem,
)
from stepseal.layout._validate import Problems, show

if TYPE_CHECKING:
    from stepseal.layout._digests import Buffer

__all__ = ["MAX_PART_BYTES", "Part", "decode_part", "encode_part", "part_bytes"]

MAX_PART_BYTES = 256 << 20
"""Largest part document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one participant contributes to a step."""

    format_version: FormatVersion = FORMAT_VERSION
    step: StepNumber
    attempt: Hex32
    """Attempt of the manifest that this part belongs to."""
    participant: str
    files: tuple[FileEntry, ...]
    """Every file of the part except this document and the index."""
    index: DocumentRef | None
    """The columnar index; None if there is no payload."""


def encode_part(part: Part) -> bytes:
    """Return the bytes of a part document; `decode_part` accepts them.

    Raises:
        InvalidInput: a reader would refuse the part; `.problems` lists every reason with its path.
    """
    what = f"part of {show(part.participant)}"
    return encode_sealed(part, _check, what=what, max_bytes=MAX_PART_BYTES)


def decode_part(data: Buffer, *, what: str = "part document") -> Part:
    """Return the checked part of a file; safe on hostile bytes.

    Args:
        data: all bytes of the file.
        what: names the file in errors.

    Raises:
        IncompatibleFormat: a newer release wrote it.
        Corrupt: anything else is wrong; `.problems` lists every finding with its path.
    """
    return decode_sealed(Part, data, _check, what=what, max_bytes=MAX_PART_BYTES)


@dataclass(frozen=True, slots=True)
class _Sized:
    size_bytes: Size


@dataclass(frozen=True, slots=True)
class _Sizes:
    files: tuple[_Sized, ...]
    index: _Sized | None


@dataclass(frozen=True, slots=True)
class _SealedSizes:
    body: _Sizes


def part_bytes(data: Buffer, *, what: str = "part document") -> int:
    """Return the size of the index and all files that a part document lists, and check no more.

    Args:
        data: all bytes of the file, after their digest was found to be the manifest's.
        what: names the file in errors.

    Raises:
        Corrupt: it is no part document.
    """
    try:
        body = msgspec.json.decode(data, type=_SealedSizes).body
    except ValueError as error:
        raise refuse(what, [str(error)]) from None
    return sum(file.size_bytes for file in (*body.files, *filter(None, [body.index])))


def _check(part: Part, problems: Problems) -> None:
    """Report contradictions between the fields of a part; each field is valid by itself."""
    problems.extend("participant", filter(None, [participant_problem(part.participant)]))
    problems.extend("files", path_set_problems(entry.path for entry in part.files))
    ordinals: set[int] = set()
    for number, entry in enumerate(part.files):
        if entry.role not in ("payload", "tree", "external"):
            problems.add(f"files[{number}].role", f"a {entry.role} file is not listed in a part")
        elif problem := file_problem(entry):
            problems.add(f"files[{number}]", problem)
        elif payload := parse_payload_path(entry.path):
            ordinals.add(payload[0])
    if len(ordinals) > 1:
        problems.add("files", f"payload of participants {sorted(ordinals)[:8]} in one part")
    if ordinals and part.index is None:
        problems.add("index", "expected an index, because there is payload")
    expected = part_index_path(part.participant)
    if part.index is not None and part.index.path != expected:
        problems.add("index.path", f"expected {expected}, found {show(part.index.path)}")
