"""Decoders of hostile bytes, and what must hold whatever they are given.

A target's `check` returns what is wrong, or None: a decoder gives a typed error, or a value that
stands for exactly these bytes, within 2 s of processor time.

    python -m tests.campaigns.fuzz._targets TARGET BASE64|PATH      (checks one input)
"""

from __future__ import annotations

import base64
import binascii
import math
import posixpath
import re
import struct
import sys
import time
import traceback
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from tests.campaigns.fuzz._dcp import (
    dcp_indexes,
    dcp_records,
    judge_dcp_index,
    judge_dcp_record,
)
from tests.security._forge import BASE, NEWEST, OWNER, sealed
from tests.security.make_corpus import CORPUS

from stepseal.components import _codecs_tensors as _loaded_before  # noqa: F401 - by no input
from stepseal.components import decode_tree
from stepseal.components._codecs import encode_tree
from stepseal.errors import CheckpointError
from stepseal.layout import ITEMSIZE, MARKER, TreeContents, _container, _documents, _index, _names
from stepseal.layout import _manifest as manifests
from stepseal.layout import _part as parts
from stepseal.protocol import _messages as messages
from stepseal.protocol import _wire as framing
from stepseal.steps import _claims as claims
from stepseal.steps._catalog import read_marker
from stepseal.storage import create_durable, make_dirs
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FUZZ_CORPUS", "TARGETS", "Target", "command_for"]

FUZZ_CORPUS = CORPUS / "fuzz"
MAX_SECONDS = 2.0
_STEP = BASE / f"step-{NEWEST}"


@dataclass(frozen=True)
class Target:
    """One decoder."""

    name: str
    judge: Callable[[bytes], str | None]
    """Decodes, and says what is wrong with the value; a typed error is fine."""
    seeds: Callable[[], list[bytes]]
    is_json: bool = False

    def check(self, data: bytes) -> str | None:
        """Say what is wrong with how the target takes these bytes, or None."""
        begun = time.process_time()
        try:
            problem = self.judge(data)
        except CheckpointError as error:
            problem = None if len(str(error)) < 20_000 else "an error of 20,000 characters"
        except Exception:
            problem = traceback.format_exc(limit=-3)
        seconds = time.process_time() - begun
        return problem or (f"took {seconds:.1f} s" if seconds > MAX_SECONDS else None)

    def all_seeds(self) -> list[bytes]:
        """Return good inputs, hostile ones and the kept corpus."""
        kept = sorted((FUZZ_CORPUS / self.name).glob("*"))
        return [*self.seeds(), *(path.read_bytes() for path in kept)]


def command_for(target: str, data: bytes) -> str:
    """Return the command that checks one input again."""
    text = base64.urlsafe_b64encode(zlib.compress(data, 9)).decode()
    return f"python -m tests.campaigns.fuzz._targets {target} {text}"


def _differs(write: Callable[[], bytes], data: bytes) -> str | None:
    """Say how a value that was accepted is written again otherwise, or None."""
    try:
        again = write()
    except CheckpointError as error:
        return f"accepted, but the value cannot be written: {error}"
    return None if again == data else "accepted, but the value is written with other bytes"


def _corpus(prefix: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.glob(f"{prefix}--*"))]


def _body(path: Path) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(path.read_bytes())["body"])


def _of_body(judge: Callable[[bytes], str | None]) -> Callable[[bytes], str | None]:
    """Return a judge of a sealed document's body: any JSON, sealed as its writer would."""

    def sealing(data: bytes) -> str | None:
        try:
            document = sealed(msgspec.json.decode(data))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return judge(document)

    return sealing


def judge_manifest(data: bytes) -> str | None:
    found = manifests.decode_manifest(data)
    return _differs(lambda: manifests.encode_manifest(found), data)


def judge_part(data: bytes) -> str | None:
    found = parts.decode_part(data)
    return _differs(lambda: parts.encode_part(found), data)


def judge_index(data: bytes) -> str | None:
    found = _index.decode_index(data)
    return _differs(lambda: _index.encode_index(found), data)


def judge_document(data: bytes) -> str | None:
    value = _documents.decode_document(data, what="document")
    return _differs(lambda: _documents.encode_document(value), data)


def judge_header(data: bytes) -> str | None:
    """Lay out what the header says, by rules of our own."""
    found = _container.parse_header(data, what="file", file_size=len(data))
    end = found.size_bytes
    for entry in sorted(found.entries, key=lambda entry: entry.offset):
        if entry.offset != end and entry.size_bytes:
            return f"{entry.name!r} lies at {entry.offset}, expected {end}"
        if any(size < 0 for size in entry.shape):
            return f"{entry.name!r} has a negative size"
        if math.prod(entry.shape) * ITEMSIZE[entry.dtype] != entry.size_bytes:
            return f"{entry.name!r} has another size than its shape"
        if math.prod(max(size, 1) for size in entry.shape) >= 2**63:
            return f"{entry.name!r} hides a huge size"
        end += entry.size_bytes
    return None if end == len(data) else f"the arrays end at {end} of {len(data)} bytes"


def judge_tree(data: bytes) -> str | None:
    """Decode a tree that has a few leaves; what comes out is written the same ever after."""
    document = _documents.decode_document(data, what="tree")
    leaves = {
        "a": ("uint8", (4,), memoryview(bytearray(4))),
        "b": ("float32", (2, 2), memoryview(bytearray(16))),
    }
    before = set(sys.modules)
    try:
        value = decode_tree(TreeContents(document, leaves))
    finally:
        if imported := {m for m in set(sys.modules) - before if not m.startswith("numpy")}:
            return f"imported {sorted(imported)}"  # noqa: B012 - more telling than any error
    again = encode_tree(value, component="tree")
    if again.arrays:
        return None
    once = _documents.encode_document(again.document)
    decoded = decode_tree(TreeContents(again.document, {}))
    twice = encode_tree(decoded, component="tree")
    return _differs(lambda: _documents.encode_document(twice.document), once)


def judge_frames(data: bytes) -> str | None:
    """Cut a stream into frames; what came whole goes out as it came in."""
    reader = framing.MessageReader(framing.MAX_HELLO_BYTES)
    out = b""
    try:
        for start in range(0, len(data), 97):
            reader.feed(data[start : start + 97])
            while (body := reader.take()) is not None:
                if len(body) > framing.MAX_HELLO_BYTES:
                    return f"a frame of {len(body)} bytes was taken"
                out += framing.pack_message(body)
    except CheckpointError:
        return None if data.startswith(out) else "other frames than were sent"
    if len(data) - len(out) >= 4:
        (announced,) = struct.unpack_from(">I", data, len(out))
        if announced > framing.MAX_HELLO_BYTES:
            return f"waits for a frame of {announced} bytes"
    return None if data.startswith(out) else "other frames than were sent"


def judge_message(data: bytes) -> str | None:
    """Decode a message of either side; it means the same when it is sent on."""
    found = []
    for decode in (messages.decode_from_participant, messages.decode_from_coordinator):
        try:
            message: Any = decode(data)
        except CheckpointError:
            continue
        found.append(message)
        if decode(messages.encode_message(message)) != message:
            return "a message that changes when it is sent on"
    sent = [msgspec.json.decode(data)] if found else []
    if any(set(value) - {"type"} - set(found[0].__struct_fields__) for value in sent):
        return "a field that nobody knows was accepted"
    return None


_SAFE = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9._-]{0,253}[A-Za-z0-9_-])?|\.metadata")


def judge_path(data: bytes) -> str | None:
    """Join a path as a naive reader would; it stays inside."""
    path = data.decode("utf-8", "surrogateescape")
    if _names.path_problem(path) is not None:
        return None
    joined = posixpath.normpath(posixpath.join("/root/step-1", path))
    if joined != f"/root/step-1/{path}" or len(path) > 1024:
        return f"{path!r} was called safe"
    return None if all(map(_SAFE.fullmatch, path.split("/"))) else f"{path!r} was called safe"


def judge_claim(data: bytes) -> str | None:
    """Read a claim; what is read is all that stands there."""
    storage = MemoryStorage()
    make_dirs(storage, claims.INCARNATIONS)
    create_durable(storage, f"{claims.INCARNATIONS}/2.json", data)
    (record,) = claims.read_claims(storage)
    if record.damaged:
        return None
    body = msgspec.json.decode(data)["body"]
    expected = {"incarnation", "parent", "claimed_at", "host", "pid"}
    if set(body) != expected or type(body["incarnation"]) is not int:
        return "a claim with other fields was accepted"
    if record.parent is None:
        return None if body["parent"] is None else "a parent was lost"
    step, sha256 = record.parent.step, record.parent.manifest_sha256
    fits = type(step) is int and 0 <= step < 2**53 and re.fullmatch("[0-9a-f]{64}", sha256)
    return None if fits and set(body["parent"]) == set(record.parent.__slots__) else "a bad parent"


def judge_marker(data: bytes) -> str | None:
    """Read a marker; it holds two fields."""
    storage = MemoryStorage()
    create_durable(storage, MARKER, data)
    run_id = read_marker(storage)
    body = msgspec.json.decode(data)["body"]
    exact = body == {"format_version": 1, "run_id": run_id} and re.fullmatch("[0-9a-f]{32}", run_id)
    return None if exact and type(body["format_version"]) is int else "a loose marker was accepted"


def _hello() -> list[bytes]:
    sent: list[Any] = [
        messages.Hello("trainer/0", "t" * 32, "1"), messages.Heartbeat(), messages.Goodbye(),
        messages.Captured(1, 2, [], {"a": 1.5}, {"loss": math.nan}, ["x"]),
        messages.Failed(1, 2, "write", messages.Failure("corrupt", "x", problems=["y"])),
        messages.RestoreCalled(1, None, False, {"model": "require"}),
        messages.Prepared(
            1, "ab" * 16, messages.PartReport("parts/a.json", 3, "cd" * 32), {"a": {"": "ef" * 16}}
        ),
        messages.Compared(1, {"a": {"": {"w": "ef" * 8}}}),
        messages.Aborted(1, 2, "corrupt", "x", {"a": messages.Failure("corrupt", "x")}),
        messages.Restored(1, 2, 3, {"4": "damaged"}), messages.Refused("invalid_input", "x"),
    ]  # fmt: skip
    return [messages.encode_message(message) for message in sent]


def _trees() -> list[bytes]:
    good = sorted(_STEP.glob("components/*/*/*.json"))
    return [path.read_bytes() for path in good] + _corpus("tree")


_MANIFEST, _PART = _STEP / "manifest.json", _STEP / f"parts/{OWNER}.json"
_DEEP = [b"[" * 200_000, b'{"a":' * 200_000]
_CLAIMS = sorted((BASE / claims.INCARNATIONS).glob("*.json"))
_PATHS = ["a/b.json", ".metadata", "external/a/.metadata", "../a", "a/../b", "/a", "a//b", "\0"]

TARGETS = {
    target.name: target
    for target in (
        Target("manifest", judge_manifest, lambda: [_MANIFEST.read_bytes(), *_corpus("manifest")]),
        Target("manifest-body", _of_body(judge_manifest), lambda: [_body(_MANIFEST)], True),
        Target("part", judge_part, lambda: [_PART.read_bytes(), *_corpus("part")]),
        Target("part-body", _of_body(judge_part), lambda: [_body(_PART)], True),
        Target(
            "index", judge_index,
            lambda: [p.read_bytes() for p in sorted(_STEP.glob("parts/*/*.safetensors"))],
        ),
        Target(
            "header", judge_header,
            lambda: [(_STEP / "components/loader/trainer/0.safetensors").read_bytes(),
                     *_corpus("header")],
        ),
        Target(
            "document", judge_document,
            lambda: [_MANIFEST.read_bytes(), *_trees()[:4], *_DEEP], True,
        ),
        Target("tree", judge_tree, _trees, True),
        Target("frames", judge_frames, lambda: [b"".join(map(framing.pack_message, _hello()))]),
        Target("message", judge_message, _hello, True),
        Target("path", judge_path, lambda: [path.encode() for path in _PATHS]),
        Target("claim-body", _of_body(judge_claim), lambda: list(map(_body, _CLAIMS)), True),
        Target("marker-body", _of_body(judge_marker), lambda: [_body(BASE / MARKER)], True),
        Target("dcp-index", judge_dcp_index, dcp_indexes),
        Target("dcp-record", judge_dcp_record, dcp_records),
    )
}  # fmt: skip


def main() -> int:
    """Check one input; return 1 if a promise is broken."""
    name, text = sys.argv[1:]
    if len(text) < 256 and Path(text).is_file():
        data = Path(text).read_bytes()
    else:
        try:
            data = zlib.decompress(base64.urlsafe_b64decode(text))
        except (binascii.Error, zlib.error) as error:
            raise SystemExit(f"neither a file nor base64: {error}") from error
    problem = TARGETS[name].check(data)
    print(f"{name}: {len(data)} bytes: {problem or 'good'}")
    return 1 if problem else 0


if __name__ == "__main__":
    raise SystemExit(main())
