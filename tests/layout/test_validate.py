from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from stepseal.layout._validate import (
    Problems,
    bounded_int,
    bounded_text,
    read_value,
    show,
    to_plain,
)


@dataclass(frozen=True, slots=True)
class Inner:
    name: Annotated[str, bounded_text(3)]


@dataclass(frozen=True, slots=True)
class Outer:
    number: Annotated[int, bounded_int(0, 5)]
    flag: bool
    ratio: float
    choice: Literal["a", 1]
    inner: Inner | None
    inners: tuple[Inner, ...]
    named: dict[str, Annotated[int, bounded_int(0, 5)]]
    anything: object


SOUND = Outer(1, True, 0.5, "a", Inner("x"), (Inner("y"), Inner("z")), {"k": 2}, [None, {"a": 1}])


def findings(**changes: object) -> list[str]:
    plain = to_plain(SOUND)
    assert isinstance(plain, dict)
    problems = Problems()
    read_value(Outer, {**plain, **changes}, problems)
    return problems.all()


def test_plain_values_read_back() -> None:
    problems = Problems()
    assert read_value(Outer, to_plain(SOUND), problems) == SOUND
    assert problems.all() == []


def test_plain_values_are_json() -> None:
    assert to_plain(SOUND) == {
        "number": 1,
        "flag": True,
        "ratio": 0.5,
        "choice": "a",
        "inner": {"name": "x"},
        "inners": [{"name": "y"}, {"name": "z"}],
        "named": {"k": 2},
        "anything": [None, {"a": 1}],
    }
    assert to_plain(Outer) is Outer


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"number": 6}, "number: expected 0 to 5, found 6"),
        ({"number": -1}, "number: expected 0 to 5, found -1"),
        ({"number": True}, "number: expected int, found True"),
        ({"number": 1.0}, "number: expected int, found 1.0"),
        ({"number": 10**9999}, "number: expected 0 to 5, found a huge int"),
        ({"flag": 1}, "flag: expected bool, found 1"),
        ({"ratio": 1}, "ratio: expected float, found 1"),
        ({"ratio": "NaN"}, "ratio: expected float, found 'NaN'"),
        ({"choice": True}, "choice: expected one of 'a', 1, found True"),
        ({"choice": "b"}, "choice: expected one of 'a', 1, found 'b'"),
        ({"inner": []}, "inner: expected Inner, found list of 0"),
        ({"inner": {"name": ""}}, "inner.name: expected 1 to 3 characters, found 0"),
        ({"inner": {"name": "four"}}, "inner.name: expected 1 to 3 characters, found 4"),
        ({"inner": {"name": b"x"}}, "inner.name: expected str, found b'x'"),
        ({"inners": {}}, "inners: expected list, found dict of 0"),
        ({"inners": ({"name": "a"},)}, "inners: expected list, found tuple of 1"),
        ({"inners": [{"name": "a"}, None]}, "inners[1]: expected Inner, found None"),
        ({"named": []}, "named: expected dict, found list of 0"),
        ({"named": {"a.b": 9}}, "named.a.b: expected 0 to 5, found 9"),
        ({"named": {"x" * 999: 9}}, f"named.{'x' * 80}: expected 0 to 5, found 9"),
        ({"more": 1}, "more: unknown field"),
        ({"inner": {"name": "a", "x": 1}}, "inner.x: unknown field"),
        ({"\x1b[2J\n": 1}, "'\\x1b[2J\\n': unknown field"),
    ],
    ids=range(23),
)
def test_each_problem_has_its_path(changes: dict[str, object], expected: str) -> None:
    assert findings(**changes) == [expected]


def test_all_problems_are_collected() -> None:
    found = findings(number="x", inners=[{"name": "long"}, {}], named={"a": 7, "b": None}, z=1)
    assert sorted(found) == [
        "inners[0].name: expected 1 to 3 characters, found 4",
        "inners[1].name: missing field",
        "named.a: expected 0 to 5, found 7",
        "named.b: expected int, found None",
        "number: expected int, found 'x'",
        "z: unknown field",
    ]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_numbers_that_json_lacks_are_texts(text: str) -> None:
    plain = to_plain(SOUND)
    assert isinstance(plain, dict)
    problems = Problems()
    assert str(read_value(Outer, {**plain, "ratio": text}, problems).ratio) == text
    assert problems.all() == []


def test_the_list_of_problems_stays_short() -> None:
    found = findings(inners=[None] * 5000)
    assert len(found) == 101
    assert found[-1] == "and 4900 more"
    problems = Problems()
    problems.add("", "the whole is wrong")
    assert problems.all() == ["the whole is wrong"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("x" * 10**6, "'" + "x" * 79 + "..."),
        ([[]] * 10**6, "list of 1000000"),
        ({"a": 1}, "dict of 1"),
        (-(1 << 99999), "a huge int"),
        ("\ud800\n", "'\\ud800\\n'"),
        (None, "None"),
    ],
    ids=range(7),
)
def test_values_are_shown_short(value: object, text: str) -> None:
    assert show(value) == text
