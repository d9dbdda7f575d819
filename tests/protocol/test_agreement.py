from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.steps._kit import THREE, TWO, captured, cause, component

from stepseal import errors
from stepseal.protocol import _agreement as agreement
from stepseal.protocol._agreement import kind_of, summary, told_once

if TYPE_CHECKING:
    from stepseal.protocol._failures import Failure
    from stepseal.protocol._messages import Captured

USUAL = captured()


def disagreements(reports: dict[str, Captured]) -> dict[str, Failure]:
    found, left_out = agreement.disagreements(reports)
    assert left_out == {}
    return found


def against(odd: object) -> dict[str, str]:
    reports = {THREE[0]: USUAL, THREE[1]: odd, THREE[2]: USUAL}
    found = disagreements(reports)  # type: ignore[arg-type]
    return {participant: found[participant].message for participant in found}


def test_equal_reports_agree() -> None:
    assert disagreements(dict.fromkeys(THREE, USUAL)) == {}
    assert disagreements({}) == {}


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (captured(step=11), "step 11"),
        (captured(cut={"policy": 1}), "policy"),
        (captured(components=[component("rng")]), "rng"),
        (captured(components=[]), "components []"),
        (captured(components=[component(kind="tensors")]), "holds tensors replicated"),
        (captured(components=[component(sharing="global")]), "holds tree global"),
        (captured(components=[component(fingerprint="0")]), "keys, shapes and dtypes"),
        (captured(components=[component(validate="full")]), "added with validate='full'"),
        (captured(components=[component(required=False)]), "added with required=False"),
    ],
)
def test_each_difference_is_named(odd: object, text: str) -> None:
    found = against(odd)
    assert list(found) == [THREE[1]]
    assert text in found[THREE[1]]
    assert f"{THREE[0]}, {THREE[2]}" in found[THREE[1]]


def test_per_rank_fingerprints_may_differ() -> None:
    facts: dict[str, Any] = {"sharing": "per_rank", "writes": True}
    reports = {
        name: captured(components=[component(fingerprint=name, payload=name, **facts)])
        for name in THREE
    }
    assert disagreements(reports) == {}


def in_sets(
    fingerprints: str, sets: str = "sss", num_sets: int = 2, sharing: str = "per_group"
) -> dict[str, Captured]:
    """Return the reports of three participants: two in one set, the last in another."""
    places = [("set=0", True), ("set=0", False), ("set=1", True)]
    facts: dict[str, Any] = {"sharing": sharing, "axes": {"set": num_sets}}
    return {
        name: captured(
            components=[component(payload=at, writes=own, fingerprint=digest, sets=text, **facts)]
        )
        for name, (at, own), digest, text in zip(THREE, places, fingerprints, sets, strict=True)
    }


def test_fingerprints_of_sets_may_differ() -> None:
    assert disagreements(in_sets("abc")) == {}


def test_keys_are_compared_within_each_set_of_ranks_that_hold_a_stage() -> None:
    assert disagreements(in_sets("aab", sharing="sharded")) == {}
    found = disagreements(in_sets("abb", sharing="sharded"))
    assert set(found) == {THREE[1]}
    assert "the ranks of set=0 must hold the same keys" in found[THREE[1]].message
    assert "correct same_on, or declare sharing=ss.SHARDED" in found[THREE[1]].message


def test_unequal_keys_of_all_ranks_say_how_stages_are_declared() -> None:
    text = against(captured(components=[component(fingerprint="0")]))[THREE[1]]
    assert "(stages of a pipeline: declare sharing=ss.SHARDED): has digest 0" in text


def test_sets_that_differ_or_leave_a_coordinate_out_are_named() -> None:
    found = disagreements(in_sets("aab", "sst"))
    assert set(found) == {THREE[2]}
    assert "on every rank: declares the sets [t], but" in found[THREE[2]].message
    assert set(disagreements(in_sets("aab", num_sets=3))) == set(THREE)


@pytest.mark.parametrize(
    ("first", "second", "blamed", "text"),
    [
        (False, False, [0, 1], "writes the payload of the job, found none"),
        (True, True, [0, 1], "found trainer/0 and trainer/1"),
        (True, None, [1], "expected a payload that it reads, as the others have, found none"),
    ],
)
def test_each_payload_has_one_owner(
    first: bool, second: bool | None, blamed: list[int], text: str
) -> None:
    reports = {
        participant: captured(
            components=[component(payload=None if writes is None else "", writes=bool(writes))]
        )
        for participant, writes in zip(TWO, (first, second), strict=True)
    }
    found = disagreements(reports)
    assert list(found) == [TWO[number] for number in blamed]
    assert all(text in one.message and one.component == "model" for one in found.values())


def optional(**changes: Any) -> Captured:  # noqa: ANN401 - of a report
    return captured(components=[component("rng"), component(required=False, **changes)])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "0"}, f"{THREE[1]}: component model: all ranks must hold"),
        ({"payload": "x"}, f"{THREE[1]}: component model: expected to read"),
        ({"failed": "it raised"}, f"{THREE[1]}: it raised"),
    ],
)
def test_an_optional_component_that_differs_or_failed_is_left_out(
    changes: dict[str, str], reason: str
) -> None:
    good = optional(payload="", writes=True)
    reads = optional(payload="")
    reports = {THREE[0]: good, THREE[1]: optional(**({"payload": ""} | changes)), THREE[2]: reads}
    found, left_out = agreement.disagreements(reports)
    assert found == {}
    assert list(left_out) == ["model"]
    assert left_out["model"].startswith(reason)


def test_nothing_is_left_out_of_a_save_that_fails() -> None:
    bad = captured(components=[component("rng", kind="tensors"), component(required=False)])
    odd = captured(components=[component("rng"), component(required=False, failed="it raised")])
    found, left_out = agreement.disagreements({"a": odd, "b": odd, "c": bad})
    assert (list(found), left_out) == (["c"], {})


def test_metrics_and_tags_may_differ() -> None:
    assert against(captured(metrics={"loss": 1.0}, tags=["x"])) == {}


def test_first_seen_wins_a_tie() -> None:
    assert list(disagreements({"a": USUAL, "b": captured(step=11)})) == ["b"]


def test_long_lists_are_cut() -> None:
    reports = {f"trainer/{n}": USUAL for n in range(9)} | {"odd": captured(step=11)}
    assert "trainer/3 and 5 more: step 10" in disagreements(reports)["odd"].message


def test_kind_of_causes() -> None:
    timeout = cause(kind=errors.CommitTimeout.kind)
    assert kind_of([timeout, timeout]) == errors.CommitTimeout.kind
    assert kind_of([timeout, cause()]) == errors.ParticipantFailed.kind
    assert kind_of([]) == errors.ParticipantFailed.kind


def test_summary_names_all_up_to_a_limit() -> None:
    text = summary("save", {f"p/{n}": cause(f"x{n}.") for n in range(10)}, "Next.")
    assert text.startswith("save: p/0: x0; p/1: x1")
    assert text.endswith("p/7: x7; and 2 more causes. Next.")


def test_summary_tells_equal_causes_once() -> None:
    text = summary("save", {f"p/{n}": cause("same.") for n in range(6)}, "Next.")
    assert text == "save: p/0, p/1, p/2, p/3 and 2 more: same. Next."


def test_a_cause_that_says_what_failed_is_not_introduced_again() -> None:
    assert told_once("save of step 4", "save of step 4: no room") == "save of step 4: no room"
    assert told_once("save of step 4", "no room") == "save of step 4: no room"
