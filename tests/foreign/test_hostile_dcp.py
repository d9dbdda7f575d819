"""A foreign folder can be refused, and no more: it runs nothing, and its costs are bounded.

The corpus is made and imported in a process of its own, which hears every audit event.
"""

from __future__ import annotations

import json
import subprocess
import sys
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.foreign._hostile_dcp import corpus, make_good, put_record, shared
from tests.foreign._hostile_pickles import GADGETS, lazy, record
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import stepseal as ss
from stepseal.errors import CheckpointError
from stepseal.foreign import DcpFolder
from stepseal.storage import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.storage._local_files import LocalReader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # one process runs all cases

NUM_DAMAGED = 1500
MAX_GROWN_MIB = 200
MAX_READS, SPARE_BYTES = 9, 4 << 20
"""How often a byte is read: once for itself, then for values that refer to its storage."""
TYPED = {"Corrupt", "UnsupportedState"}


def run(folder: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.foreign._hostile_dcp", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(str(tmp_path_factory.mktemp("hostile")))


def wrong(report: dict[str, Any], name: str, good: object) -> dict[str, Any]:
    """Return the cases in which a fact is not as it must be."""
    assert report
    cases = {case: facts[name] for case, facts in report.items() if case != "good"}
    assert len(cases) == len(corpus())
    return {case: fact for case, fact in cases.items() if fact != good}


def test_the_folder_that_all_cases_change_is_good(report: dict[str, Any]) -> None:
    assert report["good"]["outcome"] == "imported"
    assert report["good"]["root_made"]


def test_each_is_refused_with_a_typed_error_that_names_the_file(report: dict[str, Any]) -> None:
    assert {c: f for c, f in wrong(report, "outcome", None).items() if f not in TYPED} == {}
    files = (".metadata", ".distcp")
    silent = [
        c for c, text in wrong(report, "message", "").items() if not any(map(text.count, files))
    ]
    assert silent == []


def test_no_message_drives_a_terminal(report: dict[str, Any]) -> None:
    assert [c for c, facts in report.items() if not facts["message"].isprintable()] == []


def test_a_refused_value_is_named(report: dict[str, Any]) -> None:
    values = {case: facts["message"] for case, facts in report.items() if case.startswith("value/")}
    assert [case for case, message in values.items() if "'n.a'" not in message] == []


def test_nothing_is_run_imported_or_looked_up(report: dict[str, Any]) -> None:
    assert wrong(report, "events", []) == {}
    assert wrong(report, "executed", False) == {}


def test_none_is_read_or_parsed_again_and_again(report: dict[str, Any]) -> None:
    sizes = {case: facts["size_bytes"] for case, facts in report.items()}
    read = wrong(report, "bytes_read", 0)
    assert {c: n for c, n in read.items() if n > MAX_READS * sizes[c] + SPARE_BYTES} == {}
    opcodes = wrong(report, "opcodes", 0)  # each takes at least one byte
    assert {c: n for c, n in opcodes.items() if n > sizes[c]} == {}
    assert report["good"]["opcodes"] > 50


def test_none_grows_the_process_by_200_mib(report: dict[str, Any]) -> None:
    grown = wrong(report, "grown_mib", 0)
    assert {c: size for c, size in grown.items() if size > MAX_GROWN_MIB} == {}


def test_neither_folder_nor_root_is_touched(report: dict[str, Any]) -> None:
    assert wrong(report, "unchanged", True) == {}
    assert wrong(report, "root_made", False) == {}


def test_a_reader_that_unpickles_runs_every_gadget(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    executed = run(str(tmp_path_factory.mktemp("naive")), "--naive")
    assert executed == dict.fromkeys(GADGETS, True)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_any_damaged_byte_is_refused_in_a_typed_way_or_harmless(tmp_path: Path, name: str) -> None:
    make_good(tmp_path)
    path = tmp_path / name
    whole, random = path.read_bytes(), Random(7)
    refused = 0
    for _ in range(NUM_DAMAGED):
        data = bytearray(whole)
        for _ in range(random.choice((1, 1, 2, 8))):
            data[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(data[: random.choice((None, None, None, random.randrange(len(data))))])
        try:
            read_all(tmp_path)
        except CheckpointError:
            refused += 1
    assert 0 < refused < NUM_DAMAGED


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_lazy_bit_that_cannot_be_carried_out_is_found_before_live_state_changes(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "step-5"
    dcp_save({"a": torch.ones(4), "w": torch.zeros(2, 3, dtype=torch.bool)}, checkpoint_id=folder)
    put_record("w", lazy("neg", "BoolStorage", 1))(folder)
    tmp_path.chmod(0o700)
    state = {"a": torch.zeros(4), "w": torch.zeros(2, 3, dtype=torch.bool)}
    with ss.Checkpointer(tmp_path, mode="sync") as checkpointer:
        checkpointer.add("model", state)
        with pytest.raises(CheckpointError, match="no neg bit on bool") as caught:
            checkpointer.restore(unverified=True)
    assert not caught.value.tainted
    assert not state["a"].any()


class Counting(LocalStorage):
    """Counts how often files were opened."""

    num_opened = 0

    def open_read(self, key: str) -> LocalReader:
        Counting.num_opened += 1
        return super().open_read(key)


@pytest.mark.parametrize("is_good", [True, False])
def test_a_record_that_many_share_is_read_once(tmp_path: Path, is_good: bool) -> None:
    make_good(tmp_path)
    shared(record(b"\x80\x02K\x07." if is_good else b"\x80\x02cos\nsystem\n."), 50)(tmp_path)
    with Counting.open(tmp_path) as storage:
        folder = DcpFolder(storage, "")
        before = Counting.num_opened
        skipped: dict[str, str] = {}
        found = folder.imported("n", skipped)
        assert found is not None
        assert Counting.num_opened - before == 2  # one for all, one for the value beside them
    names = {f"n.a{number}" for number in range(50)}
    if is_good:
        assert len(found.bytes_copies(None)) == 51
        assert skipped == {}
    else:
        assert skipped.keys() == names
        assert all(repr(fqn) in message for fqn, message in skipped.items())


def read_all(path: Path) -> None:
    with LocalStorage.open(path) as storage:
        folder = DcpFolder(storage, "")
        for component in folder.components:
            folder.imported(component, None)
