"""`stepseal doctor` as people and programs see it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from tests.doctor._lies import Refusing

from stepseal.cli import _doctor, main
from stepseal.doctor import probe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.doctor import Probe
    from stepseal.storage import Access

pytestmark = pytest.mark.slow  # each probes a file system


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["doctor", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def below(calls: Refusing) -> Callable[..., Probe]:
    return lambda path, **where: probe(path, calls=calls, **where)


def states(found: dict[str, Any]) -> dict[str, str]:
    return {judgement["promise"]: judgement["state"] for judgement in found["promises"]}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a place whose syncs are not doubted, wherever the tests run."""
    import dataclasses

    def undoubted(path: str, *, access: Access) -> Probe:
        found = probe(path, access=access)
        mount = None if found.mount is None else dataclasses.replace(found.mount, fs_type="ext4")
        return dataclasses.replace(found, mount=mount, sync_doubts=())

    monkeypatch.setattr(_doctor, "probe", undoubted)
    return tmp_path


def test_where_others_can_change_names_it_looks_only_on_request(disk: Path) -> None:
    disk.chmod(0o777)
    code, out = run(disk)
    assert code == 2
    assert "--allow-shared" in out
    assert list(disk.iterdir()) == []
    assert run(disk, "--allow-shared")[0] == 0
    assert run(disk, "--allow-shared", "--meet", "me", "--timeout-s", 0.1)[0] == 1  # nobody came
    assert list(disk.iterdir()) == []


def test_it_says_of_each_promise_what_holds_and_exits_0(disk: Path) -> None:
    code, out = run(disk)
    assert code == 0
    for word in ("file system", "PROMISE", "atomic", "durable", "concurrent jobs", "holds"):
        assert word in out
    assert "does not hold" not in out
    assert list(disk.iterdir()) == []


def test_json_is_complete(disk: Path) -> None:
    code, out = run(disk, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["root"] == str(disk)
    assert found["missing"] == {}
    assert set(found["mount"]) == {"fs_type", "point", "source", "options"}
    assert found["meeting"] is None
    assert states(found)["one view, all hosts"] == "not tested"
    assert {"free_bytes", "sync_doubts", "clock_off_s"} <= set(found)


def test_a_promise_that_does_not_hold_exits_1_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_doctor, "probe", below(Refusing("link", 1)))
    code, out = run(tmp_path)
    assert code == 1
    assert "does not hold" in out
    assert "missing: link creates only, for one of many: EPERM" in out


def test_a_live_root_is_left_as_it_was(eventful_root: Path) -> None:
    before = sorted(eventful_root.rglob("*"))
    code, _ = run(eventful_root)
    assert code in {0, 1}  # 1 where the tests run in memory
    assert sorted(eventful_root.rglob("*")) == before


def test_no_such_place_exits_10(tmp_path: Path) -> None:
    code, out = run(tmp_path / "none")
    assert (code, "no root at" in out) == (10, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--participants", "1"],
        ["--participants", "2"],  # without --meet
        ["--timeout-s", "0"],
        ["--timeout-s", "inf"],
        ["--timeout-s", "nan"],
        ["--meet", "../x"],
    ],
)
def test_wrong_usage_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    code, _ = run(tmp_path, *arguments)
    assert code == 2


def test_who_does_not_come_to_a_meeting_is_told_with_exit_1(disk: Path) -> None:
    code, out = run(disk, "--meet", "try-1", "--participants", "2", "--timeout-s", "0.2")
    assert code == 1
    assert "1 of 2 participants not seen" in out
    assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_a_doctor_that_is_sent_home_leaves_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "stepseal", "doctor", str(tmp_path),
        "--meet", "try-1", "--participants", "2", "--timeout-s", "100",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/token-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_meet(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "stepseal", "doctor", str(tmp_path), "--json",
        "--meet", "try-1", "--participants", "2", "--timeout-s", "30",
    ]  # fmt: skip
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=60)
        found = json.loads(out)
        assert states(found)["one view, all hosts"] == "holds"
        (peer,) = found["meeting"]["peers"]
        assert peer["answered"]
        assert peer["clock_off_s"] == pytest.approx(0, abs=0.01)
        assert found["meeting"]["delay_s"] < 30
    assert list(tmp_path.iterdir()) == []
