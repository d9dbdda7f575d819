"""Ranks on two hosts find each other, whatever the hosts are called and whatever that leads to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.multi._hosts import DEAD_LINE, LINE, SAME, Hosts

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(600)]

_JOB = Path(__file__).with_name("names_job.py")
_PORT = 29613


def scene(
    name: str,
    hostname: tuple[str, str] = ("a", "b"),
    names: tuple[str, str] = ("", ""),
    **arguments: Any,  # noqa: ANN401 - JSON
) -> dict[str, Any]:
    return {"name": name, "hostname": hostname, "names": names, **arguments}


GOOD = [
    scene("one name", ("same", "same")),
    scene("names that lead nowhere"),
    scene("as Debian has it", names=("127.0.1.1 a\n", "127.0.1.1 b\n")),
    scene("a name that leads elsewhere", names=("203.0.113.1 a\n", "203.0.113.1 a\n")),
    scene("a name that leads to the other host", names=(f"{LINE[1]} a\n", "")),
    scene("wildcard", host="0.0.0.0"),
    scene("wildcard of IPv6", host="[::]"),
    scene("by a name that rank 0 alone knows", names=(f"{LINE[0]} head\n", ""), host="head"),
    scene("by address", host=LINE[0]),
    scene("a port", port=_PORT),
    scene("a range whose first port is taken", port=[_PORT, _PORT + 3], taken=_PORT),
]
BAD = [
    scene("nowhere", host="no-such-host"),
    scene("loopback", host="127.0.0.1"),
    scene("with port", host=f"{LINE[0]}:80"),
    scene("of the other host", host=LINE[1]),
    scene("over a dead line", host=DEAD_LINE[0]),
    scene("taken", port=_PORT, taken=_PORT),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return, for each scene, what each rank saw; one life of the job plays all."""
    folder = tmp_path_factory.mktemp("hosts")
    with Hosts(folder) as hosts:
        for rank in (0, 1):
            place = {"MASTER_ADDR": LINE[0], "MASTER_PORT": "29611"}
            settings = {"RANK": str(rank), "WORLD_SIZE": "2", **place}
            hosts.start(rank, _JOB, [str(folder), json.dumps(GOOD + BAD)], settings)
        for process in hosts.processes:
            assert process.wait(500) == 0, process.text()[-3000:]
    found: dict[str, list[dict[str, Any]]] = {}
    for rank in (0, 1):
        for line in (folder / f"results.{rank}").read_text("utf-8").splitlines():
            result = json.loads(line)
            found.setdefault(result["scene"], []).append(result)
    return found


@pytest.mark.parametrize("name", [one["name"] for one in GOOD])
def test_two_hosts_save_together(results: dict[str, list[dict[str, Any]]], name: str) -> None:
    assert [one.get("saved", one.get("text")) for one in results[name]] == [1, 1]


def test_what_is_offered_is_what_is_bound(results: dict[str, list[dict[str, Any]]]) -> None:
    everything = sorted([LINE[0], DEAD_LINE[0], SAME])
    assert results["one name"][0]["listening"] == everything
    assert results["wildcard"][0]["listening"] == everything
    assert results["by address"][0]["listening"] == [LINE[0]]
    assert all(one[1]["listening"] == [] for name, one in results.items() if "saved" in one[0])


@pytest.mark.parametrize("bad", BAD, ids=lambda one: str(one["name"]))
def test_all_ranks_hear_at_once_what_is_wrong(
    results: dict[str, list[dict[str, Any]]], bad: dict[str, Any]
) -> None:
    found = results[bad["name"]]
    argument = "control_port=" if "port" in bad else "control_host="
    dead = bad["name"] == "over a dead line"
    for one in found:
        assert one["kind"] == ("coordinator_lost" if dead else "invalid_input")
        assert argument in one["text"]
        assert str(bad.get("host", bad.get("port"))) in one["text"]
        assert one["took_s"] < 60  # nobody waits for `close_s`
    if dead:
        assert any(problem.startswith(DEAD_LINE[0]) for one in found for problem in one["problems"])
