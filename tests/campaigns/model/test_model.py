"""In no order of events does the abstract protocol break a promise; each mutant of it does."""

from __future__ import annotations

import pytest
from tests.campaigns.model.run import MUTANTS, explore, run


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_state_keeps_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    row = run("fast")
    with capsys.disabled():
        print(f"\n{row.text()}\n" + "\n".join(row.notes[:2]))
    assert row.good, (row.violations, row.missed)
    assert row.cases >= 100_000
    assert len(row.caught) == len(MUTANTS) >= 12


def test_counterexample_is_short_and_ends_in_the_broken_promise() -> None:
    search = explore(MUTANTS["commit-before-all-prepared"])
    assert search.broken == "a step is whole, of one attempt"
    assert len(search.path) <= 8
    assert search.path[-1].endswith("renames")
