"""Attempts in staging are seen for what they are: in flight, left over, or unclear."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.steps._kit import attempt_id

from stepseal.cli import main
from stepseal.layout import Area
from stepseal.steps import _attempts, _owners, open_store
from stepseal.steps._attempts import begin
from stepseal.steps._claims import claim
from stepseal.steps._owners import lives, own_process
from stepseal.steps._roots import initialise_root
from stepseal.steps._unfinished import list_unfinished
from stepseal.storage import LocalStorage, create_durable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    found = LocalStorage.create(tmp_path)
    initialise_root(found)
    claim(found, None, now_s=1.0)
    return found


def states(storage: LocalStorage) -> dict[int, str]:
    return {one.step: one.state for one in list_unfinished(storage)}


def dead_process() -> str:
    """Return the text of a process of this host that has ended."""
    code = "from stepseal.steps._owners import own_process; print(own_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_an_attempt_of_a_process_that_lives_is_in_flight(storage: LocalStorage) -> None:
    folder = begin(storage, 7, 1, attempt_id(1))
    create_durable(storage, f"{folder.key}/data", b"x" * 1000)
    (found,) = list_unfinished(storage)
    assert (found.step, found.area, found.state) == (7, Area.STEPS, "in flight")
    assert (found.incarnation, found.attempt) == (1, attempt_id(1))
    nonce = f"{folder.nonce} {own_process()}"
    assert found.size_bytes == 1000 + len(nonce)
    assert found.age_s is not None
    assert found.idle_s is not None
    assert found.idle_s <= found.age_s
    assert found.host == own_process().partition("/")[0]


def test_an_attempt_of_a_process_that_died_is_left_over(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = dead_process()
    with monkeypatch.context() as patched:
        patched.setattr(_attempts, "own_process", lambda: dead)
        begin(storage, 7, 1, attempt_id(1))
    begin(storage, 8, 1, attempt_id(2))
    assert states(storage) == {7: "left over", 8: "in flight"}


def test_an_attempt_of_an_earlier_start_is_left_over(storage: LocalStorage) -> None:
    begin(storage, 7, 1, attempt_id(1))
    claim(storage, None, now_s=2.0)
    assert states(storage) == {7: "left over"}


def test_of_a_process_elsewhere_nothing_is_claimed(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(_owners, "_space", lambda: "another-boot/4026531836")
        begin(storage, 7, 1, attempt_id(1))
    with monkeypatch.context() as patched:
        patched.setattr(_owners, "_space", lambda: "")
        begin(storage, 8, 1, attempt_id(2))
    assert states(storage) == {7: "unclear", 8: "unclear"}


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    mine = own_process()
    assert lives(mine) is True
    assert lives(f"{mine}0") is False
    assert lives(dead_process()) is False
    assert lives("") is None
    assert lives("node7") is None


def test_a_process_that_nobody_has_waited_for_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    start = _owners._start(child.pid)
    owner = f"h/{_owners._space()}/{child.pid}/{start}"
    assert lives(owner) is True
    os.kill(child.pid, 9)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert lives(owner) is False
    child.wait()


def test_other_names_in_staging_are_no_attempts(storage: LocalStorage) -> None:
    storage.make_dir(".stepseal/staging/mine")
    create_durable(storage, f".stepseal/staging/step-1.1.{attempt_id(1)}", b"a file")
    assert list_unfinished(storage) == ()


def test_ls_shows_saves_in_flight_and_those_left_over(
    storage: LocalStorage, tmp_path: Path
) -> None:
    begin(storage, 3, 1, attempt_id(1))
    claim(storage, None, now_s=2.0)
    folder = begin(storage, 700, 2, attempt_id(2))
    create_durable(storage, f"{folder.key}/data", b"x" * 2048)
    storage.make_dir(Area.PUBLISHED.folder)
    begin(storage, 9, 2, attempt_id(3), Area.PUBLISHED)
    shown = CliRunner().invoke(main, ["ls", str(tmp_path)]).stdout
    lines = [line.split("  ") for line in shown.splitlines()]
    rows = {cells[0]: [cell.strip() for cell in cells if cell] for cells in lines if cells[0]}
    assert rows["step 700"][1] == "in flight"
    assert rows["step 700"][3] == "2.1 KiB"
    assert rows["step 3"][1] == "left over"
    assert rows["version 9"][1] == "in flight"
    as_json = CliRunner().invoke(main, ["ls", "--json", str(tmp_path)]).stdout
    assert '"state": "in flight"' in as_json
    assert '"version": 9' in as_json


def test_the_nonce_is_what_a_participant_finds(storage: LocalStorage, tmp_path: Path) -> None:
    folder = begin(storage, 3, 1, attempt_id(1))
    assert open_store(str(tmp_path)).find_nonce(folder.key) == folder.nonce
