from __future__ import annotations

import pytest

from stepseal.layout._validate import Problems, show


def test_the_list_of_problems_stays_short() -> None:
    problems = Problems()
    problems.add("", "the whole is wrong")
    assert problems.all() == ["the whole is wrong"]
    problems.extend("a[0]", ["wrong"] * 5000)
    assert problems.all()[1] == "a[0]: wrong"
    assert len(problems.all()) == 101
    assert problems.all()[-1] == "and 4901 more"


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
