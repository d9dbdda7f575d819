"""Steps as somebody would forge them: hostile files whose digests are all right.

The base is the root of `tests/compat`. What a forger replaces is written, and every document above
it is sealed anew, without any check of ours.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from stepseal.layout import chunk_digests, decode_index, encode_index, hex_digests

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BASE", "NEWEST", "OLDER", "Forgery", "canonical", "header", "sealed", "sha256"]

BASE = Path(__file__).parent.parent / "compat" / "v1"
OLDER, NEWEST = 3, 7
OWNER = "trainer/0"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: object) -> bytes:
    """Return the one spelling of a value, whatever it holds."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def sealed(body: object) -> bytes:
    return canonical({"body": body, "sha256": sha256(canonical(body))})


def header(entries: object, data: bytes = b"") -> bytes:
    """Return a safetensors file with any header."""
    text = entries if isinstance(entries, bytes) else msgspec.json.encode(entries)
    return len(text).to_bytes(8, "little") + text + data


class Forgery:
    """A copy of the base root, in which step 7 can be replaced piece by piece."""

    def __init__(self, root: Path) -> None:
        shutil.copytree(BASE, root)
        self.root = root
        self.folder = root / f"step-{NEWEST}"

    def body(self, path: str) -> dict[str, Any]:
        body: dict[str, Any] = msgspec.json.decode((self.folder / path).read_bytes())["body"]
        return body

    def write(self, path: str, data: bytes) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def manifest(self, data: bytes) -> None:
        self.write("manifest.json", data)

    def change_manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        body = self.body("manifest.json")
        change(body)
        self.manifest(sealed(body))

    def part(self, data: bytes, participant: str = OWNER) -> None:
        path = f"parts/{participant}.json"
        self.write(path, data)

        def rename(body: dict[str, Any]) -> None:
            for ref in body["parts"]:
                if ref["participant"] == participant:
                    ref["document"] |= {"size_bytes": len(data), "sha256": sha256(data)}

        self.change_manifest(rename)

    def change_part(self, change: Callable[[dict[str, Any]], object]) -> None:
        body = self.body(f"parts/{OWNER}.json")
        change(body)
        self.part(sealed(body))

    def index(self, data: bytes) -> None:
        path = f"parts/{OWNER}.safetensors"
        self.write(path, data)
        self.change_part(
            lambda body: body["index"].update(size_bytes=len(data), sha256=sha256(data))
        )

    def file(self, path: str, data: bytes) -> None:
        """Replace a file that the part lists with its chunks' digests."""
        self.write(path, data)

        def digest(body: dict[str, Any]) -> None:
            for entry in body["files"]:
                if entry["path"] == path:
                    digests = hex_digests(chunk_digests(data))
                    entry |= {"size_bytes": len(data), "digests": list(digests)}

        self.change_part(digest)

    def dcp_index(self, data: bytes) -> None:
        self.write(".metadata", data)
        digests = list(hex_digests(chunk_digests(data)))
        self.change_manifest(
            lambda body: body["files"][0].update(size_bytes=len(data), digests=digests)
        )

    def bytes_item(self, data: bytes) -> None:
        """Put `data` into the first copy of a leaf that stock readers would unpickle."""
        old = decode_index((self.folder / f"parts/{OWNER}.safetensors").read_bytes())
        number, item = next(
            (n, i) for n, i in enumerate(old.bytes_items) if i.data_size >= len(data)
        )
        data = data.ljust(item.data_size, b"\0")
        path = self.folder / old.payloads[item.file]
        payload = bytearray(path.read_bytes())
        payload[item.data_offset : item.data_offset + item.data_size] = data
        path.write_bytes(payload)
        copies = list(old.bytes_items)
        copies[number] = replace(item, chunk_digests=chunk_digests(data))
        self.index(encode_index(replace(old, bytes_items=tuple(copies))))
