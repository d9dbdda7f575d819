"""Which replicas differ: every opinion, every missing digest, and who is asked where."""

from __future__ import annotations

from typing import Any

import pytest
from tests.steps._kit import captured, component, part_report

from stepseal.protocol import _messages as messages
from stepseal.protocol._comparing import Comparison

NAMES = tuple(f"trainer/{rank}" for rank in range(4))


def compared(
    opinions: str,
    level: str = "tensor",
    size: int = 4,
    **changes: Any,  # noqa: ANN401
) -> Comparison:
    """Return the comparison of one set; each letter is the digest of a rank, `-` for none."""
    facts = {"validate": level, "replicas": {"": size}} | changes
    reports = {name: captured(components=[component(**facts)]) for name in NAMES}
    digests = {
        name: {} if letter == "-" else {"model": {"": letter}}
        for name, letter in zip(NAMES, opinions, strict=True)
    }
    return Comparison(reports, digests, ["model"])


def test_equal_digests_of_all_are_equal() -> None:
    found = compared("aaaa")
    assert found.differing == frozenset()
    assert found.asks(1) == {}
    assert found.missing(1) == ()
    assert found.failures() == {}
    assert found.reasons() == {}


@pytest.mark.parametrize(
    ("opinions", "blamed", "sides"),
    [
        ("aaba", [2], "trainer/0, trainer/1, trainer/3 against trainer/2:"),
        ("baaa", [1, 2, 3], "trainer/0 against trainer/1, trainer/2, trainer/3:"),
        ("abcb", [1, 3, 2], "trainer/0 against trainer/1, trainer/3; trainer/2:"),
        ("aa-a", [2], "trainer/0, trainer/1, trainer/3 against trainer/2:"),
        ("-aaa", [1, 2, 3], "trainer/0 against trainer/1, trainer/2, trainer/3:"),
        ("----", [1, 2, 3], "trainer/0 against trainer/1; trainer/2; trainer/3:"),
    ],
)
def test_who_differs_from_the_lowest_is_named_and_a_missing_digest_differs(
    opinions: str, blamed: list[int], sides: str
) -> None:
    failures = compared(opinions).failures()
    assert list(failures) == [NAMES[rank] for rank in blamed]
    cause = failures[NAMES[blamed[0]]]
    assert (cause.kind, cause.component) == ("state_mismatch", "model")
    assert sides in cause.message


def test_what_may_differ_is_told_and_fails_nothing() -> None:
    found = compared("aaba", "warn")
    assert found.differing == frozenset()
    assert (found.asks(1), found.failures(), found.reasons()) == ({}, {}, {})
    assert "trainer/0, trainer/1, trainer/3 against trainer/2:" in found.warnings()[0]
    assert compared("aaaa", "warn").warnings() == compared("aaba").warnings() == []


def test_a_set_is_equal_only_if_all_of_it_told_a_digest() -> None:
    found = compared("aaaa", size=5)
    assert list(found.failures()) == list(NAMES)
    assert "expected digests of 5 participants, found those of trainer/0" in str(found.reasons())
    alone = captured(components=[component(validate="tensor", replicas={"": 1})])
    told_none = Comparison({NAMES[0]: alone}, {}, ["model"])
    assert "trainer/0 told no digest" in told_none.reasons()["model"]
    assert told_none.asks(1) == {}


def test_one_of_each_opinion_is_asked_and_quick_asks_nobody() -> None:
    ask = messages.Compare(7, {"model": [""]})
    assert compared("abab").asks(7) == dict.fromkeys(NAMES[:2], ask)
    assert compared("abab", "quick").asks(7) == {}
    many = tuple(f"trainer/{rank}" for rank in range(9))
    report = captured(components=[component(validate="tensor", replicas={"": 9})])
    digests = {name: {"model": {"": name}} for name in many}
    found = Comparison(dict.fromkeys(many, report), digests, ["model"])
    assert list(found.asks(7)) == list(many[:4])
    assert "trainer/4 and 4 more: make it equal" in found.reasons()["model"]


def told(**digests: str) -> messages.Compared:
    return messages.Compared(1, {"model": {"": digests}})


def test_the_paths_that_differ_are_named_once_all_have_answered() -> None:
    found = compared("abbb")
    found.take(NAMES[0], told(a="1", b="2", c="3", d="4", e="5"))
    assert found.missing(1) == (NAMES[1],)
    found.take(NAMES[1], told(a="1", b="0", c="0", d="0", e="0"))
    found.take(NAMES[1], told(a="0"))  # repeated: the first counts
    assert found.missing(1) == ()
    cause = found.failures()[NAMES[3]]
    assert cause.path == "b"
    assert cause.problems == [f"component model: {path}" for path in "bcde"]
    assert "b, c, d and 1 more differ: trainer/0 against" in cause.message


def test_a_path_that_one_lacks_differs_and_without_answers_none_is_named() -> None:
    found = compared("abbb")
    found.take(NAMES[0], told(a="1", b="2"))
    found.take(NAMES[1], told(a="1"))
    assert found.failures()[NAMES[1]].path == "b"
    silent = compared("abbb")
    silent.take(NAMES[0], told(a="1"))
    assert silent.failures()[NAMES[1]].path is None
    assert "it differs" in silent.failures()[NAMES[1]].message


def test_sets_are_compared_apart_and_only_the_components_asked_for() -> None:
    places = {"trainer/0": "tp=0", "trainer/1": "tp=1", "trainer/2": "tp=0", "trainer/3": "tp=1"}
    reports = {
        name: captured(
            components=[component(validate="quick", replicas={at: 2}), component("other")]
        )
        for name, at in places.items()
    }
    digests = {name: {"model": {at: at}} for name, at in places.items()}
    assert Comparison(reports, digests, ["model", "other"]).differing == frozenset()
    digests["trainer/3"] = {"model": {"tp=1": "x"}}
    found = Comparison(reports, digests, ["model"])
    assert list(found.failures()) == ["trainer/3"]
    assert "the ranks of tp=1 must hold equal state" in found.reasons()["model"]
    assert Comparison(reports, digests, ["other"]).differing == frozenset()


def in_full(opinions: str, answers: dict[int, dict[str, str]]) -> Comparison:
    """Return a comparison with what was written, after these ranks told by how much it differs."""
    facts: dict[str, Any] = {"validate": "full", "replicas": {"": 4}}
    reports = {name: captured(components=[component(**facts)]) for name in NAMES}
    digests = {n: {"model": {"": letter}} for n, letter in zip(NAMES, opinions, strict=True)}
    parts = {name: part_report(name) for name in NAMES}
    found = Comparison(reports, digests, ["model"], parts)
    asks = found.asks(1)
    assert set(asks) == set(NAMES)
    for rank, name in enumerate(NAMES):
        assert (asks[name].full, asks[name].parts) == (["model"], parts)
        path = {"model": {"": {"w": opinions[rank]}}} if asks[name].sets else {}
        found.take(name, messages.Compared(1, path, {"model": answers.get(rank, {})}))
    assert found.missing(1) == ()
    return found


def test_in_full_all_compare_what_was_written_though_all_digests_are_equal() -> None:
    assert in_full("aaaa", {}).failures() == {}
    found = in_full("aaaa", {2: {"w": "1 of 3 elements differ"}, 3: {}})
    assert found.differing == frozenset()
    (cause,) = found.failures().values()
    assert list(found.failures()) == [NAMES[2]]
    assert "what was written is not what this participant holds: w (1 of 3" in cause.message


def test_in_full_the_failure_says_by_how_much() -> None:
    found = in_full("aaba", {2: {"w": "1 of 3 elements differ"}})
    assert list(found.failures()) == [NAMES[2]]
    cause = found.failures()[NAMES[2]]
    assert cause.path == "w"
    assert cause.problems == ["component model: w (1 of 3 elements differ)"]
    assert "w (1 of 3 elements differ) differs: trainer/0" in cause.message
