"""Pickles and records that try to run code, to exhaust, or to confuse; bytes only."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

HUGE = 1 << 62
MARK = "executed"


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
    "deep_tuples": b"\x80\x04" + b")" + b"\x85" * 400_000 + b".",
    "deep_marks": b"\x80\x04" + b"(" * 400_000 + b".",
    "many_lists": b"\x80\x04(" + b"]" * 400_000 + b"t.",
    "many_memos": b"\x80\x04N" + b"\x94" * 1_000_000 + b".",
    "long_of_gigabytes": b"\x80\x04\x8b\xff\xff\xff\x7f.",
    "text_of_exabytes": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b".",
    "memo_of_millions": b"\x80\x04Nr\xff\xff\xff\xff.",
    "hash_bomb": b"\x80\x04}(" + b"".join(
        b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") + b"N" for n in range(8_000)
    ) + b"u.",
    "self_containing": b"\x80\x04]\x94h\x00a.",
    "laughs": b"\x80\x04(]\x94"
    + b"".join(b"(" + bytes([104, n]) * 10 + b"t\x94" for n in range(40)) + b"t.",
    "many_nones": b"\x80\x04" + b"N" * (1 << 20) + b".",
    "many_numbers": b"\x80\x04(" + b"K\x01" * 1_100_000 + b"t.",
    "many_items": b"\x80\x04]" + (b"(" + b"N" * 1000 + b"e") * 1_100 + b".",
    "empty": b"",
    "cut": b"\x80\x04}(",
    "no_metadata": pickle.dumps({"a": 1}),
    "two_roots": b"\x80\x04NN.",
}  # fmt: skip
"""Pickles that only try to exhaust, crash or confuse."""


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


def laughs(width: int, depth: int) -> bytes:
    """Return a record of tuples that hold the one below many times."""
    made = b"\x80\x02" + b"(" * depth + b"]q\x00" + b"h\x00" * width
    for level in range(1, depth):
        made += b"tq" + bytes([level]) + (b"h" + bytes([level])) * width
    return record(made + b"t.")


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
ONE = record(b"\x80\x02K\x01.")
_ENTRY = ONE.index(b"PK\x01\x02")


def patched(at: int, data: bytes) -> bytes:
    """Return the record of a number with other bytes at an offset from its directory."""
    at += _ENTRY
    return ONE[:at] + data + ONE[at + len(data) :]


VALUES: dict[str, bytes] = {
    "twin_members": ONE[:_ENTRY]
    + 2 * ONE[_ENTRY:-22]
    + ONE[-22:-14]
    + struct.pack("<2H2LH", 2, 2, 2 * len(ONE[_ENTRY:-22]), _ENTRY, 0),
    "member_outside": patched(42, struct.pack("<L", 1 << 30)),
    "member_of_gigabytes": patched(20, struct.pack("<2L", 1 << 31, 1 << 31)),
    "member_of_two_sizes": patched(24, struct.pack("<L", 1 << 31)),
    "encoded_member": patched(10, struct.pack("<H", 12)),
    "directory_of_gigabytes": ONE[:-10] + struct.pack("<2LH", 1 << 31, 0, 0),
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
