"""Several lives of a job on one disk, storage verbs interleaved by a seed: every promise holds, and
every broken variant of the protocol is seen."""

from __future__ import annotations

import dataclasses
import time

import pytest
from tests.campaigns.simulator._actor_simulation import WITH_ACTORS
from tests.campaigns.simulator._simulate import simulate
from tests.campaigns.simulator._variants import VARIANTS
from tests.campaigns.simulator._world import Faults
from tests.campaigns.simulator.run import (
    NUM_SEEDS,
    RARE_SEEDS,
    WITH_TRIGGERS,
    catch_all,
    row_of,
    run,
    sweep,
)

CALM = Faults(*[0.0] * 20)
PROMISES = {
    "a publication has a sound manifest",
    "a publication is old or new, and whole",
    "a restore is offered steps alone",
    "a version is published once",
    "latest names a step",
    "nobody resumes from a publication",
    "nobody stays frozen after the call",
    "readers never see versions go back",
    "the newest publication is not taken away",
    "the newest publication stays",
    "the parent of a step is a step",
    "versions only grow",
    "what was published is deleted by a prune alone",
    "what was published stays",
    "who is frozen goes on in time",
    "who is frozen stands still until all captured",
    "a call fails for its own lives",
    "a life is one process",
    "a step holds its whole roster, and nobody else",
    "a step holds one life of each participant",
    "a step tells its cut",
    "all parts are of one call",
    "consumers are captured before producers",
    "each call has one outcome",
    "each component belongs to its role",
    "each life begins a call once",
    "every opened call ends in time",
    "nobody hears of calls that it is not in",
    "nothing is written before all captured",
    "the cut holds in every step",
    "what is no cut is not written",
    "who begins is on the roster, in this life",
    "who writes is on the roster",
    "a claim descends from what stands",
    "a commit is whole, of one attempt",
    "a commit names its own incarnation",
    "a half restore taints",
    "a replaced job deletes nothing",
    "a sound step always remains",
    "a step has a sound manifest",
    "all leave out alike",
    "all participants hear alike",
    "all restore alike",
    "claims stay",
    "commit after all prepared",
    "committed and aborted exclude each other",
    "committed is told after the commit",
    "every call ends by its deadline",
    "incarnations only grow",
    "live staging stays",
    "no abort of what is committed",
    "no commit after an abort was told",
    "no commit after its deadline",
    "no silent fresh start",
    "no wrong byte is loaded",
    "nobody applies before all checked",
    "nobody waits for ever",
    "nothing is changed in place",
    "nothing is overwritten",
    "one manifest per incarnation and step",
    "one word per call",
    "readers never see a mixed step",
    "readers see commits only",
    "replicas that are committed are equal",
    "restore finds the newest",
    "restore stays in the lineage",
    "restored means applied",
    "the newest step is not deleted",
    "the newest step is not taken away",
    "the root stays",
    "what is staged keeps no start out",
    "unknown only without a coordinator",
    "what differs and may is left out",
    "what is acknowledged survives power loss",
    "what is leased is not deleted",
    "what left the lineage has its grace",
    "what is owed is not deleted",
    "what is pinned is not deleted",
    "what stands is whole",
    "what stands was committed",
    "what was acknowledged is kept",
    "what was acknowledged stays whole",
    "what was committed is never deleted",
    "what was resumed from is not deleted",
    "who saw a newer claim commits nothing",
    "a zombie never enters the lineage",
    "a target tells what fired",
    "all hear the same at a safe point",
    "all raise a failure at one safe point",
    "all save one step at a safe point",
    "what fired is asked for",
}
"""Each must be judged, or nothing is said about it."""


def test_calm_jobs_commit_every_step() -> None:
    outcome = simulate(0, CALM)
    assert outcome.problems == []
    assert set(outcome.ends) == {"committed"}
    assert outcome.num_claims >= 2


def test_calm_jobs_with_engines_commit_every_step() -> None:
    outcome = simulate(0, dataclasses.replace(CALM, engines=1.0))
    assert outcome.problems == []
    assert set(outcome.ends) == {"committed"}


@pytest.mark.parametrize("seed", range(3))
def test_calm_actors_commit_every_step(seed: int) -> None:
    outcome = simulate(seed, dataclasses.replace(CALM, actors=1.0))
    assert outcome.problems == []
    assert set(outcome.ends) == {"committed"}
    assert outcome.num_claims >= 2


@pytest.mark.parametrize("seed", range(3))
def test_calm_jobs_with_triggers_commit_every_step(seed: int) -> None:
    outcome = simulate(seed, dataclasses.replace(CALM, triggers=1.0))
    assert outcome.problems == []
    assert set(outcome.ends) == {"committed"}
    assert outcome.checks["all hear the same at a safe point"]


@pytest.mark.parametrize("faults", [Faults(), WITH_ACTORS, WITH_TRIGGERS])
def test_same_seed_does_the_same(faults: Faults) -> None:
    first: list[str] = []
    again: list[str] = []
    assert simulate(7, faults, trace=first) == simulate(7, faults, trace=again)
    assert [line.split("sha256")[0] for line in first] == [x.split("sha256")[0] for x in again]


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_promise_is_judged_and_holds_and_every_variant_is_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = time.monotonic()
    tally = sweep(0, NUM_SEEDS["fast"], 2, more=RARE_SEEDS)
    seconds = time.monotonic() - began
    row = row_of(tally, catch_all(2, known=True), seconds)
    with capsys.disabled():
        print(f"\n{row.text()}")
    assert row.good, (row.violations[:5], row.missed)
    assert row.cases >= 1_000
    assert row.caught == tuple(VARIANTS)
    assert not PROMISES - tally.checks.keys()
    ends = tally.ends
    assert ends["committed"] > 500
    assert ends["unknown"] > 10
    for kind in ("participant_failed", "commit_timeout", "coordinator_lost", "not_current"):
        assert ends[f"failed: {kind}"] > 10, kind


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_every_promise_holds_at_length(capsys: pytest.CaptureFixture[str]) -> None:
    row = run("nightly")
    with capsys.disabled():
        print(f"\n{row.text()}")
    assert row.good, (row.violations[:5], row.missed)
