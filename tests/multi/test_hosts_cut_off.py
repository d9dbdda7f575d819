"""Two hosts of two ranks: cut off from each other in a save, killed, started again, exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.multi._hosts import LINE, Hosts, Process, wait_for

import stepseal as ss

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(900)]

_JOB = Path(__file__).with_name("hosts_job.py")
_LIFE_S = 250.0
_LOST_S = 4.0
"""As in the job."""
_SLACK_S = 20.0
"""For a busy machine; the limits of all phases are far above."""


def start(hosts: Hosts, root: Path, life: str, port: int, bad_step: int = 0) -> list[Process]:
    return [
        hosts.start(
            rank // 2,
            _JOB,
            [str(root), str(hosts.folder), life, str(bad_step)],
            {
                "RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank % 2),
                "MASTER_ADDR": LINE[0], "MASTER_PORT": str(port),
            },
        )
        for rank in range(4)
    ]  # fmt: skip


def history(folder: Path, life: str, rank: int) -> dict[str, Any]:
    """Return what a rank wrote: `resumed`, the loss of each step, and `weights` or an error."""
    found: dict[str, Any] = {}
    for line in (folder / f"history.{life}.{rank}").read_text("utf-8").splitlines():
        found |= json.loads(line)
    return found


def test_a_job_that_was_cut_in_two_is_told_on_both_sides_and_resumes_exactly(
    tmp_path: Path,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with Hosts(tmp_path) as hosts:
        for process in start(hosts, whole, "whole", 29631):
            assert process.wait(_LIFE_S) == 0, process.text()[-3000:]
        cut = start(hosts, broken, "cut", 29632, bad_step=4)
        wait_for([tmp_path / f"waits.{rank}" for rank in range(4)], cut, _LIFE_S)
        hosts.set_link("down")
        (tmp_path / "down").touch()
        wait_for([tmp_path / f"told.{rank}" for rank in range(4)], cut, _LIFE_S)
        hosts.kill_all()
        hosts.set_link("up")
        for process in start(hosts, broken, "resumed", 29633):
            assert process.wait(_LIFE_S) == 0, process.text()[-3000:]
    histories = []
    for rank in range(4):
        expected = history(tmp_path, "whole", rank)
        first, second = history(tmp_path, "cut", rank), history(tmp_path, "resumed", rank)
        _check_told(rank, first)
        assert second["resumed"] == 2
        steps = [f"step {step}" for step in range(1, 8)]
        assert [first[step] for step in steps[:4]] == [expected[step] for step in steps[:4]]
        assert [second[step] for step in steps[2:]] == [expected[step] for step in steps[2:]]
        caches = [f"cache {step}" for step in range(3, 8)]
        assert [second[step] for step in caches] == [expected[step] for step in caches]
        assert second["weights"] == expected["weights"]
        histories.append(second)
    of_hosts = [found["cache 7"] for found in histories]
    assert of_hosts[0] == of_hosts[1] != of_hosts[2] == of_hosts[3]
    run = ss.open(broken)
    payloads = {one.name: one.payloads for one in run.step(6).manifest.components}["cache"]
    owners = ("trainer/0", "trainer/0", "trainer/2", "trainer/2")
    assert payloads == {f"trainer/{rank}": owner for rank, owner in enumerate(owners)}
    assert run.steps() == (2, 4, 6)
    assert [run.step(step).verify() for step in run.steps()] == [()] * 3


def _check_told(rank: int, found: dict[str, Any]) -> None:
    """Check that a rank heard of the cut in time: the side of rank 0 whom, the other side what."""
    assert found["after_s"] < _LOST_S + _SLACK_S, found
    if rank < 2:
        assert found["kind"] == "participant_failed"
        assert found["failures"].keys() <= {"trainer/2", "trainer/3"}
        assert found["failures"]
    else:
        assert found["kind"] in ("coordinator_lost", "outcome_unknown")
