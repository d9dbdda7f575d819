"""Under a real memory limit, a save is refused in words; the system kills nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
import torch.distributed as dist
from tests.session._cgroups import MemoryCgroup, memory_cgroup

import stepseal as ss
from stepseal.components import Arena
from stepseal.components._headroom import Headroom
from stepseal.testing import MemoryStorage, RanksFailed, World, run_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 1 << 20
STATE_MB = 128


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    with memory_cgroup() as found:
        yield found


# -- one process without torch ---------------------------------------------------------------------

ALONE = """
import json, sys
from pathlib import Path
from tests.session._cgroups import MemoryCgroup
from stepseal.components import Arena
from stepseal.errors import StorageUnavailable

path, spare, wanted, file, looks = json.loads(sys.argv[1])
group = MemoryCgroup(Path(path))
group.join()
if file:
    with open(file, "wb") as out:
        out.write(bytes(120 << 20))
group.limit(group.anonymous_bytes() + spare)
arena = Arena() if looks else Arena(headroom=lambda: None)
try:
    print(json.dumps(len(arena.take(wanted))))
except StorageUnavailable as error:
    print(json.dumps(str(error)))
"""


def taken_alone(
    group: MemoryCgroup, *, spare_mb: int, wanted_mb: int, file: str = "", looks: bool = True
) -> Any:  # noqa: ANN401 - JSON
    """Return what a process got of an arena: bytes, or the error; None where it was killed."""
    facts = [str(group.path), spare_mb * MB, wanted_mb * MB, file, looks]
    command = [sys.executable, "-c", ALONE, json.dumps(facts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -9:
        return None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_limit_above_the_own_cgroup_refuses_what_it_would_kill_for(group: MemoryCgroup) -> None:
    found = taken_alone(group, spare_mb=100, wanted_mb=160)
    assert "expected room for 160.0 MiB more" in found
    assert str(group.limit_file) in found


@pytest.mark.slow
def test_who_does_not_look_is_killed(group: MemoryCgroup) -> None:
    assert taken_alone(group, spare_mb=100, wanted_mb=160, looks=False) is None


@pytest.mark.slow
def test_page_cache_is_no_reason_to_refuse(group: MemoryCgroup, tmp_path: Path) -> None:
    file = str(tmp_path / "written-by-the-job")
    assert taken_alone(group, spare_mb=130, wanted_mb=90, file=file) == 90 * MB


# -- whole jobs ------------------------------------------------------------------------------------


def save_under_limit(
    rank: int,
    root: str,
    path: str,
    spare_mb: int,
    mode: Literal["async", "sync"],
    as_tree: bool = False,
) -> tuple[str, str]:
    """Save where the cgroup has some room left; return what came of it."""
    group = MemoryCgroup(Path(path))
    group.join()
    state = {"w": torch.ones(STATE_MB * MB // 4)}
    with ss.Checkpointer(root, mode=mode) as ckpt:
        ckpt.add("s", state, sharing=ss.PER_RANK if as_tree else None)
        ckpt.restore(fresh=True)
        dist.barrier()
        if rank == 0:
            group.limit(group.anonymous_bytes() + spare_mb * MB)
        dist.barrier()
        try:
            ckpt.save(1).wait()
        except ss.errors.CheckpointError as error:
            return error.kind, str(error)
    return "saved", ""


@pytest.mark.slow
def test_an_asynchronous_save_that_does_not_fit_is_refused(
    group: MemoryCgroup, tmp_path: Path
) -> None:
    root, path = str(tmp_path), str(group.path)
    ((kind, message),) = run_ranks(1, save_under_limit, root, path, 3 * STATE_MB // 4, "async")
    assert kind == "storage_unavailable"
    assert "mode='sync'" in message
    assert "max_staging_bytes" in message
    assert ss.open(tmp_path).steps() == ()


@pytest.mark.slow
@pytest.mark.parametrize("more_mb", [1, 2, 8, 20])
def test_at_the_edge_it_is_refused_or_saved(
    group: MemoryCgroup, tmp_path: Path, more_mb: int
) -> None:
    root, path = str(tmp_path), str(group.path)
    ((kind, _),) = run_ranks(1, save_under_limit, root, path, STATE_MB + more_mb, "async")
    assert kind == ("storage_unavailable" if more_mb < 16 else "saved")


@pytest.mark.slow
def test_the_advice_works(group: MemoryCgroup, tmp_path: Path) -> None:
    root, path = str(tmp_path), str(group.path)
    assert run_ranks(1, save_under_limit, root, path, 3 * STATE_MB // 4, "sync") == [("saved", "")]
    assert ss.open(tmp_path).steps() == (1,)


@pytest.mark.slow
def test_what_a_synchronous_save_copies_is_refused_likewise(
    group: MemoryCgroup, tmp_path: Path
) -> None:
    root, path, spare = str(tmp_path), str(group.path), 3 * STATE_MB // 4
    ((kind, message),) = run_ranks(1, save_under_limit, root, path, spare, "sync", True)
    assert kind == "storage_unavailable"
    assert "trees and tensors of other devices are copied" in message


@pytest.mark.slow
def test_ranks_that_fit_alone_but_not_together_are_all_told(
    group: MemoryCgroup, tmp_path: Path
) -> None:
    root, path = str(tmp_path), str(group.path)
    found = run_ranks(2, save_under_limit, root, path, 3 * STATE_MB // 2, "async", True)
    assert {kind for kind, _ in found} <= {"storage_unavailable", "participant_failed"}
    assert all("2 ranks share it" in message for _, message in found)
    assert ss.open(tmp_path).steps() == ()


def save_without_a_look(rank: int, root: str, path: str, spare_mb: int) -> tuple[str, str]:
    assert Arena.__init__.__kwdefaults__ is not None
    Arena.__init__.__kwdefaults__["headroom"] = lambda: None
    return save_under_limit(rank, root, path, spare_mb, "async", as_tree=True)


@pytest.mark.slow
def test_without_the_look_the_same_ranks_are_killed(group: MemoryCgroup, tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match="died without a report"):
        run_ranks(2, save_without_a_look, str(tmp_path), str(group.path), 3 * STATE_MB // 2)


# -- without a limit of the system -----------------------------------------------------------------


def test_a_rank_that_refuses_tells_the_others_and_all_let_go() -> None:
    storage = MemoryStorage()
    left = [1 << 20]

    def work(rank: int, ckpt: ss.Checkpointer) -> tuple[str, int]:
        flight = ckpt._flight
        if rank == 1:
            flight._arena = Arena(headroom=lambda: Headroom(left[0], "the limit of rank 1"))
        ckpt.add("s", {"w": torch.ones(1 << 19)}, sharing=ss.PER_RANK)
        with pytest.raises(ss.errors.CheckpointError) as caught:
            ckpt.save(1)
        assert "the limit of rank 1" in str(caught.value)
        held = flight._arena.held_bytes
        left[0] = 1 << 30
        ckpt.save(1).wait()
        ckpt.close()
        return caught.value.kind, held

    found = World(2, lambda _: storage).run(work)
    assert [held for _, held in found] == [0, 0]
    assert found[1][0] == "storage_unavailable"


def test_prewarm_refuses_likewise(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt._flight._arena = Arena(headroom=lambda: Headroom(1 << 20, "a limit"))
        ckpt.add("s", {"w": torch.ones(1 << 19)})
        with pytest.raises(ss.errors.StorageUnavailable, match="mode='sync'"):
            ckpt.prewarm()
