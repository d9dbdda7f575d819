"""Foreign DCP folders that try to run code, to leave their folder, or to take all memory.

`python -m tests.foreign._hostile_dcp FOLDER` makes each of them below FOLDER, imports it under an
audit hook, and prints what happened as JSON. With `--naive` it lets pickle load what it can.
"""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import resource
import shutil
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tests._collisions import equal_tuples
from tests.foreign._hostile_pickles import (
    GADGETS,
    HUGE,
    INERT,
    MARK,
    TENSORS,
    TOUCH,
    VALUES,
    call,
    glob,
    laughs,
    number,
    record,
    tensor,
    text,
)
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
)
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import stepseal as ss
from stepseal.storage._local_files import LocalReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepseal.layout import Buffer

Change = Callable[[Path], None]
PAYLOAD = "__0_0.distcp"
WATCHED = (
    "os.system", "os.exec", "os.posix_spawn", "os.putenv", "subprocess.Popen", "exec", "compile",
    "import", "pickle.find_class", "socket.", "shutil.", "ctypes.dlopen", "builtins.input",
    "marshal.", "os.remove", "os.rename", "os.fork",
)  # fmt: skip


def with_index(change: Callable[[Metadata], None]) -> Change:
    """Change the index as DCP itself sees it."""

    def apply(folder: Path) -> None:
        path = folder / ".metadata"
        metadata: Metadata = pickle.loads(path.read_bytes())
        change(metadata)
        path.write_bytes(pickle.dumps(metadata))

    return apply


def place(**fields: object) -> Change:
    """Change where the tensor lies."""

    def change(metadata: Metadata) -> None:
        key = MetadataIndex("w", [0, 0], 0)
        old = metadata.storage_data[key]
        known = {name: getattr(old, name) for name in ("relative_path", "offset", "length")}
        metadata.storage_data[key] = _StorageInfo(**{**known, **fields})

    return with_index(change)


def _entry(metadata: Metadata) -> Any:  # noqa: ANN401 - of torch
    return metadata.state_dict_metadata["w"]


def _share(metadata: Metadata) -> None:
    metadata.storage_data[MetadataIndex("v", [0], 0)] = metadata.storage_data[
        MetadataIndex("w", [0, 0], 0)
    ]


def _grow(metadata: Metadata) -> None:
    size = torch.Size([1 << 58, 8])
    _entry(metadata).size = _entry(metadata).chunks[0].sizes = size


def _set(**fields: object) -> Change:
    def change(metadata: Metadata) -> None:
        for name, value in fields.items():
            setattr(_entry(metadata), name, value)

    return with_index(change)


def _chunk(**fields: object) -> Change:
    def change(metadata: Metadata) -> None:
        for name, value in fields.items():
            setattr(_entry(metadata).chunks[0], name, value)

    return with_index(change)


def _nested_gadget(folder: Path) -> None:
    """Hide the gadget where DCP allows anything."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = _Evil()
    path.write_bytes(pickle.dumps(metadata))


class _Evil:
    def __reduce__(self) -> Any:  # noqa: ANN401 - of pickle
        return exec, (TOUCH,)


def _symlink(folder: Path) -> None:
    payload = folder / PAYLOAD
    payload.rename(folder.parent / "outside")
    payload.symlink_to(folder.parent / "outside")


def _fifo(folder: Path) -> None:
    (folder / PAYLOAD).unlink()
    os.mkfifo(folder / PAYLOAD)


def _truncate(folder: Path) -> None:
    with (folder / PAYLOAD).open("r+b") as file:
        file.truncate(1000)


def _offsets_of_one_hash(folder: Path) -> None:
    """List places whose keys have the same hash; written by hand, as pickle would hash them."""
    meta = "torch.distributed.checkpoint.metadata"
    made = b"\x80\x04" + glob(meta, "Metadata") + b")\x81}(" + text("storage_meta") + b"("
    made += glob(meta, "MetadataIndex") + b"q\x00" + glob("torch", "Size") + b"q\x01"
    made += text("fqn") + b"q\x02" + text("offset") + b"q\x03" + text("w") + b"q\x04"
    made += glob("torch.distributed.checkpoint.filesystem", "_StorageInfo") + b")\x81}("
    made += text("relative_path") + text(PAYLOAD) + text("offset") + b"K\x00"
    made += text("length") + b"K\x08ubq\x05t" + text("storage_data") + b"}("
    for offsets in equal_tuples(20_000):
        numbers = b"".join(number(one) if one > 1 else b"K" + bytes([one]) for one in offsets)
        made += b"h\x00)\x81}(h\x02h\x04h\x03h\x01(" + numbers + b"t\x85Rubh\x05"
    made += b"u" + text("state_dict_metadata") + b"}" + text("planner_data") + b"Nub."
    # an index without tensors is good, so one tensor lacks its place
    tensor_meta = glob(meta, "TensorStorageMetadata") + b")\x81"
    made = made.replace(
        text("state_dict_metadata") + b"}",
        text("state_dict_metadata") + b"}(" + text("w") + tensor_meta + b"u",
    )
    (folder / ".metadata").write_bytes(made)


def _renamed(old: str, new: bytes) -> Change:
    """Put other bytes into the place of a text of the index."""

    def apply(folder: Path) -> None:
        path = folder / ".metadata"
        data, whole = path.read_bytes(), b"\x8c" + bytes([len(old)]) + old.encode()
        if whole not in data:
            whole = text(old)
        assert whole in data
        path.write_bytes(data.replace(whole, b"X" + struct.pack("<I", len(new)) + new))

    return apply


INDEX: dict[str, Change] = {
    "offsets_of_one_hash": _offsets_of_one_hash,
    "name_without_utf8": _renamed("w", b"\xed\xa0\x80"),
    "value_without_utf8": _renamed("n.a", b"\xed\xa0\x80"),
    "path_of_a_huge_number": with_index(lambda m: m.planner_data.update({"n.a": ("n", 1 << 70)})),
    "path_without_utf8": with_index(lambda m: m.planner_data.update({"n.a": ("n", "\ud800")})),
    "path_drives_the_terminal": place(relative_path="\x1b]0;owned\x07\n"),
    "name_drives_the_terminal": with_index(
        lambda m: m.planner_data.update({"\x1b]0;owned\x07\n" * 900: ("n", "v")})
    ),
    "nested_in_planner_data": _nested_gadget,
    "path_up": place(relative_path="../outside/x"),
    "path_absolute": place(relative_path="/etc/passwd"),
    "path_dot": place(relative_path="./__0_0.distcp"),
    "path_nul": place(relative_path="a\0b"),
    "path_is_int": place(relative_path=7),
    "beyond_the_file": place(offset=1 << 40),
    "length_huge": place(length=HUGE),
    "length_huge_sum": place(offset=HUGE - 1, length=HUGE - 1),
    "length_zero": place(length=0),
    "offset_negative": place(offset=-1),
    "offset_is_bool": place(offset=True),
    "transformed": place(transform_descriptors=["zstd"]),
    "shared_record": with_index(_share),
    "shape_huge": _set(size=torch.Size([HUGE, 4])),
    "shape_and_chunk_huge": with_index(_grow),
    "chunk_outside": _chunk(sizes=torch.Size([9, 9])),
    "chunk_small": _chunk(sizes=torch.Size([1, 3])),
    "chunks_none": _set(chunks=[]),
    "chunks_no_list": _set(chunks=None),
    "properties_none": _set(properties=None),
    "symlink": _symlink,
    "fifo": _fifo,
    "truncated": _truncate,
    "missing_payload": lambda folder: (folder / PAYLOAD).unlink(),
    "no_place": with_index(lambda m: m.storage_data.clear()),
}


def put_record(fqn: str, data: bytes, tensor_fqn: str = "w") -> Change:
    """Put a record of its own file in the place of the tensor's, or of the value's."""

    def apply(folder: Path) -> None:
        (folder / "__9_9.distcp").write_bytes(data)
        info = _StorageInfo("__9_9.distcp", 0, len(data))
        is_tensor = fqn == "w"
        key = MetadataIndex(tensor_fqn, [0, 0], 0) if is_tensor else MetadataIndex(fqn)
        with_index(lambda m: m.storage_data.update({key: info}))(folder)

    return apply


def shared(record_of_all: bytes, count: int) -> Change:
    """Let one record be the value of many names."""

    def apply(folder: Path) -> None:
        (folder / "__9_9.distcp").write_bytes(record_of_all)
        info = _StorageInfo("__9_9.distcp", 0, len(record_of_all))

        def change(metadata: Metadata) -> None:
            for index in range(count):
                fqn = f"n.a{index}"
                metadata.state_dict_metadata[fqn] = BytesStorageMetadata()
                metadata.planner_data[fqn] = ("n", fqn)
                metadata.storage_data[MetadataIndex(fqn)] = info

        with_index(change)(folder)

    return apply


SHARED: dict[str, Change] = {
    "text_of_many": shared(record(b"\x80\x02" + text("b" * 2_000_000) + b"."), 300),
    "list_of_many": shared(record(b"\x80\x02](" + b"K\x01" * 100_000 + b"e."), 300),
    "laughs_of_many": shared(laughs(89, 3), 10),
    "refused_of_many": shared(record(b"\x80\x02(" + b"N" * 400_000 + b"0."), 300),
    "tensor_of_many": shared(record(tensor(b"K\x01K\x01\x86", b"K\x01K\x01\x86",
                                           count=number(1 << 20)), bytes(4 << 20)), 300),
    "sizes": put_record("n.a", record(
        b"\x80\x02(" + glob("torch", "Size") + b"(" + b"K\x01" * 64 + b"t\x85Rq\x00"
        + b"h\x00" * 700_000 + b"t."
    )),
    "longs": put_record("n.a", record(
        b"\x80\x02(\x8a\xff" + b"\x7f" * 255 + b"q\x00" + b"h\x00" * 700_000 + b"t."
    )),
    "texts": put_record("n.a", record(
        b"\x80\x02(" + text("a" * 1_000_000) + b"q\x00" + b"h\x00" * 299 + b"t."
    )),
    "keys": put_record("n.a", record(
        b"\x80\x02(" + text("a" * 10_000) + b"q\x00" + b"}h\x00Ns" * 100_000 + b"t."
    )),
    "bytes": put_record("n.a", record(
        b"\x80\x02(" + call(glob("_codecs", "encode"), text("a" * 1_000_000), text("latin1"))
        + b"q\x00" + b"h\x00" * 299 + b"t."
    )),
}  # fmt: skip
"""Values that stand for far more bytes than they take."""


def put_index(data: bytes) -> Change:
    def apply(folder: Path) -> None:
        (folder / ".metadata").write_bytes(data)

    return apply


def corpus() -> dict[str, Change]:
    """Return every hostile folder as a change of a good one."""
    cases = {f"index/{name}": change for name, change in INDEX.items()}
    for name, data in (*GADGETS.items(), *INERT.items()):
        cases[f"index/{name}"] = put_index(data)
        if name != "self_containing":
            cases[f"tensor/{name}"] = put_record("w", record(data))
            cases[f"value/{name}"] = put_record("n.a", record(data))
    for name in ("no_metadata", "memo_of_millions"):  # good values
        cases.pop(f"value/{name}", None)
    cases["value/self_containing"] = put_record("n.a", record(INERT["self_containing"]))
    cases |= {f"tensor/{name}": put_record("w", data) for name, data in TENSORS.items()}
    cases |= {f"value/{name}": put_record("n.a", data) for name, data in VALUES.items()}
    cases |= {f"shared/{name}": change for name, change in SHARED.items()}
    return cases


def make_good(folder: Path) -> None:
    """Write a good folder with stock DCP."""
    state = {"w": torch.arange(6.0).view(2, 3), "v": torch.ones(2), "n": {"a": (1, 2.5, None)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_save(state, checkpoint_id=str(folder))


class Watch:
    """Collects audit events while it is on, and counts bytes that are read and opcodes."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        self.bytes_read = self.opcodes = 0
        sys.addaudithook(self._hear)
        genops: Any = pickletools.genops
        read: Any = LocalReader.read_into

        def counted_genops(data: bytes) -> Iterator[Any]:
            for one in genops(data):
                self.opcodes += 1
                yield one

        def counted_read(reader: LocalReader, buffer: Buffer, offset: int) -> None:
            self.bytes_read += memoryview(buffer).nbytes
            read(reader, buffer, offset)

        setattr(pickletools, "genops", counted_genops)  # noqa: B010 - of another type for mypy
        setattr(LocalReader, "read_into", counted_read)  # noqa: B010

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.events is not None and event.startswith(WATCHED):
            self.events.append(f"{event} {args!r:.100}")


def picture(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((p.name, p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.iterdir())


def try_import(folder: Path, root: Path, watch: Watch) -> dict[str, object]:
    before, rss = picture(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch.events, watch.bytes_read, watch.opcodes = [], 0, 0
    try:
        ss.import_dcp(folder, root, step=1)
        outcome, message = "imported", ""
    except ss.errors.CheckpointError as error:
        outcome, message = type(error).__name__, str(error)
    except BaseException as error:
        outcome, message = f"untyped {type(error).__name__}", str(error)[:300]
    events, watch.events = watch.events, None
    return {
        "outcome": outcome,
        "message": message,
        "events": events,
        "size_bytes": sum(size for _, size, _ in before),
        "bytes_read": watch.bytes_read,
        "opcodes": watch.opcodes,
        "grown_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss) / 1024,
        "unchanged": picture(folder) == before,
        "executed": Path(MARK).exists(),
        "root_made": root.exists(),
    }


def main(place_: str, naive: bool) -> None:
    os.chdir(place_)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    good = Path("good")
    make_good(good)
    if naive:
        found = {}
        for name, data in GADGETS.items():
            Path(MARK).unlink(missing_ok=True)
            try:
                pickle.loads(data)
            except Exception as error:
                print(name, repr(error), file=sys.stderr)
            found[name] = Path(MARK).exists()
        print(json.dumps(found))
        return
    watch = Watch()
    report = {"good": try_import(good, Path("root"), watch)}
    for name, change in corpus().items():
        folder = Path("cases") / name / "checkpoint"
        shutil.copytree(good, folder)
        change(folder)
        report[name] = try_import(folder, Path("roots") / name, watch)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], "--naive" in sys.argv)
