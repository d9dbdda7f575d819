# ruff: noqa: ANN401 - a change may be of any field's type

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.layout._samples import flips, refusal_of, survivors

from stepseal.errors import Corrupt, InvalidInput
from stepseal.layout import (
    decode_document,
    encode_document,
    refuse,
    seal,
    unseal,
)
from stepseal.layout._documents import DEFAULT_LIMITS, MAX_INT, DocumentLimits, outline

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(['"', "\\", '\\"', "{[,:]}", '\\\\"']),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), children, max_size=4)
    ),
    max_leaves=12,
)


def decode(data: bytes, **options: Any) -> object:
    return decode_document(data, what="doc", **options)


def refusal(data: bytes, **options: Any) -> str:
    """Return why a document is refused."""
    error = refusal_of(lambda found: decode(found, **options), data)
    assert error.path == "doc"
    (problem,) = error.problems
    return problem


@pytest.mark.slow
@given(json_values)
def test_documents_round_trip(value: object) -> None:
    data = encode_document(value)
    back = decode(data)
    assert back == value
    assert repr(encode_document(back)) == repr(data)
    assert json.loads(data) == value


@pytest.mark.slow
@given(json_values)
def test_sealed_documents_round_trip(value: object) -> None:
    assert unseal(seal(value), what="doc") == value


def num_values(value: object) -> int:
    """Count as `DocumentLimits.max_values` does."""
    children = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(children, list):
        return 1
    num_keys = len(children) if isinstance(value, dict) else 0
    return 1 + num_keys + (sum(map(num_values, children)) or 1)


def depth(value: object) -> int:
    children = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(map(depth, children), default=0) if isinstance(children, list) else 0


@pytest.mark.slow
@given(json_values)
def test_writer_and_reader_count_alike(value: object) -> None:
    found = outline(encode_document(value), DEFAULT_LIMITS)
    assert found.num_values == num_values(value)
    assert found.depth == depth(value)
    tight = DocumentLimits(max_depth=found.depth, max_values=found.num_values)
    assert decode(encode_document(value, tight), limits=tight) == value
    assert unseal(seal(value, tight), what="doc", limits=tight) == value
    short = DocumentLimits(max_values=found.num_values - 1)
    assert "values" in refusal(encode_document(value), limits=short)
    if found.num_values > 1:
        with pytest.raises(InvalidInput, match="values"):
            encode_document(value, short)


def test_outline_sees_through_strings_across_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {'a"[': ["\\", "},{", {"b": ["x" * 50, '"' * 9]}]}
    whole = outline(encode_document(value), DEFAULT_LIMITS)
    for window in range(1, 40):
        monkeypatch.setattr("stepseal.layout._documents._WINDOW_BYTES", window)
        assert outline(encode_document(value), DEFAULT_LIMITS) == whole
    assert (whole.num_values, whole.num_pairs, whole.depth) == (10, 2, 4)


@pytest.mark.parametrize("window", [1, 7, 1 << 20])
def test_an_int_out_of_range_is_refused_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr("stepseal.layout._documents._WINDOW_BYTES", window)
    for value in (MAX_INT, -MAX_INT, {"a": [str(2**64), MAX_INT, 1.5]}):
        assert decode(encode_document(value)) == value
    text = encode_document({"a": [str(2**64), MAX_INT]})
    for number in (b"9223372036854775808", b"-9223372036854775808", b"18446744073709551615"):
        assert "an int within" in refusal(number + b"\n")
        assert "an int within" in refusal(text.replace(b" 9223372036854775807", b" " + number))


def test_golden_bytes() -> None:
    body: dict[str, object] = {"b": [1, 2.5, None, True, {}], "a": {"text": 'x"\n\u00e9'}, "c": []}
    assert encode_document(body) == (
        b'{\n "a": {\n  "text": "x\\"\\n\xc3\xa9"\n },\n "b": [\n  1,\n  2.5,\n  null,\n'
        b'  true,\n  {}\n ],\n "c": []\n}\n'
    )
    digest = hashlib.sha256(encode_document({"a": 1})).hexdigest()
    assert seal({"a": 1}) == (
        b'{\n "body": {\n  "a": 1\n },\n "sha256": "' + digest.encode() + b'"\n}\n'
    )


def test_buffers_of_any_kind_are_read() -> None:
    data = encode_document([1])
    assert decode_document(bytearray(data), what="doc") == [1]
    assert decode_document(memoryview(data), what="doc") == [1]


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, "as JSON: expected a finite float, found nan"),
        ({"a": [0, math.inf]}, "['a'][1]: expected a finite float, found inf"),
        (2**63, "an int within"),
        (-(2**63), "an int within"),
        (10**5000, "an int within"),
        ({1: 2}, "keys of type str"),
        ({"a": {None: 2}}, "['a']: expected keys of type str"),
        ({Text("a"): 2}, "keys of type str"),
        (b"x", "found bytes"),
        ({1, 2}, "found set"),
        (Text("a"), "found Text"),
        ([object()], "[0]: expected a JSON value, found object"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
    ],
    ids=range(14),
)
def test_values_that_json_cannot_hold_are_not_written(value: object, where: str) -> None:
    for write in (encode_document, seal):
        with pytest.raises(InvalidInput) as caught:
            write(value)
        assert where in str(caught.value)
        assert len(caught.value.problems) == 1


def test_nesting_is_bounded_on_writing() -> None:
    value: object = 1
    for _ in range(64):
        value = [value]
    assert decode(encode_document(value)) == value
    with pytest.raises(InvalidInput, match="nesting of at most 64"):
        encode_document([value])
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidInput, match="nesting of at most 64"):
        encode_document(endless)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"1", b"1\n\n", b" 1\n", b"\xef\xbb\xbf1\n", b"NaN\n", b"Infinity\n",
        b"-Infinity\n", b"nul\n",
        b"-0\n", b"01\n", b"+1\n", b"1.\n", b".5\n", b"1.50\n", b"1e5\n", b"1E5\n", b"1e999\n",
        b"0x1\n", b"1_0\n",
        b'"\\u0041"\n', b'"\\/"\n', b'"\\ud800"\n', b'"\\ud83d\\ude00"\n', b'"\xff"\n',
        b'"\xed\xa0\x80"\n',
        b'"\xc0\x80"\n', b'"a\n', b'"\x00"\n', b'"\t"\n', b"'a'\n", b"[1,]\n", b"[1 2]\n",
        b"[1]\n", b"[\n 1\n]",
        b"[\n  1\n]\n", b"[\r\n 1\r\n]\n", b"[\n]\n", b"{}{}\n", b'{"a":1}\n',
        b'{\n "a": 1,\n "a": 1\n}\n',
        b'{\n "b": 1,\n "a": 1\n}\n', b"{\n 1: 1\n}\n", b"[\n 1, // x\n 2\n]\n", b"]\n", b"}{\n",
        b'\\"\n', b"\\\n",
        b"18446744073709551616\n", b"9223372036854775808\n", b"-9223372036854775808\n",
    ],
    ids=ascii,
)  # fmt: skip
def test_every_other_spelling_is_refused(data: bytes) -> None:
    assert refusal(data)


HOSTILE = {
    "deep lists": b"[" * 300_000,
    "deep closed lists": b"[" * 300_000 + b"]" * 300_000,
    "deep dicts": b'{"a":' * 300_000,
    "huge int": b"1" * 1_000_000,
    "huge float": b"0." + b"1" * 1_000_000 + b"e-5",
    "many empty lists": b"[" + b"[]," * 5_000_000 + b"[]]",
    "many ints": b"[" + b"1," * 5_000_000 + b"1]",
    "many pairs": b"{" + b'"":{},' * 3_000_000 + b'"":{}}',
    "many quotes": b'"' * 10_000_000,
    "many strings": b"[" + b'"",' * 4_000_000 + b'""]',
    "escapes": b'"' + b"\\" * 10_000_001 + b'"',
    "quoted escapes": b'["' + b'\\"' * 5_000_000,
    "zeros": bytes(5_000_000),
    "spaces": b" " * 10_000_000 + b"1",
    "closing": b"]" * 10_000_000,
    "deep text": (b"[" * 64 + b"1," * 1_900_000 + b"1" + b"]" * 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_cheaply(name: str) -> None:
    assert refusal(HOSTILE[name])


def test_size_is_checked_first() -> None:
    assert "at most 3 bytes, found 4" in refusal(b"\xff" * 4, max_bytes=3)


@given(st.binary(max_size=40) | st.text('{}[]",:\\\n 10eau', max_size=30).map(str.encode))
def test_any_bytes_decode_to_their_own_spelling_or_are_refused(data: bytes) -> None:
    for accepted in set(survivors(iter([data]), decode)):
        assert encode_document(decode(accepted)) == accepted
    assert survivors(iter([data]), lambda found: unseal(found, what="doc")) == []


def test_flipped_bits_and_cuts_of_a_sealed_document_are_refused() -> None:
    data = seal({"a": [1, "text", 2.5], "b": {"c": None}})
    assert survivors(flips(data), lambda found: unseal(found, what="doc")) == []
    cuts = (data[:end] for end in range(len(data)))
    assert survivors(cuts, lambda found: unseal(found, what="doc")) == []


@pytest.mark.parametrize(
    "document",
    [
        [], 1, {}, {"body": 1}, {"sha256": "x"}, {"body": 1, "sha256": 1}, {"body": 1,
        "sha256": "0" * 64},
        {"body": 1, "sha256": hashlib.sha256(b"1\n").hexdigest(), "more": 1},
        {"body": 1, "sha256": hashlib.sha256(b"1\n").hexdigest().upper()},
    ],
    ids=range(9),
)  # fmt: skip
def test_unseal_refuses_what_seal_does_not_write(document: object) -> None:
    with pytest.raises(Corrupt):
        unseal(encode_document(document), what="doc")


def test_refusal_names_the_first_problem_and_carries_all() -> None:
    error = refuse("step-1/manifest.json", ["a", "b", "c"])
    assert str(error).startswith("step-1/manifest.json is damaged: a (and 2 more). ")
    assert error.problems == ("a", "b", "c")
    assert error.path == "step-1/manifest.json"
