"""A job of real processes that are killed, stopped, frozen, doubled and robbed of their disk, with
readers, pins and prunes beside it, round after round: nothing acknowledged is lost but by the keep
rule, nothing half is seen, nobody hangs, and the next life goes on.

See `_round` for the troubles. The same soak must catch deliberately broken protocols.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.soak import run as _soak
from tests.campaigns.soak._job import Word
from tests.campaigns.soak._oracle import judge_words
from tests.campaigns.soak._round import TROUBLES

if TYPE_CHECKING:
    from tests.campaigns.harness._sizes import Size

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def check(size: Size, capsys: pytest.CaptureFixture[str]) -> None:
    row = _soak.run(size)
    with capsys.disabled():
        print("\n" + "\n  ".join([row.text(), *row.notes]))
    assert row.good, "\n".join([*row.violations, *row.missed])


@pytest.mark.serial
def test_a_short_soak(capsys: pytest.CaptureFixture[str]) -> None:
    check("fast", capsys)


@pytest.mark.nightly
def test_half_an_hour_of_soak(capsys: pytest.CaptureFixture[str]) -> None:
    check("nightly", capsys)


def test_a_soak_in_which_too_little_happened_is_not_clean() -> None:
    enough = Counter({f"life with {trouble}": 1 for trouble in TROUBLES})
    enough.update({"acknowledged": 90, "read": 45, "verified": 45, "pinned": 3, "pruned": 3})
    assert _soak.too_little(enough, 9) == []
    for what in enough:
        (told,) = _soak.too_little(enough - Counter({what: 1}), 9)
        assert f" {what} " in told
    assert len(_soak.too_little(Counter(), 1)) == len(enough)


def _told(*words: tuple[str, int, int, int, str]) -> tuple[dict[int, int], dict[int, int]]:
    kinds = [Word(kind, life, 0, step, number, text) for kind, life, step, number, text in words]  # type: ignore[arg-type]
    acknowledged, lineage, problems = judge_words(kinds)
    assert problems == []
    return acknowledged, lineage


_FIRST = [
    ("claiming", 11, 0, 0, ""),
    ("restored", 11, 0, 1, ""),
    ("acknowledged", 11, 50, 0, ""),
]


def test_an_older_step_than_was_acknowledged_is_noticed() -> None:
    with pytest.raises(AssertionError, match="restored step 50, but step 60 was acknowledged"):
        _told(
            *_FIRST,
            ("acknowledged", 11, 60, 0, ""),
            ("claiming", 12, 0, 0, ""),
            ("restored", 12, 50, 2, "11"),
        )


def test_a_life_that_never_said_what_it_restored_leaves_in_doubt_what_was_saved_meanwhile() -> None:
    words = [
        *_FIRST,
        ("claiming", 12, 0, 0, ""),  # stopped after its claim, which descends from step 50
        ("acknowledged", 11, 60, 0, ""),
        ("claiming", 13, 0, 0, ""),
        ("restored", 13, 50, 3, "11"),
    ]
    assert _told(*words) == ({50: 11}, {11: 50})
    assert _told(*words[:5]) == ({50: 11}, {})
    assert _told(*words, ("restored", 12, 50, 2, "11")) == ({50: 11}, {11: 50})


def test_steps_that_nobody_acknowledged_count_if_a_later_life_descends_from_them() -> None:
    acknowledged, lineage = _told(
        *_FIRST,
        ("claiming", 12, 0, 0, ""),
        ("restored", 12, 50, 2, "11"),
        ("claiming", 13, 0, 0, ""),
        ("restored", 13, 110, 3, "12"),
    )
    assert (acknowledged, lineage) == ({50: 11}, {11: 50, 12: 110})


def test_who_woke_up_from_an_older_fresh_start_does_not_own_the_root() -> None:
    words = [
        ("claiming", 11, 0, 0, ""),  # stopped after its claim
        ("claiming", 12, 0, 0, ""),
        ("restored", 12, 0, 2, ""),
        ("restored", 11, 0, 1, ""),
        ("begin", 12, 10, 0, ""),
        ("acknowledged", 12, 10, 0, ""),
    ]
    assert _told(*words) == ({10: 12}, {})
