"""Makes `corpus/`: what a hostile checkpoint, peer or user could put in front of a decoder.

    python -m tests.security.make_corpus

Each file is named `<target>--<what>`; the target says which decoder it is for, and where
`plant` puts it in a forged step. Items too large for git are made where they are used (`large`).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from tests._collisions import equal_ints, equal_tuples
from tests.security._forge import BASE, NEWEST, OWNER, Forgery, canonical, header, sealed

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).with_name("corpus")
TREE = f"components/loader/{OWNER}.json"
SEGMENT = f"components/loader/{OWNER}.safetensors"
WITNESS = "stepseal-was-here"
"""Directory that every hostile pickle makes when it is loaded."""
ESCAPE = "\x1b]0;owned\x07\x1b[2J\nstepseal: step 7: whole"
Items = dict[str, bytes]

TAGS = (
    "$int", "$float", "$complex", "$str", "$bytes", "$bytearray", "$numbers", "$tuple", "$dict",
    "$odict", "$counter", "$defaultdict", "$set", "$frozenset", "$deque", "$tensor", "$size",
    "$dtype", "$device", "$torch_generator", "$random", "$ndarray", "$scalar", "$numpy_generator",
    "$numpy_random_state", "$object", "$pickle", "$py/reduce", "__reduce__",
)  # fmt: skip
PAYLOADS: dict[str, object] = {
    "null": None,
    "list": [[], {}, 0],
    "object": {"type": "os.system", "state": ["mkdir stepseal-was-here"]},
    "text": "os:system",
    "number": -(2**62),
    "huge-shape": {"dtype": "float32", "shape": [2**62, 4], "leaf": "scores"},
    "outside-leaf": {"dtype": "float32", "shape": [1], "leaf": "../../../etc/passwd"},
}


def _body(path: str) -> dict[str, Any]:
    text = (BASE / f"step-{NEWEST}" / path).read_bytes()
    found: dict[str, Any] = msgspec.json.decode(text)["body"]
    return found


def manifests() -> Items:
    """Return manifests: broken JSON, broken seals, and fields that lie."""
    good = _body("manifest.json")
    text = sealed(good)
    nan = text.replace(b'"loss": 1.75', b'"loss": NaN')
    assert nan != text
    part = good["parts"][0]

    def changed(**fields: object) -> bytes:
        return sealed({**good, **fields})

    def document(path: str) -> bytes:
        first = {**part, "document": {**part["document"], "path": path}}
        return changed(parts=[first, *good["parts"][1:]])

    index = good["files"][0]
    return {
        "empty": b"",
        "nul": b"\0" * 64,
        "not-utf8": b"\xff\xfe" + text.decode().encode("utf-16-le")[:400],
        "bom": b"\xef\xbb\xbf" + text,
        "array": sealed([good]),
        "two-documents": text + text,
        "nan": nan,
        "infinity": text.replace(b'"loss": 1.75', b'"loss": Infinity'),
        "duplicate-key": text.replace(b'"step": 7', b'"step": 3,\n  "step": 7'),
        "lone-surrogate": text.replace(b'"compat"', b'"\\ud800"'),
        "wrong-seal": text.replace(b'"resumable": true', b'"resumable": false'),
        "unknown-field": changed(evil=True),
        "version-true": changed(format_version=True),
        "version-newer": changed(format_version=2),
        "step-other": changed(step=8),
        "step-negative": changed(step=-1),
        "step-float": changed(step=7.0),
        "size-2-62": changed(files=[{**index, "size_bytes": 2**62}]),
        "size-2-63": changed(files=[{**index, "size_bytes": 2**63}]),
        "size-negative": changed(files=[{**index, "size_bytes": -1}]),
        "part-climbs": document("../../../../etc/passwd"),
        "part-absolute": document("/etc/passwd"),
        "part-dot-segment": document("parts/./trainer/0.json"),
        "part-nul": document("parts/trainer/0.json\0.png"),
        "file-climbs": changed(files=[{**index, "path": "external/a/../../../x"}]),
        "file-case-twice": changed(
            files=[index, *({**index, "role": "external", "path": f"external/a/{n}"} for n in "Bb")]
        ),
        "participant-climbs": changed(participants=["../../x", *good["participants"][1:]]),
        "run-of-another": changed(run_id="0" * 32),
        "component-named-like-a-path": changed(
            components=[{**good["components"][0], "name": "../x"}]
        ),
        "field-drives-the-terminal": changed(**{ESCAPE: 1}),
        "key-drives-the-terminal": changed(versions={ESCAPE: 1}),
        "holder-drives-the-terminal": changed(
            components=[{**good["components"][0], "payloads": {ESCAPE: "trainer/0"}}]
        ),
        "tag-drives-the-terminal": changed(tags=["\x1b]0;owned\x07\x1b[2J"]),
        "options-deep": changed(topology=_nested(14)),
    }


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def parts() -> Items:
    """Return part documents that list what a participant may not have."""
    good = _body(f"parts/{OWNER}.json")
    first = good["files"][0]

    def listed(**fields: object) -> bytes:
        return sealed({**good, "files": [{**first, **fields}, *good["files"][1:]]})

    return {
        "climbs": listed(path="../step-3/__0_0.distcp"),
        "absolute": listed(path="/etc/passwd"),
        "home": listed(path="~/.ssh/id_rsa"),
        "of-another": listed(path="__1_0.distcp"),
        "backslash": listed(path="..\\..\\x"),
        "huge": listed(size_bytes=2**62),
        "beyond-int64": listed(size_bytes=2**64),
        "negative": listed(size_bytes=-5),
        "unknown-role": listed(role="script"),
        "twice": sealed({**good, "files": good["files"] + good["files"][:1]}),
        "nobody": sealed({**good, "participant": "trainer/1"}),
        "other-attempt": sealed({**good, "attempt": "0" * 32}),
        "index-elsewhere": sealed(
            {**good, "index": {**good["index"], "path": "../step-3/parts/trainer/0.safetensors"}}
        ),
        "no-index": sealed({**good, "index": None}),
        "unsealed": canonical(good),
    }


def _float(name: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}


def headers() -> Items:
    """Return safetensors files with hostile headers, for indexes and tree segments alike."""
    two = {**_float("a", [2], 0, 8), **_float("b", [2], 8, 16)}
    data = bytes(16)
    return {
        "empty": b"",
        "length-huge": struct.pack("<Q", 2**63) + b"{}",
        "length-minus-one": b"\xff" * 8 + b"{}",
        "length-beyond-file": struct.pack("<Q", 1 << 20) + b"{}",
        "length-zero": struct.pack("<Q", 0),
        "not-json": header(b"\x80\x04cos\nsystem\n."),
        "array": header([two], data),
        "overlap": header({**two, **_float("b", [2], 4, 12)}, data[:12]),
        "hole": header({**two, **_float("b", [2], 12, 20)}, bytes(20)),
        "outside": header(_float("a", [2], 16, 24), bytes(16)),
        "backwards": header(_float("a", [2], 8, 0), bytes(8)),
        "negative-offset": header(_float("a", [2], -8, 0), bytes(8)),
        "odd-offset": header(_float("a", [2], 1, 9), bytes(9)),
        "float-offset": header(_float("a", [2], 0.0, 8.0), bytes(8)),
        "nan": header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
        "shape-2-62": header(_float("a", [2**62, 4], 0, 0)),
        "shape-wraps-to-0": header(_float("a", [2**32, 2**32], 0, 0)),
        "shape-negative": header(_float("a", [-1, -2], 0, 8), bytes(8)),
        "shape-zero-and-2-40": header(_float("a", [0, 2**40, 2**40], 0, 0)),
        "shape-100-dims": header(_float("a", [1] * 100, 0, 4), bytes(4)),
        "shape-bool": header(_float("a", [True], 0, 4), bytes(4)),
        "duplicate-key": header(b'{"a":' + b"0" + b',"a":' + b"0}", data),
        "dtype-unknown": header({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, data),
        "dtype-list": header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, data),
        "metadata-object": header({"__metadata__": {"a": {}}, **two}, data),
        "metadata-dtypes": header(
            {"__metadata__": {"stepseal.dtypes": '{"a":"os.system"}'}, **two}, data
        ),
        "name-climbs": header(_float("../../../../tmp/x", [2], 0, 8), bytes(8)),
        "name-nul": header(_float("a\0b", [2], 0, 8), bytes(8)),
        "trailing": header(two, bytes(17)),
    }


def trees() -> Items:
    """Return tree documents: each tag with payloads that it does not expect."""
    found = {
        f"{tag.strip('$_').replace('/', '-')}-{name}": canonical({tag: payload})
        for tag in TAGS
        for name, payload in PAYLOADS.items()
    }
    found["in-keys"] = canonical({"$dict": [[{"$object": PAYLOADS["object"]}, 0]]})
    found["nested-60"] = canonical(_nested(60))
    found["keys-lie"] = canonical({"$keys": ["a", "a"], "a": 1})
    return found


def pickles() -> Items:
    """Return pickles that make a directory when they are loaded, in ways that scanners miss."""
    name = f"X{len(WITNESS):c}\0\0\0{WITNESS}".encode()
    call = b"\x85R."  # one argument, call, stop
    short = b"\x8c"

    def text(value: str) -> bytes:
        return short + bytes([len(value)]) + value.encode()

    mkdir = text("os") + text("mkdir") + b"\x93"
    return {
        "global": b"\x80\x02cos\nmkdir\n" + name + call,
        "stack-global": b"\x80\x04" + mkdir + name + call,
        "stack-global-memo": (
            b"\x80\x04" + text("os") + b"\x94" + text("mkdir") + b"\x940h\0h\1\x93" + name + call
        ),
        "nested-reduce": b"\x80\x04]" + mkdir + name + b"\x85Ra0N.",
        "builtins-exec": b"\x80\x04cbuiltins\nexec\n"
        + text(f"import os; os.mkdir({WITNESS!r})")
        + call,
        "builtins-eval": b"\x80\x04cbuiltins\neval\n"
        + text(f"__import__('os').mkdir({WITNESS!r})")
        + call,
        "attrgetter": (
            b"\x80\x04coperator\nattrgetter\n" + text("mkdir") + b"\x85R"
            b"cimportlib\nimport_module\n" + text("os") + b"\x85R\x85R" + name + call
        ),
        "partial": b"\x80\x04cfunctools\npartial\n" + mkdir + name + b"\x86R)R.",
        "old-protocol": b"cos\nsystem\n(S'mkdir " + WITNESS.encode() + b"'\ntR.",
        "obj-opcode": b"(cos\nmkdir\n" + name + b"o.",
    }


def small() -> Items:
    """Return every item that is kept in git, by file name."""
    groups = {
        "manifest": manifests(),
        "part": parts(),
        "header": headers(),
        "tree": trees(),
        "pickle": pickles(),
    }
    return {f"{target}--{name}": data for target, group in groups.items()
            for name, data in group.items()}  # fmt: skip


def large() -> dict[str, Callable[[], bytes]]:
    """Return makers of items that try to exhaust time or memory."""
    deep = b"[" * 300_000
    good, part = _body("manifest.json"), _body(f"parts/{OWNER}.json")
    entry = {"path": "x", "role": "payload", "size_bytes": 0, "digests": []}

    def arrays(shape: list[int], step: int, size: int) -> bytes:
        """Return a header of 100,000 arrays, each `step` bytes after the one before it."""
        one = {n: _float("x", shape, step * n, step * n + size)["x"] for n in range(100_000)}
        data_size = max(size, step * 100_000)
        return header({f"t{n}": value for n, value in one.items()}, bytes(data_size))

    def keys() -> bytes:
        return canonical({"$dict": [[{"$tuple": list(key)}, 0] for key in equal_tuples(20_000)]})

    return {
        "manifest--deep-lists": lambda: deep,
        "manifest--deep-closed": lambda: deep + b"]" * 300_000,
        "manifest--deep-objects": lambda: b'{"a":' * 300_000,
        "manifest--brackets-in-text": lambda: b'"' + b"[" * 3_000_000 + b'"\n',
        "manifest--int-of-a-million-digits": lambda: b'{\n "a": ' + b"9" * 1_000_000 + b"\n}\n",
        "manifest--float-of-a-million-digits": (
            lambda: b'{\n "a": 0.' + b"1" * 1_000_000 + b"\n}\n"
        ),
        "manifest--exponent": lambda: b'{\n "a": 1e999999999\n}\n',
        "manifest--100000-participants": (
            lambda: sealed({**good, "participants": [f"t/{n}" for n in range(100_000)]})
        ),
        "manifest--million-values": lambda: sealed({**good, "topology": {"a": [0] * 1_900_000}}),
        "part--100000-files": lambda: sealed({**part, "files": [entry] * 100_000}),
        "header--100000-arrays": lambda: arrays([1], 4, 4),
        "header--100000-empty": lambda: arrays([0, 2**40], 0, 0),
        "header--100000-overlapping": lambda: arrays([1], 0, 4),
        "header--deep": lambda: header(b'{"a":' * 300_000),
        "tree--wide": lambda: canonical({"$tuple": [{"$int": "9"}] * 200_000}),
        "tree--int-of-a-million-digits": lambda: canonical({"$int": "9" * 1_000_000}),
        "tree--set-of-equal-hashes": (
            lambda: canonical({"$set": [{"$int": str(n)} for n in equal_ints(20_000)]})
        ),
        "tree--dict-of-equal-hashes": keys,
        "tree--bomb-of-shapes": lambda: canonical([{"$size": [2**30] * 2}] * 50_000),
    }


def largest() -> dict[str, Callable[[], bytes]]:
    """Return makers of documents as large as the bounds allow, and of ones just beyond."""
    good, part = _body("manifest.json"), _body(f"parts/{OWNER}.json")
    external = {"role": "external", "size_bytes": 0, "digests": []}

    def payloads(count: int) -> bytes:
        owners = {f"t/{n}": "t/0" for n in range(count)}
        return sealed({**good, "components": [{**good["components"][0], "payloads": owners}]})

    def versions(count: int) -> bytes:
        return sealed({**good, "versions": {f"{n:020}": "a" for n in range(count)}})

    def participants(count: int) -> bytes:
        names = [f"t/{n}" for n in range(count)]
        refs = [
            {
                "participant": name,
                "document": {"path": f"parts/{name}.json", "size_bytes": 1, "sha256": "0" * 64},
            }
            for name in names
        ]
        return sealed({**good, "components": [], "participants": names, "parts": refs})

    def files(count: int) -> bytes:
        entries = [{**external, "path": f"external/a/{n:040}"} for n in range(count)]
        return sealed({**part, "files": entries})

    def digests(count: int) -> bytes:
        entry = {**external, "path": "external/a/b", "size_bytes": count << 20}
        return sealed({**part, "files": [{**entry, "digests": ["0" * 32] * count}]})

    return {
        "manifest--payloads": lambda: payloads(449_000),
        "manifest--payloads-beyond": lambda: payloads(1_900_000),
        "manifest--versions": lambda: versions(449_000),
        "manifest--versions-beyond": lambda: versions(1_300_000),
        "manifest--participants": lambda: participants(70_000),
        "manifest--participants-beyond": lambda: participants(240_000),
        "part--files": lambda: files(89_000),
        "part--files-beyond": lambda: files(330_000),
        "part--digests": lambda: digests(899_000),
        "part--digests-beyond": lambda: digests(1_500_000),
    }


def plant(forgery: Forgery, name: str, data: bytes) -> None:
    """Put an item where its decoder meets it, with every digest above it right."""
    target = name.split("--")[0]
    if target == "manifest":
        forgery.manifest(data)
    elif target == "part":
        forgery.part(data)
    elif target == "tree":
        forgery.file(TREE, data)
    elif target == "pickle":
        forgery.dcp_index(data)
        forgery.bytes_item(data)
    elif name.startswith("header--index"):
        forgery.index(data)
    else:
        forgery.file(SEGMENT, data)


def main() -> None:
    """Write the corpus anew."""
    CORPUS.mkdir(exist_ok=True)
    for path in CORPUS.glob("*--*"):
        path.unlink()
    for name, data in small().items():
        (CORPUS / name).write_bytes(data)


if __name__ == "__main__":
    main()
