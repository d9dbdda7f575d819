"""What participants write and read in the simulation: two small files each, known beforehand.

Sizes depend on nothing, so that digests alone tell attempts and participants apart.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt
from stepseal.layout import MANIFEST, part_document_path, step_name
from stepseal.protocol import _messages as messages
from stepseal.storage import create_durable, make_dirs, read_bytes, walk_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import Storage

__all__ = ["Indexer", "captured", "payload_of", "read_part", "write_files"]

_MAX_BYTES = 4096
_COMPONENTS = [messages.ComponentReport("model", "tree", "replicated", "f" * 32)]
_SIZE_BYTES = 96
_DOCUMENT_BYTES = 64


def payload_of(attempt: str, participant: str) -> bytes:
    """Return the state of a participant at an attempt."""
    return f"{attempt} {participant}".encode().ljust(_SIZE_BYTES)


def captured(call: int, step: int) -> messages.Captured:
    """Return the report that state was captured; the same from all participants."""
    return messages.Captured(call, step, components=_COMPONENTS, cut={}, metrics={}, tags=[])


def payload_name(participant: str) -> str:
    """Return where in the step a participant's state lies."""
    return f"{participant.replace('/', '_')}.bin"


def write_files(storage: Storage, staging: str, participant: str, data: bytes) -> Iterator[str]:
    """Write and sync one part; say after each piece what was done, and `reported` at the end."""
    document = hashlib.sha256(data).hexdigest().encode()
    path = part_document_path(participant)
    make_dirs(storage, f"{staging}/{path}".rpartition("/")[0], base=staging)
    create_durable(storage, f"{staging}/{path}", document)
    yield "document"
    create_durable(storage, f"{staging}/{payload_name(participant)}", data)
    yield "payload"
    storage.sync_dir(f"{staging}/{path}".rpartition("/")[0])
    storage.sync_dir(staging)
    yield "closed"


def facts_of(participant: str, data: bytes) -> messages.PartReport:
    """Return what a participant reports of its part."""
    document = hashlib.sha256(data).hexdigest().encode()
    sha256 = hashlib.sha256(document).hexdigest()
    return messages.PartReport(part_document_path(participant), len(document), sha256)


def read_part(
    storage: Storage, step: int, manifest: Manifest, index: int, *, verify: bool = True
) -> bytes:
    """Read one participant's state from a step, verified against the manifest.

    Raises:
        Corrupt: a digest does not match.
        StorageUnavailable: it cannot be read.
    """
    part = manifest.parts[index]
    name = step_name(step)
    document = read_bytes(storage, f"{name}/{part.document.path}", _MAX_BYTES)
    data = read_bytes(storage, f"{name}/{payload_name(part.participant)}", _MAX_BYTES)
    if verify and hashlib.sha256(document).hexdigest() != part.document.sha256:
        raise Corrupt(f"{name}/{part.document.path}: digest differs", step=step)
    if verify and hashlib.sha256(data).hexdigest().encode() != document:
        raise Corrupt(f"{name}/{payload_name(part.participant)}: digest differs", step=step)
    return data


class Indexer:
    """Inspects names and sizes of files; writes nothing of its own."""

    def write_index(self, storage: Storage, staging: str, draft: Manifest) -> Manifest:
        return draft

    def inspect(
        self, storage: Storage, key: str, manifest: Manifest, *, exact: bool
    ) -> Sequence[str]:
        expected = {part.document.path: _DOCUMENT_BYTES for part in manifest.parts}
        expected |= {payload_name(part.participant): _SIZE_BYTES for part in manifest.parts}
        found = {path: entry.size_bytes for path, entry in walk_files(storage, key)}
        found.pop(MANIFEST, None)
        wrong = [
            f"{p}: missing or of another size" for p in expected if found.get(p) != expected[p]
        ]
        return wrong + ([f"{p}: not expected" for p in found if p not in expected] if exact else [])
