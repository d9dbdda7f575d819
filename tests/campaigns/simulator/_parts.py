"""What participants write and read in the simulation: two small files each, known beforehand.

Sizes depend on nothing, so that digests alone tell attempts and participants apart. Where there are
engines, each participant's engine writes one more file, which is synced by whoever lists it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt
from stepseal.layout import MANIFEST, external_folder, part_document_path
from stepseal.protocol import _messages as messages
from stepseal.storage import create_durable, make_dirs, read_bytes, walk_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import Storage

__all__ = [
    "Indexer", "Replica", "captured", "engine_file", "engine_folder", "engine_payload_of",
    "facts_of", "has_engines", "inventory_of", "is_payload_of", "listed_in", "payload_name",
    "payload_of", "read_part", "write_engine_file", "write_files",
]  # fmt: skip

_MAX_BYTES = 4096
_ENGINE = messages.ComponentReport("engine", "external", "sharded", "")
_SIZE_BYTES = 96
_DIGEST_BYTES = 64


def payload_of(attempt: str, participant: str) -> bytes:
    """Return the state of a participant at an attempt."""
    return f"{attempt} {participant}".encode().ljust(_SIZE_BYTES)


def is_payload_of(data: bytes, attempt: str, participant: str) -> bool:
    """Tell whether this is the state of a participant at an attempt, whatever it says besides."""
    return data.split()[:2] == [attempt.encode(), participant.encode()]


@dataclass(frozen=True)
class Replica:
    """What a participant holds of a component that all hold, and of one that is not required."""

    model: str
    extra: str
    """Empty where it cannot be captured."""
    tells: bool
    """Whether it tells the digest of the model."""

    def digests(self) -> dict[str, dict[str, str]]:
        """Return what is told with the part."""
        return {"model": {"": self.model}} if self.tells else {}

    def answer(self, asked: messages.Compare) -> messages.Compared:
        """Return the digests by path."""
        told = {"model": self.model, "extra": self.extra}
        by_set = {name: {at: {"w": told[name]} for at in sets} for name, sets in asked.sets.items()}
        return messages.Compared(asked.call, by_set)


def captured(
    call: int, step: int, num: int, replica: Replica, *, engines: bool = False
) -> messages.Captured:
    """Return the report that state was captured by one of `num` participants."""
    model = messages.ComponentReport(
        "model", "tree", "replicated", "f" * 32, validate="tensor", replicas={"": num}
    )
    extra = messages.ComponentReport(
        "extra",
        "tree",
        "replicated",
        "f" * 32,
        required=False,
        validate="tensor",
        replicas={"": num},
        digests={"": replica.extra},
        failed="" if replica.extra else "it raised",
    )
    components = [model, extra, *([_ENGINE] if engines else [])]
    return messages.Captured(call, step, components=components, cut={}, metrics={}, tags=[])


def has_engines(manifest: Manifest) -> bool:
    """Tell whether engines wrote files into a step."""
    return any(component.kind == "external" for component in manifest.components)


def engine_folder() -> str:
    """Return where in the step all engines write."""
    return external_folder(_ENGINE.name)


def engine_file(participant: str) -> str:
    """Return where in the step the file of a participant's engine lies."""
    return f"{engine_folder()}/{participant.replace('/', '_')}.pt"


def engine_payload_of(attempt: str, participant: str) -> bytes:
    """Return what the engine of a participant writes for an attempt."""
    return f"engine {attempt} {participant}".encode().ljust(_SIZE_BYTES)


def write_engine_file(storage: Storage, staging: str, attempt: str, participant: str) -> None:
    """Write the file of a participant's engine; nothing is synced but the folder's own name."""
    make_dirs(storage, f"{staging}/{engine_folder()}", base=staging)
    with storage.create_file(f"{staging}/{engine_file(participant)}") as handle:
        handle.write(engine_payload_of(attempt, participant), 0)


def inventory_of(storage: Storage, staging: str, share: tuple[int, int]) -> bytes:
    """Sync a share of what engines wrote, and return a line with path and digest for each file."""
    paths = [path for path, _ in walk_files(storage, f"{staging}/{engine_folder()}")]
    first, num_shares = share
    lines = []
    for directory in ("external", engine_folder()):
        storage.adopt(f"{staging}/{directory}")
    for path in paths[first::num_shares]:
        key = f"{staging}/{engine_folder()}/{path}"
        storage.adopt(key)
        digest = hashlib.sha256(read_bytes(storage, key, _MAX_BYTES)).hexdigest()
        lines.append(f"{engine_folder()}/{path} {digest}\n")
    return "".join(lines).encode()


def listed_in(storage: Storage, key: str, manifest: Manifest) -> dict[str, str]:
    """Return path and digest of each file of an engine that the parts of a step list.

    Raises:
        Corrupt: two parts list the same.
    """
    found: dict[str, str] = {}
    for part in manifest.parts:
        document = read_bytes(storage, f"{key}/{part.document.path}", _MAX_BYTES)
        for line in document[_DIGEST_BYTES:].decode("ascii", "replace").splitlines():
            path, _, digest = line.partition(" ")
            if path in found:
                raise Corrupt(f"{path} is listed twice")
            found[path] = digest
    return found


def payload_name(participant: str) -> str:
    """Return where in the step a participant's state lies."""
    return f"{participant.replace('/', '_')}.bin"


def write_files(
    storage: Storage, staging: str, participant: str, data: bytes, inventory: bytes = b""
) -> Iterator[str]:
    """Write and sync one part; say after each piece what was done, and `reported` at the end."""
    document = hashlib.sha256(data).hexdigest().encode() + inventory
    path = part_document_path(participant)
    make_dirs(storage, f"{staging}/{path}".rpartition("/")[0], base=staging)
    create_durable(storage, f"{staging}/{path}", document)
    yield "document"
    create_durable(storage, f"{staging}/{payload_name(participant)}", data)
    yield "payload"
    storage.sync_dir(f"{staging}/{path}".rpartition("/")[0])
    storage.sync_dir(staging)
    yield "closed"


def facts_of(participant: str, data: bytes, inventory: bytes = b"") -> messages.PartReport:
    """Return what a participant reports of its part."""
    document = hashlib.sha256(data).hexdigest().encode() + inventory
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
    name = manifest.key
    document = read_bytes(storage, f"{name}/{part.document.path}", _MAX_BYTES)
    data = read_bytes(storage, f"{name}/{payload_name(part.participant)}", _MAX_BYTES)
    if verify and hashlib.sha256(document).hexdigest() != part.document.sha256:
        raise Corrupt(f"{name}/{part.document.path}: digest differs", step=step)
    if verify and hashlib.sha256(data).hexdigest().encode() != document[:_DIGEST_BYTES]:
        raise Corrupt(f"{name}/{payload_name(part.participant)}: digest differs", step=step)
    return data


class Indexer:
    """Inspects names and sizes of files; writes nothing of its own."""

    def write_index(self, storage: Storage, staging: str, draft: Manifest) -> Manifest:
        return draft

    def inspect(
        self, storage: Storage, key: str, manifest: Manifest, *, exact: bool
    ) -> Sequence[str]:
        expected = {part.document.path: part.document.size_bytes for part in manifest.parts}
        expected |= {payload_name(part.participant): _SIZE_BYTES for part in manifest.parts}
        if has_engines(manifest):
            expected |= dict.fromkeys(listed_in(storage, key, manifest), _SIZE_BYTES)
        found = {path: entry.size_bytes for path, entry in walk_files(storage, key)}
        found.pop(MANIFEST, None)
        wrong = [
            f"{p}: missing or of another size" for p in expected if found.get(p) != expected[p]
        ]
        return wrong + ([f"{p}: not expected" for p in found if p not in expected] if exact else [])
