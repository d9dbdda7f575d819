from __future__ import annotations

from collections import Counter

import pytest
from tests.commit._simulator import Faults, simulate

CALM = Faults(0, 0, 0, 0, 0, 0, 0, 0)
ROUGH = Faults(0.03, 0.3, 0.4, 0.05, 0.05, 0.05, 0.03, 0.3)
SLOW = Faults(0.005, 0.3, 0.5, 0.02, 0.01, 0.01, 0.02, 0.5)
NUM_SEEDS = 400


def test_calm_job_commits_every_step() -> None:
    outcome = simulate(0, CALM)
    assert outcome.problems == []
    assert outcome.ends == ["committed"] * 9


def test_same_seed_does_the_same() -> None:
    assert simulate(7, ROUGH) == simulate(7, ROUGH)


@pytest.mark.slow
@pytest.mark.parametrize("faults", [Faults(), ROUGH, SLOW], ids=["usual", "rough", "slow"])
def test_promises_hold(faults: Faults) -> None:
    ends: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        outcome = simulate(seed, faults)
        assert outcome.problems == [], f"simulate({seed}, {faults})"
        ends.update(outcome.ends)
    # the faults reach every kind of end, or the runs prove nothing
    assert ends["committed"] > 20
    assert ends["unknown"] > 0
    assert ends["failed: participant_failed"] > 10
    assert ends["failed: commit_timeout"] > 0
    assert ends["failed: coordinator_lost"] > 0


@pytest.mark.parametrize("broken", ["commit-early", "prepare-early", "tell-early"])
def test_broken_protocol_is_noticed(broken: str) -> None:
    faults = Faults(broken=broken)
    caught = sum(bool(simulate(seed, faults).problems) for seed in range(50))
    assert caught > 10
