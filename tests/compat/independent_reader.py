"""Reads and verifies a step from what `docs/format.md` says, and nothing else.

It imports nothing of stepseal and nothing of torch: if it can read a step, the specification is
enough to do so. Bounds against hostile bytes are left out; those are the library's work.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from safetensors.numpy import load as load_safetensors

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 1 << 20
SEALED = rb'\{\n "body": (.*),\n "sha256": "([0-9a-f]{64})"\n\}\n'
NUMPY = {
    "bool": "?", "uint8": "u1", "uint16": "<u2", "int64": "<i8", "float16": "<f2",
    "float32": "<f4", "float64": "<f8", "complex64": "<c8", "complex128": "<c16",
    "bfloat16": "<u2", "float8_e4m3fn": "u1",
}  # fmt: skip
"""NumPy's type by torch's name; the last two as bits, which NumPy has no type for."""
EXTENTS = ("item_offset", "item_size", "record_offset", "record_size", "data_offset", "data_size")
NAMES = ("tensor_component", "tensor_key", "tensor_dtype")
CONTAINER_DTYPES = {
    "U8": "u1",
    "U32": "<u4",
    "I64": "<i8",
    "F64": "<f8",
    "F32": "<f4",
    "BF16": "<u2",
}


def digests(data: bytes) -> list[str]:
    return [xxhash.xxh3_128_hexdigest(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]


def sealed(data: bytes) -> Any:  # noqa: ANN401 - JSON
    """Return the body of a sealed document: its own lines, one level to the left."""
    match = re.fullmatch(SEALED, data, re.DOTALL)
    assert match, "a sealed document"
    body = match[1].replace(b"\n ", b"\n") + b"\n"
    assert hashlib.sha256(body).hexdigest() == match[2].decode(), "the seal"
    return json.loads(body)


def container(data: bytes) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Return the arrays and the metadata of a safetensors file, without gaps to its end."""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    metadata, end, arrays = header.pop("__metadata__", {}), 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        assert start == end, "no gaps"
        flat = np.frombuffer(
            data[8 + size + start : 8 + size + stop], CONTAINER_DTYPES[entry["dtype"]]
        )
        arrays[name], end = flat.reshape(entry["shape"]), stop
    assert (8 + size) % 64 == 0
    assert 8 + size + end == len(data)
    return arrays, metadata


class Step:
    """One step folder; every file is read once, and checked before it is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = (folder / "manifest.json").read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.manifest = sealed(data)
        self.tensors: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
        self.dtypes: dict[tuple[str, str], str] = {}
        self.trees: dict[tuple[str, str], Any] = {}
        self.external: dict[str, dict[str, bytes]] = {}
        """Component to path and bytes of what its engine wrote."""
        self._boxes: dict[tuple[str, str], set[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
        self.listed = {"manifest.json"}
        for entry in self.manifest["files"]:
            self._file(entry)
        parts = {reference["participant"]: reference for reference in self.manifest["parts"]}
        for participant in self.manifest["participants"]:
            self._part(parts.pop(participant))
        assert not parts
        kinds = {entry["name"]: entry["kind"] for entry in self.manifest["components"]}
        assert self.external.keys() == {name for name in kinds if kinds[name] == "external"}
        for component in self.external:
            self._nothing_beside(component)
        for name, tensor in self.tensors.items():
            count = np.zeros(tensor.shape, np.int8)
            for offsets, sizes in self._boxes[name]:
                count[tuple(map(slice, offsets, map(sum, zip(offsets, sizes, strict=True))))] += 1
            assert (count == 1).all(), f"every element of {name} in exactly one box"

    def owner_at(self, component: str, coordinate: str) -> str:
        """Return the owner of the payload of a set, after a check of what the manifest says."""
        (entry,) = [one for one in self.manifest["components"] if one["name"] == component]
        sets, payloads = entry["options"]["sets"], entry["payloads"]
        names = sorted(sets["axes"])
        places = product(*(range(sets["axes"][name]) for name in names))
        known = [",".join(map("{}={}".format, names, place)) for place in places]
        assert sorted(sets["coordinates"].values()) == sorted(known), "one owner per coordinate"
        assert sorted(payloads) == sorted(self.manifest["participants"]), "everybody has a payload"
        assert {payloads[owner] for owner in payloads.values()} == sets["coordinates"].keys()
        found: str = next(who for who, at in sets["coordinates"].items() if at == coordinate)
        return found

    def _document(self, reference: dict[str, Any]) -> bytes:
        data: bytes = (self.folder / reference["path"]).read_bytes()
        self.listed.add(reference["path"])
        assert len(data) == reference["size_bytes"]
        assert hashlib.sha256(data).hexdigest() == reference["sha256"], reference["path"]
        return data

    def _file(self, entry: dict[str, Any]) -> bytes:
        data: bytes = (self.folder / entry["path"]).read_bytes()
        self.listed.add(entry["path"])
        assert len(data) == entry["size_bytes"]
        assert entry["digests"] == ([] if entry["role"] == "payload" else digests(data))
        return data

    def _part(self, reference: dict[str, Any]) -> None:
        part = sealed(self._document(reference["document"]))
        assert part["attempt"] == self.manifest["attempt"]
        files = {entry["path"]: self._file(entry) for entry in part["files"]}
        if part["index"] is not None:
            self._payload(self._document(part["index"]), files)
        for entry in part["files"]:
            if entry["role"] == "external":
                _, component, path = entry["path"].split("/", 2)
                known = self.external.setdefault(component, {})
                assert path not in known, "listed once"
                known[path] = files[entry["path"]]
        for path in files:
            if path.startswith("components/") and path.endswith(".json"):
                _, component, owner = path.removesuffix(".json").split("/", 2)
                self.trees[component, owner] = Tree(path, files).value

    def _nothing_beside(self, component: str) -> None:
        top = self.folder / "external" / component
        found = {str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir()}
        assert found == self.external[component].keys(), "exactly the listed files"

    def _payload(self, index: bytes, files: dict[str, bytes]) -> None:
        """Check every byte of the payload files, and put each box into its tensor."""
        columns, metadata = container(index)
        assert metadata == {"format": "stepseal-index", "format_version": "1"}
        assert {n: a.tobytes() for n, a in load_safetensors(index).items()} == {
            n: a.tobytes() for n, a in columns.items()
        }
        ends = [0, *columns["string_end"].tolist()]
        blob = columns["strings"].tobytes()
        texts = [blob[a:b].decode() for a, b in pairwise(ends)]
        payloads = [texts[i] for i in columns["payload"]]
        dims, chunks = columns["tensor_dims"].tolist(), columns["chunk_digests"].tobytes().hex()
        tiled = dict.fromkeys(payloads, 0)
        for row, file in enumerate(columns["file"]):
            path = payloads[file]
            at, size, record, record_size, start, length = (int(columns[n][row]) for n in EXTENTS)
            assert tiled[path] == at <= record <= start
            tiled[path] = at + size
            assert record + record_size == at + size
            item, data = files[path][at : at + size], files[path][start : start + length]
            frame = item[: start - at] + item[start - at + length :]
            assert (
                xxhash.xxh3_128_digest(frame) == columns["frame_digest"][16 * row :][:16].tobytes()
            )
            mine = 32 * math.ceil(length / CHUNK)
            assert "".join(digests(data)) == chunks[:mine]
            chunks = chunks[mine:]
            if row < len(columns["tensor_ndim"]):
                three = [
                    [dims.pop(0) for _ in range(columns["tensor_ndim"][row])] for _ in range(3)
                ]
                component, key, dtype = (texts[columns[name][row]] for name in NAMES)
                self._box((component, key), dtype, data, *three)
        assert not chunks
        assert tiled == {path: len(files[path]) for path in payloads}

    def _box(
        self,
        name: tuple[str, str],
        dtype: str,
        data: bytes,
        shape: list[int],
        offsets: list[int],
        sizes: list[int],
    ) -> None:
        tensor = self.tensors.setdefault(name, np.zeros(shape, NUMPY[dtype]))
        assert list(tensor.shape) == shape
        assert self.dtypes.setdefault(name, dtype) == dtype
        where = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
        tensor[where] = np.frombuffer(data, NUMPY[dtype]).reshape(sizes)
        self._boxes.setdefault(name, set()).add((tuple(offsets), tuple(sizes)))


class Tree:
    """One tree: its document, with the arrays of its segments in their places."""

    def __init__(self, path: str, files: dict[str, bytes]) -> None:
        stem, number = path.removesuffix(".json"), 0
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        while (segment := f"{stem}{f'.{number}' if number else ''}.safetensors") in files:
            self._arrays |= container(files[segment])[0]
            number += 1
        self.value = self._value(json.loads(files[path]))
        assert not self._arrays, "each array is used once"

    def _value(self, node: Any) -> Any:  # noqa: ANN401 - any value
        if isinstance(node, list):
            return [self._value(child) for child in node]
        if not isinstance(node, dict):
            return node
        if len(node) == 1 and next(iter(node)).startswith("$") and "$keys" not in node:
            return self._tagged(*next(iter(node.items())))
        return {key: self._value(node[key]) for key in node.get("$keys", sorted(node))}

    def _tagged(self, tag: str, below: Any) -> Any:  # noqa: ANN401 - any value
        match tag:
            case "$dict":
                return {self._value(key): self._value(child) for key, child in below}
            case "$tuple":
                return tuple(self._value(below))
            case "$set":
                return set(self._value(below))
            case "$deque":
                return self._value(below["items"])
            case "$numbers":
                return self._arrays.pop(below["leaf"]).tolist()
            case "$int":
                return int(below)
            case "$float":
                return float(below)
            case "$bytes":
                return base64.b64decode(below)
            case "$tensor" | "$ndarray":
                array = self._arrays.pop(below["leaf"])
                dtype = NUMPY.get(below.get("dtype", ""), below.get("dtype", array.dtype))
                return array.view(dtype).reshape(below.get("shape", array.shape))
        raise AssertionError(f"unknown tag {tag}")
