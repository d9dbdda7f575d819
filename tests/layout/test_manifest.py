# ruff: noqa: ANN401 - a change may be of any field's type

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins
from tests._work import num_calls
from tests.layout._samples import (
    GOLDEN,
    PARTICIPANTS,
    flips,
    manifest,
    refusal_of,
    survivors,
)

from stepseal.errors import Corrupt, IncompatibleFormat, InvalidInput
from stepseal.layout import (
    MAX_MANIFEST_BYTES,
    ComponentEntry,
    DocumentRef,
    FileEntry,
    Manifest,
    PartRef,
    StepRef,
    decode_manifest,
    encode_manifest,
    manifest_digest,
    part_document_path,
    seal,
    sets_option,
)

if TYPE_CHECKING:
    from stepseal.layout._areas import StepKind

text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**63 - 1) | st.floats(-1, 1) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
segments = st.text("abcXYZ019_", min_size=1, max_size=4)
participant_lists = st.lists(
    st.lists(segments, min_size=1, max_size=3).map("/".join),
    min_size=1,
    max_size=4,
    unique_by=str.casefold,
)
hex32 = st.text("0123456789abcdef", min_size=32, max_size=32)
hex64 = st.text("0123456789abcdef", min_size=64, max_size=64)
sizes = st.integers(0, 2**63 - 1)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(participant_lists)
    owners = st.dictionaries(st.sampled_from(names), st.sampled_from(names))
    words = st.sampled_from(["tensors", "tree", "external"])
    plain = st.sampled_from(["global", "replicated", "sharded", "per_rank"])
    options = st.dictionaries(text.filter(lambda key: key != "sets"), json_values, max_size=2)
    component = st.builds(ComponentEntry, segments, words, plain, owners, st.booleans(), options)
    first = dict.fromkeys(names, names[0])
    whole = sets_option({}, {names[0]: ""})
    divided = st.sampled_from(["per_group", "per_node"])
    component |= st.builds(
        ComponentEntry, segments, words, divided, st.just(first), st.booleans(), st.just(whole)
    )
    kinds: list[StepKind] = ["full", "weights"]
    kind = draw(st.sampled_from(kinds))
    return Manifest(
        run_id=draw(hex32),
        step=draw(st.integers(0, 2**53 - 1)),
        incarnation=draw(sizes),
        attempt=draw(hex32),
        parent=draw(st.none() | st.builds(StepRef, st.integers(0, 2**53 - 1), hex64, sizes)),
        kind=kind,
        resumable=draw(st.booleans()) and kind == "full",
        cut=draw(st.dictionaries(text, st.none() | st.booleans() | st.integers(0, 9) | text)),
        created_at=draw(st.datetimes().map(lambda found: found.isoformat() + "Z")),
        metrics=draw(st.dictionaries(text, st.floats(allow_nan=False), max_size=3)),
        tags=tuple(draw(st.lists(text, max_size=3, unique_by=str.casefold))),
        participants=tuple(names),
        topology=draw(st.dictionaries(text, json_values, max_size=2)),
        components=tuple(
            draw(st.lists(component, max_size=3, unique_by=lambda entry: entry.name.casefold()))
        ),
        parts=tuple(
            PartRef(name, DocumentRef(part_document_path(name), draw(sizes), draw(hex64)))
            for name in names
        ),
        left_out={},
        files=(),
        versions=draw(st.dictionaries(text, text, max_size=2)),
        durability=draw(st.sampled_from(["fsync", "best-effort"])),
    )


@pytest.mark.slow
@given(manifests())
def test_manifests_round_trip(value: Manifest) -> None:
    data = encode_manifest(value)
    assert decode_manifest(data) == value
    assert encode_manifest(decode_manifest(data)) == data


def test_every_buffer_is_read() -> None:
    data = encode_manifest(manifest())
    assert decode_manifest(memoryview(data)) == decode_manifest(bytearray(data)) == manifest()


def test_metrics_keep_what_json_lacks() -> None:
    metrics: dict[str, Any] = {"a": math.nan, "b": -math.inf, "c": 3, "d": True, "e": -0.0}
    found = decode_manifest(encode_manifest(manifest(metrics=metrics))).metrics
    assert {key: str(value) for key, value in found.items()} == {
        "a": "nan",
        "b": "-inf",
        "c": "3.0",
        "d": "1.0",
        "e": "-0.0",
    }


def test_golden_bytes() -> None:
    data = encode_manifest(manifest())
    assert data == (GOLDEN / "manifest.json").read_bytes()
    assert manifest_digest(data) == hashlib.sha256(data).hexdigest()
    body = json.loads(data)["body"]
    assert body["metrics"] == {"loss": 1.25, "worst": "inf"}
    assert body["format_version"] == 1


@pytest.mark.slow
def test_every_flipped_bit_is_refused() -> None:
    tiny = manifest(components=(), files=(), cut={}, metrics={}, topology={}, versions={}, tags=())
    assert survivors(flips(encode_manifest(tiny)), decode_manifest) == []


def test_every_cut_is_refused() -> None:
    data = encode_manifest(manifest())
    assert survivors((data[:end] for end in range(len(data))), decode_manifest) == []
    assert survivors(iter([data + b"\n", data + data, b"\n" + data]), decode_manifest) == []


def ref(participant: str, **changes: Any) -> PartRef:
    document = DocumentRef(part_document_path(participant), 10, "cd" * 32)
    return PartRef(participant, replace(document, **changes))


def metadata(**changes: Any) -> FileEntry:
    return replace(FileEntry(".metadata", 3, "dcp-index", ("ef" * 16,)), **changes)


OWN = {name: name for name in PARTICIPANTS}
CROSSED = dict(zip(PARTICIPANTS, PARTICIPANTS[::-1], strict=True))
TWO = dict(zip(PARTICIPANTS, ("tp=0", "tp=1"), strict=True))


TWO_ROLES = {"participants": ("a/0", "b/0"), "parts": (ref("a/0"), ref("b/0"))}


def in_sets(axes: dict[str, int], coordinates: dict[str, str], **changes: Any) -> ComponentEntry:
    options = sets_option(axes, coordinates)
    return component(sharing="per_group", options=options, **({"payloads": OWN} | changes))


def component(**changes: Any) -> ComponentEntry:
    return replace(ComponentEntry("model", "tensors", "sharded", {}, True, {}), **changes)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"format_version": 0}, ">= 1 - at `$.format_version`"),
    ({"run_id": "A" * 32}, "- at `$.run_id`"),
    ({"run_id": "a" * 31}, "- at `$.run_id`"),
    ({"step": -1}, ">= 0 - at `$.step`"),
    ({"step": True}, "got `bool` - at `$.step`"),
    ({"incarnation": -1}, ">= 0 - at `$.incarnation`"),
    ({"attempt": None}, "got `null` - at `$.attempt`"),
    ({"parent": StepRef(1, "ab", 1)}, "- at `$.parent.manifest_sha256`"),
    ({"kind": "half"}, "'half' - at `$.kind`"),
    ({"kind": "weights"}, "resumable: expected false for a step of weights"),
    ({"cut": {"a": [1]}}, "got `array` - at `$.cut[...]`"),
    ({"created_at": "2026-01-02"}, "created_at: expected a UTC time"),
    ({"created_at": "2026-13-02T03:04:05Z"}, "created_at: expected a UTC time"),
    ({"created_at": "2026-01-02T03:04:05+01:00"}, "created_at: expected a UTC time"),
    ({"tags": ("",)}, ">= 1 - at `$.tags[0]`"),
    ({"tags": ("a", "A")}, "tags: 'A' and 'a' are the same name"),
    ({"participants": ()}, "participants: expected 1 to 70000"),
    ({"participants": (*PARTICIPANTS, "a.b")}, "participants: expected a participant such as"),
    ({"participants": (*PARTICIPANTS, "Trainer/0")}, "'Trainer/0' and 'trainer/0' are the same"),
    ({"participants": (*PARTICIPANTS, "buffer/0")}, "parts: expected one part per participant"),
    ({"parts": ()}, "trainer/0 has none"),
    ({"parts": (ref("trainer/0"), ref("trainer/0"))}, "parts[1]: trainer/0 has more than one part"),
    (
        {"parts": (ref("trainer/0"), ref("trainer/1"), ref("x"))},
        "parts[2]: x is not a participant of this step",
    ),
    (
        {"parts": (ref("trainer/0"), ref("trainer/1", path="parts/trainer/0.json"))},
        "parts[1].document.path: expected parts/trainer/1.json, found 'parts/trainer/0.json'",
    ),
    (
        {"parts": (ref("trainer/0", path="../x"),)},
        "parts[0].document.path: expected parts/trainer/0.json",
    ),
    ({"parts": (ref("trainer/0", size_bytes=-1),)}, ">= 0 - at `$.parts[0].document.size_bytes`"),
    ({"components": (component(name="a/b"),)}, "components: expected a component name"),
    ({"components": (component(), component(name="Model"))}, "components: 'Model' and 'model' are"),
    ({"components": (component(kind="x"),)}, "- at `$.components[0].kind`"),
    ({"components": (component(sharing="SHARDED"),)}, "- at `$.components[0].sharing`"),
    (
        {"components": (component(), component(name="b", payloads={"trainer/0": "x"}))},
        "components[1].payloads.trainer/0: expected a participant of this step, found 'x'",
    ),
    (
        {"components": (component(sharing="per_group", payloads=OWN),)},
        "components[0]: sets: Expected `object`, got `null`",
    ),
    (
        {
            "components": (
                component(sharing="replicated", options=sets_option({}, {"trainer/0": ""})),
            )
        },
        "components[0]: expected no sets of this sharing",
    ),
    (
        {"components": (in_sets({"tp": 2}, {"trainer/0": "tp=0"}),)},
        "components[0]: sets: expected a coordinate for each owner",
    ),
    (
        {"components": (in_sets({"tp": 2}, OWN),)},
        "components[0]: sets: expected one owner for each coordinate of the axes",
    ),
    (
        {"components": (in_sets({"tp": 2**40, "pp": 2**40}, OWN),)},
        "components[0]: sets: expected one owner for each coordinate of the axes",
    ),
    (
        {"components": (in_sets({"tp": 2}, TWO, payloads={"trainer/0": "trainer/0"}),)},
        "components[0]: expected a payload for each participant",
    ),
    (
        {"components": (in_sets({"tp": 2}, TWO, payloads=CROSSED),)},
        "which reads its own payload",
    ),
    (
        {"components": (component(payloads={"x": "trainer/0"}),)},
        "components[0].payloads.x: expected a participant of this step as key",
    ),
    (
        {"components": (component(role="replay"),)},
        "components[0].role: expected a role of this step, found 'replay'",
    ),
    (
        {**TWO_ROLES, "components": (component(role="a", payloads={"b/0": "a/0"}),)},
        "components[0].payloads.b/0: expected a participant of a as key",
    ),
    (
        {**TWO_ROLES, "components": (component(role="a", payloads={"a/0": "b/0"}),)},
        "components[0].payloads.a/0: expected a participant of a, found 'b/0'",
    ),
    ({"files": (metadata(path="x"),)}, "files[0]: a file of role dcp-index cannot have the path"),
    ({"files": (metadata(digests=()),)}, "files[0]: expected 1 digests for 3 bytes, found 0"),
    ({"files": (metadata(digests=("x",)),)}, "- at `$.files[0].digests[0]`"),
    ({"files": (metadata(role="tree"),)}, "files[0].role: a tree file belongs to a part"),
    ({"files": (metadata(), metadata())}, "files: '.metadata' and '.metadata' are the same file"),
    ({"durability": "maybe"}, "- at `$.durability`"),
    ({"digest_algorithm": "md5"}, "- at `$.digest_algorithm`"),
    ({"chunk_bytes": 4096}, ">= 1048576 - at `$.chunk_bytes`"),
    ({"versions": {"torch": 2}}, "got `int` - at `$.versions[...]`"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_neither_written_nor_read(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        encode_manifest(manifest(**changes))
    assert any(expected in problem for problem in caught.value.problems)
    plain = to_builtins(manifest(metrics={}, **changes))
    error = refusal_of(decode_manifest, seal(plain))
    assert error.problems == caught.value.problems
    assert error.path == "manifest.json"


def body(**changes: Any) -> dict[str, Any]:
    plain = to_builtins(manifest(metrics={}))
    assert isinstance(plain, dict)
    return {**plain, **changes}


def test_all_problems_between_fields_are_listed_with_their_paths() -> None:
    changes = body(tags=["a", "a"], parts=[], kind="weights")
    assert len(refusal_of(decode_manifest, seal(changes)).problems) == 4


@pytest.mark.parametrize(
    "changes", [{"extra": 0}, {"metrics": {"a": 1}}, {"parent": {"step": 1}}, {"step": "1"}]
)
def test_a_field_that_is_unknown_or_of_another_type_is_refused(changes: dict[str, Any]) -> None:
    assert len(refusal_of(decode_manifest, seal(body(**changes))).problems) == 1


@pytest.mark.parametrize("name", sorted(body()))
def test_every_field_is_needed(name: str) -> None:
    plain = body()
    del plain[name]
    assert refusal_of(decode_manifest, seal(plain))


@pytest.mark.parametrize("value", [None, 1, "x", [], {}])
def test_a_sealed_document_of_another_kind_is_refused(value: object) -> None:
    assert refusal_of(decode_manifest, seal(value))


@pytest.mark.parametrize("version", [2, 2**63 - 1])
def test_a_newer_format_is_named(version: int) -> None:
    with pytest.raises(IncompatibleFormat, match=f"format version 1, found {version}") as caught:
        decode_manifest(seal({"format_version": version, "new": True}))
    assert (caught.value.expected, caught.value.found) == (1, version)


@pytest.mark.parametrize("version", [0, -1, True, "2", 2.0, None])
def test_a_wrong_version_is_damage(version: object) -> None:
    assert refusal_of(decode_manifest, seal(body(format_version=version)))


def test_nesting_is_bounded() -> None:
    deep: object = 1
    for _ in range(17):
        deep = [deep]
    assert "nesting" in refusal_of(decode_manifest, seal(body(topology={"a": deep}))).problems[0]
    with pytest.raises(InvalidInput, match="nesting"):
        encode_manifest(manifest(topology={"a": deep}))


def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepseal.layout._manifest.MAX_MANIFEST_BYTES", 2000)
    with pytest.raises(InvalidInput, match="at most 2000 bytes"):
        encode_manifest(manifest(versions={"a": "b" * 2000}))
    assert "at most 2000 bytes" in refusal_of(decode_manifest, bytes(2001)).problems[0]
    assert MAX_MANIFEST_BYTES == 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize("data", [bytes(64 << 20), b"[" * (64 << 20)], ids=["zeros", "lists"])
def test_large_hostile_bytes_are_refused_cheaply(data: bytes) -> None:
    assert refusal_of(decode_manifest, data)


@pytest.mark.slow
def test_many_problems_are_refused_cheaply() -> None:
    plain = body(tags=["a"] * 300_000)
    assert len(refusal_of(decode_manifest, seal(plain)).problems) == 101


def crowd(number: int) -> Manifest:
    names = tuple(f"trainer/{i}" for i in range(number))
    return manifest(
        participants=names, components=(component(payloads={n: n for n in names}),),
        parts=tuple(ref(n) for n in names),
    )  # fmt: skip


def test_the_work_on_a_manifest_grows_with_its_participants() -> None:
    value, twice = crowd(200), crowd(400)
    assert decode_manifest(encode_manifest(twice)) == twice
    few = num_calls(lambda: encode_manifest(value))
    assert few < 200 * 200
    assert num_calls(lambda: encode_manifest(twice)) < 2.1 * few


@given(st.binary(max_size=50))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_manifest(data)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(sorted(body())), json_values, max_size=4))
def test_any_values_in_any_fields_are_read_or_refused(changes: dict[str, Any]) -> None:
    data = seal(body(**changes))
    for found in survivors(iter([data]), decode_manifest):
        assert encode_manifest(decode_manifest(found)) == found
