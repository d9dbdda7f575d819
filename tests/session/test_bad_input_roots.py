"""Roots that cannot be used: each is refused with its own error, and nothing in it changes."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.session._bad_input import contents, outcomes, restored_value, save_steps, steps_of

import stepseal as ss
from stepseal.errors import (
    CheckpointError,
    Corrupt,
    IncompatibleFormat,
    InvalidInput,
    ParticipantFailed,
    RootNotFound,
    StorageUnavailable,
)
from stepseal.layout import encode_document, seal
from stepseal.storage import LocalStorage
from stepseal.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _make(root: Path) -> None:
    ss.Checkpointer(root).close()


@pytest.mark.parametrize("use", [_make, ss.open], ids=["Checkpointer", "open"])
def test_a_root_that_is_a_file_is_refused(tmp_path: Path, use: Callable[[Path], object]) -> None:
    path = tmp_path / "root"
    path.write_text("mine")
    with pytest.raises(InvalidInput, match="expected a directory, found a file"):
        use(path)
    with pytest.raises(InvalidInput, match="expected a directory, found a file"):
        use(path / "below")
    assert contents(tmp_path) == {"root": ("file", b"mine")}


def test_an_empty_path_is_not_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, 1)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    uses: list[Callable[[], object]] = [
        lambda: ss.Checkpointer(""),
        lambda: ss.open(""),
        lambda: ss.import_dcp("", "new", step=1),
        lambda: ss.import_dcp("step-1", "", step=1),
    ]
    for use in uses:
        with pytest.raises(InvalidInput, match="empty path"):
            use()
    assert contents(tmp_path) == before


def test_reading_where_nothing_is_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(RootNotFound, match="found no such path"):
        ss.open(tmp_path / "root")
    with pytest.raises(RootNotFound, match=r"no stepseal\.json"):
        ss.open(tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("use", [_make, ss.open], ids=["Checkpointer", "open"])
def test_a_root_of_a_newer_format_is_left_alone(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    save_steps(tmp_path, 1)
    marker = tmp_path / "stepseal.json"
    marker.write_bytes(seal({"format_version": 2, "run_id": "0" * 32, "colour": "red"}))
    before = contents(tmp_path)
    with pytest.raises(IncompatibleFormat, match="format version 2"):
        use(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"{}",
        b"\x00" * 100,
        seal({"format_version": 1, "run_id": "A" * 32}),
        seal({"format_version": True, "run_id": "0" * 32}),
        seal({"format_version": 0, "run_id": "0" * 32}),
        seal([1]),
        encode_document({"format_version": 1, "run_id": "0" * 32}),
    ],
    ids=["empty", "no fields", "zeros", "id", "bool", "version 0", "list", "not sealed"],
)
def test_a_damaged_marker_is_refused_and_not_replaced(tmp_path: Path, marker: bytes) -> None:
    save_steps(tmp_path, 1)
    (tmp_path / "stepseal.json").write_bytes(marker)
    before = contents(tmp_path)
    for use in (_make, ss.open):
        with pytest.raises(Corrupt, match=r"stepseal\.json"):
            use(tmp_path)
    assert contents(tmp_path) == before


def test_steps_without_a_marker_do_not_become_another_run(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    marker = (tmp_path / "stepseal.json").read_bytes()
    (tmp_path / "stepseal.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(Corrupt, match=r"no stepseal\.json"):
        _make(tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "stepseal.json").write_bytes(marker)
    assert restored_value(tmp_path) == (1, 1)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Yield a folder that another user can reach."""
    with tempfile.TemporaryDirectory(prefix="stepseal-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


_AS_NOBODY = """
import os, sys, tempfile
import stepseal as ss
with tempfile.TemporaryDirectory() as folder:
    ss.Checkpointer(folder).close()  # all that is imported on use must be here before
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for root in sys.argv[1:]:
    try:
        checkpointer = ss.Checkpointer(root, access=ss.Access(allow_shared=True))
        checkpointer.add("counters", {"seen": 0})
        with checkpointer:
            checkpointer.restore()
            checkpointer.save(9).wait()
    except ss.errors.CheckpointError as error:
        print(type(error).__name__, error)
    else:
        print("saved")
"""


def _as_nobody(*roots: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, *map(str, roots)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_root_that_may_not_be_written_is_refused(shared_folder: Path) -> None:
    locked, missing = shared_folder / "locked", shared_folder / "no" / "root"
    open_but_for_claims = shared_folder / "open"
    for root in (locked, open_but_for_claims):
        save_steps(root, 1)
        (root / "stepseal.json").chmod(0o644)
    open_but_for_claims.chmod(0o777)
    missing.parent.mkdir()
    folders = (locked, missing.parent, open_but_for_claims / ".stepseal")
    before = contents(shared_folder)
    for folder in folders:
        folder.chmod(0o555)
    said = _as_nobody(locked, missing, open_but_for_claims)
    for folder in folders:
        folder.chmod(0o755)
    assert contents(shared_folder) == before
    for line, root in zip(said, (locked, missing, open_but_for_claims), strict=True):
        assert line.startswith("StorageUnavailable "), line
        assert "EACCES" in line
        assert str(root) in line


@pytest.mark.slow
def test_on_a_full_disk_older_steps_stay_and_the_next_save_succeeds(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        _fill_and_free(tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def _fill_and_free(root: Path) -> None:
    state = {"seen": bytes(200_000)}
    with ss.Checkpointer(root) as checkpointer:
        checkpointer.add("counters", state)
        checkpointer.save(1).wait()
        before = steps_of(root)
        ballast = root / "ballast"
        ballast.write_bytes(bytes(200_000))
        for step in (2, 3):
            with pytest.raises(ParticipantFailed, match="ENOSPC") as raised:
                checkpointer.save(step).wait()
            assert "Nothing was committed" in str(raised.value)
        assert steps_of(root) == before
        ballast.unlink()
        state["seen"] = bytes(1000)
        checkpointer.save(4).wait()
    assert [step for step in ss.open(root).steps() if not ss.open(root).step(step).verify()] == [
        1,
        4,
    ]


_WHERE: dict[str, Callable[[str, str], bool]] = {
    "part folder": lambda op, key: op == "make_dir" and "/parts" in key,
    "staging folder": lambda op, key: op == "make_dir" and "step-2." in key,
    "payload": lambda op, key: op == "create_file" and key.endswith(".json") and "parts" in key,
    "write": lambda op, key: op == "write" and "components" in key,
    "sync": lambda op, key: op == "sync" and "components" in key,
    "close": lambda op, key: op == "close" and "components" in key,
    "folder sync": lambda op, key: op == "sync_dir" and key.endswith("parts/trainer"),
    "manifest": lambda op, key: op == "write" and key.endswith("manifest.json"),
    "commit": lambda op, key: op == "rename" and key.endswith("-> step-2"),
}


@pytest.mark.parametrize("where", _WHERE)
def test_no_space_at_any_point_of_a_save_aborts_it_on_all(tmp_path: Path, where: str) -> None:
    again = where == "staging folder"  # the coordinator makes room, and tries this once more
    fault = Fault(_WHERE[where], Fail(errno.ENOSPC), sticky=again)
    plans: list[list[Fault]] = [[], []]

    def storage(rank: int) -> FaultyStorage:
        return FaultyStorage(LocalStorage.create(str(tmp_path)), plans[rank])

    before: dict[str, object] = {}

    def work(rank: int, checkpointer: ss.Checkpointer) -> CheckpointError | None:
        checkpointer.add("counters", {"seen": rank}, sharing=ss.PER_RANK)
        checkpointer.save(1).wait()
        if rank == 0:
            before.update(steps_of(tmp_path))
        failed: CheckpointError | None = None
        try:
            checkpointer.save(2).wait()
        except (ParticipantFailed, StorageUnavailable) as error:
            failed = error
        checkpointer.save(3).wait()
        return failed

    plans[0] = [_after_first(fault)]
    found = outcomes(tmp_path, work, storage=storage)
    for failed in found:
        assert isinstance(failed, (ParticipantFailed, StorageUnavailable)), found
        assert "ENOSPC" in str(failed)
    assert ss.open(tmp_path).steps() == (1, 3)
    assert {name: kept for name, kept in steps_of(tmp_path).items() if "step-1" in name} == before
    assert list((tmp_path / ".stepseal" / "staging").iterdir()) == []


def _after_first(fault: Fault) -> Fault:
    """Let the fault strike in the attempt of step 2 only."""
    assert callable(fault.at)
    fits = fault.at
    return Fault(lambda op, key: "step-2" in key and fits(op, key), fault.action, fault.sticky)
