"""Foreign DCP folders that try to run code, to leave their folder, or to take all memory.

`python -m tests.session._hostile_dcp FOLDER` makes each of them below FOLDER, imports it under an
audit hook, and prints what happened as JSON. With `--naive` it lets pickle load what it can.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests._collisions import equal_tuples
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
)
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import stepseal as ss

Change = Callable[[Path], None]
HUGE = 1 << 62
MARK = "executed"
PAYLOAD = "__0_0.distcp"
WATCHED = (
    "os.system", "os.exec", "os.posix_spawn", "os.putenv", "subprocess.Popen", "exec", "compile",
    "import", "pickle.find_class", "socket.", "shutil.", "ctypes.dlopen", "builtins.input",
    "marshal.", "os.remove", "os.rename", "os.fork",
)  # fmt: skip


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(callee: bytes, *args: bytes) -> bytes:
    return callee + b"(" + b"".join(args) + b"tR"


TOUCH = f"open({MARK!r}, 'w').close()"
_EXEC = call(glob("builtins", "exec"), text(TOUCH))
_OPERATOR = call(glob("operator", "attrgetter"), text("system"))
_IMPORT = call(glob("importlib", "import_module"), text("os"))
_PARTIAL = call(glob("functools", "partial"), glob("builtins", "exec"), text(TOUCH))
_GETATTR = call(glob("builtins", "getattr"), glob("builtins", "__dict__"), text("get"))
_LINCOEF = call(
    glob("numpy.f2py.crackfortran", "getlincoef"), text(f"exec({TOUCH!r})"), b"(ttx"[:1] + b"t"
)
GADGETS: dict[str, bytes] = {
    "exec": b"\x80\x04" + _EXEC + b".",
    "system": b"\x80\x04" + call(glob("posix", "system"), text(f"touch {MARK}")) + b".",
    "nested": b"\x80\x04](" + b"}(" + text("a") + _EXEC + b"ue.",
    "stack_global_by_memo": (
        b"\x80\x04" + text("exec") + b"\x940" + text("builtins") + b"h\x00\x93(" + text(TOUCH)
        + b"tR."
    ),
    "importlib": b"\x80\x04" + call(
        call(_OPERATOR, _IMPORT), text(f"touch {MARK}")
    ) + b".",
    "functools_partial": b"\x80\x04" + _PARTIAL + b")R.",
    "reduce_by_newobj": b"\x80\x04" + glob("functools", "partial")
    + b"(" + glob("builtins", "exec") + text(TOUCH) + b"t\x81)R.",
    "inst": b"(" + text(TOUCH) + b"ibuiltins\nexec\n.",
    "obj": b"(" + glob("builtins", "exec") + text(TOUCH) + b"o.",
    "eval": b"\x80\x04" + call(glob("builtins", "eval"), text(TOUCH)) + b".",
    "runpy": b"\x80\x04" + call(glob("code", "InteractiveInterpreter")) + b"0" + _EXEC + b".",
    "torch_gadget": b"\x80\x04" + call(
        glob("torch.fx.graph", "_snake_case"), text("a")
    ) + b"0" + _EXEC + b".",
}  # fmt: skip
"""Pickles that execute, by name."""


INERT: dict[str, bytes] = {
    "torch_load": b"\x80\x04" + call(glob("torch", "load"), text("/nowhere")) + b".",
    "numpy_lincoef": b"\x80\x04" + _LINCOEF + b".",
    "getattr_chain": b"\x80\x04" + _GETATTR + b".",
    "extension": b"\x80\x04\x82\x01.",
    "persistent_id": b"\x80\x04Pevil\n.",
    "deep_tuples": b"\x80\x04" + b")" + b"\x85" * 2_000_000 + b".",
    "deep_marks": b"\x80\x04" + b"(" * 4_000_000 + b".",
    "many_lists": b"\x80\x04(" + b"]" * 6_000_000 + b"t.",
    "many_memos": b"\x80\x04N" + b"\x94" * 8_000_000 + b".",
    "long_of_gigabytes": b"\x80\x04\x8b\xff\xff\xff\x7f.",
    "text_of_exabytes": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b".",
    "memo_of_millions": b"\x80\x04Nr\xff\xff\xff\xff.",
    "hash_bomb": b"\x80\x04}(" + b"".join(
        b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") + b"N" for n in range(8_000)
    ) + b"u.",
    "self_containing": b"\x80\x04]\x94h\x00a.",
    "laughs": b"\x80\x04(]\x94"
    + b"".join(b"(" + bytes([104, n]) * 10 + b"t\x94" for n in range(40)) + b"t.",
    "many_nones": b"\x80\x04" + b"N" * (12 << 20) + b".",
    "many_numbers": b"\x80\x04(" + b"K\x01" * (4 << 20) + b"t.",
    "many_items": b"\x80\x04]" + (b"(" + b"N" * 1000 + b"e") * 12_000 + b".",
    "empty": b"",
    "cut": b"\x80\x04}(",
    "no_metadata": pickle.dumps({"a": 1}),
    "two_roots": b"\x80\x04NN.",
}  # fmt: skip
"""Pickles that only try to exhaust, crash or confuse."""


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


def record(pickled: bytes, storage: bytes | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a record as `torch.save` would have written it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        if storage is not None:
            archive.writestr("archive/data/0", storage)
    return out.getvalue()


def tensor(
    size: bytes,
    stride: bytes,
    offset: bytes = b"K\x00",
    count: bytes = b"K\x06",
    key: str = "0",
    kind: str = "FloatStorage",
    flags: bytes = b"",
) -> bytes:
    storage = b"((" + text("storage") + glob("torch", kind) + text(key) + text("cpu")
    storage = storage[1:] + count + b"tQ"
    odict = glob("collections", "OrderedDict") + b")R" + flags
    made = glob("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + offset + size + stride
    return b"\x80\x02" + made + b"\x89" + odict + b"tR."


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def lazy(flag: str, kind: str, size_bytes: int) -> bytes:
    """Return a record of a tensor with a lazy bit."""
    made = tensor(SIZE, STRIDE, kind=kind, flags=b"}" + text(flag) + b"\x88s")
    return record(made, bytes(6 * size_bytes))


SIZE, STRIDE = b"K\x02K\x03\x86", b"K\x03K\x01\x86"
GOOD = bytes(24)
_REBUILD_SUBCLASS = b"\x80\x02" + glob("torch._utils", "_rebuild_wrapper_subclass") + b"(K\x00tR."
TENSORS: dict[str, bytes] = {
    "storage_missing": record(tensor(SIZE, STRIDE, key="../0"), GOOD),
    "storage_short": record(tensor(SIZE, STRIDE), bytes(8)),
    "count_huge": record(tensor(SIZE, STRIDE, count=number(HUGE)), GOOD),
    "stride_outside": record(tensor(SIZE, b"K\x20K\x01\x86"), GOOD),
    "stride_negative": record(tensor(SIZE, number(-3) + b"K\x01\x86"), GOOD),
    "stride_huge": record(tensor(SIZE, number(HUGE) + b"K\x01\x86"), GOOD),
    "offset_huge": record(tensor(SIZE, STRIDE, offset=number(HUGE)), GOOD),
    "offset_text": record(tensor(SIZE, STRIDE, offset=text("0")), GOOD),
    "size_huge": record(tensor(number(HUGE) + b"K\x03\x86", STRIDE), GOOD),
    "size_other": record(tensor(b"K\x03K\x02\x86", b"K\x02K\x01\x86"), GOOD),
    "size_of_dims": record(tensor(b"(" + b"K\x01" * 3000 + b"t", STRIDE), GOOD),
    "subclass": record(_REBUILD_SUBCLASS, GOOD),
    "compressed": record(tensor(SIZE, STRIDE), GOOD, zipfile.ZIP_DEFLATED),
    "bomb": record(tensor(SIZE, STRIDE), bytes(64 << 20), zipfile.ZIP_DEFLATED),
    "conj_of_floats": lazy("conj", "FloatStorage", 4),
    "no_archive": b"\x80\x02N.",
    "end_of_another": b"PK\x05\x06" + b"\xff" * 16 + b"\0\0",
}
VALUES: dict[str, bytes] = {
    "neg_of_bools": lazy("neg", "BoolStorage", 1),
    "neg_of_bytes": lazy("neg", "ByteStorage", 1),
    "conj_of_bools": lazy("conj", "BoolStorage", 1),
    "compressed_value": record(b"\x80\x02K\x01.", method=zipfile.ZIP_DEFLATED),
    "unhashable_key": record(b"\x80\x02}]K\x01s."),
    "state_for_a_list": record(b"\x80\x02]}b."),
    "tensor_many_times": record(
        b"\x80\x02("
        + tensor(SIZE, STRIDE, count=number(1 << 18))[2:-1]
        + b"q\x00"
        + b"h\x00" * 20_000
        + b"t.",
        bytes(1 << 20),
    ),
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
            for number in range(count):
                fqn = f"n.a{number}"
                metadata.state_dict_metadata[fqn] = BytesStorageMetadata()
                metadata.planner_data[fqn] = ("n", fqn)
                metadata.storage_data[MetadataIndex(fqn)] = info

        with_index(change)(folder)

    return apply


def _laughs(width: int, depth: int) -> bytes:
    """Return a record of tuples that hold the one below many times."""
    made = b"\x80\x02" + b"(" * depth + b"]q\x00" + b"h\x00" * width
    for level in range(1, depth):
        made += b"tq" + bytes([level]) + (b"h" + bytes([level])) * width
    return record(made + b"t.")


SHARED: dict[str, Change] = {
    "text_of_many": shared(record(b"\x80\x02" + text("b" * 2_000_000) + b"."), 300),
    "list_of_many": shared(record(b"\x80\x02](" + b"K\x01" * 100_000 + b"e."), 300),
    "laughs_of_many": shared(_laughs(89, 3), 10),
    "refused_of_many": shared(record(b"\x80\x02(" + b"N" * 4_000_000 + b"0."), 300),
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
    """Collects audit events while it is on."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.events is not None and event.startswith(WATCHED):
            self.events.append(f"{event} {args!r:.100}")


def picture(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((p.name, p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.iterdir())


def try_import(folder: Path, root: Path, watch: Watch) -> dict[str, object]:
    before, rss = picture(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, watch.events = time.process_time(), []
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
        "seconds": time.process_time() - started,
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
