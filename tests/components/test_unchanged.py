"""Facts that must be at a restore what they were at the save."""

from __future__ import annotations

from typing import Any

import pytest

import stepseal as ss
from stepseal.components import _unchanged
from stepseal.errors import InvalidInput, StateMismatch
from stepseal.testing import MemoryStorage, World

SAVED: dict[str, Any] = {"dataset": "c4", "num_samples": 9, "revision": None}


def saved() -> MemoryStorage:
    storage = MemoryStorage()

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("facts", ss.Unchanged(**SAVED))
        ckpt.add("model", {"steps": 7}, sharing=ss.REPLICATED)
        with ckpt:
            ckpt.restore()
            ckpt.save(1)

    World(2, lambda _: storage).run(work)
    return storage


def restored(facts: dict[str, Any], **options: Any) -> tuple[Any, int]:  # noqa: ANN401 - of restore
    """Return the report or the error, and what became of the other component."""
    storage = saved()

    def work(_: int, ckpt: ss.Checkpointer) -> tuple[Any, int]:
        model = {"steps": 0}
        ckpt.add("facts", ss.Unchanged(**facts))
        ckpt.add("model", model, sharing=ss.REPLICATED)
        with ckpt:
            try:
                found = ckpt.restore(**options)
            except StateMismatch as error:
                return error, model["steps"]
            assert found is not None
            return found.report["facts"], model["steps"]

    first, *others = World(3, lambda _: storage).run(work)
    assert [type(one) for one in others] == [type(first)] * 2
    return first


def test_equal_facts_are_restored_and_change_nothing() -> None:
    assert restored(dict(SAVED)) == ("restored (tree)", 7)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({**SAVED, "dataset": "c5"}, "dataset: expected (live) 'c5', found 'c4'"),
        ({**SAVED, "num_samples": 8}, "num_samples: expected (live) 8, found 9"),
        ({**SAVED, "more": 1}, "more: expected (live) 1, found nothing"),
        ({"dataset": "c4", "num_samples": 9}, "revision: expected (live) nothing, found None"),
    ],
)
def test_other_facts_are_refused_before_anything_changes_and_the_advice_works(
    facts: dict[str, Any], text: str
) -> None:
    error, steps = restored(facts)
    assert isinstance(error, StateMismatch)
    assert error.problems[0].startswith(f"component facts: {text}")
    assert "restore(policies={'facts': 'fresh'})" in error.problems[0]
    assert steps == 0
    report, steps = restored(facts, policies={"facts": "fresh"})
    assert (report, steps) == ("fresh: left as it was", 7)


def test_a_variant_that_compares_nothing_would_go_on_with_other_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_unchanged.UnchangedComponent, "state_problems", lambda *_: [])
    assert restored({**SAVED, "dataset": "c5"}) == ("restored (tree)", 7)


@pytest.mark.parametrize(
    ("facts", "text"), [({}, "found none"), ({"ids": [1]}, "another type for ids")]
)
def test_what_is_no_fact_is_refused(facts: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        ss.Unchanged(**facts)
