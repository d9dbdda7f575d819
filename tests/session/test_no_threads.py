"""Where no further thread can be had, a save goes on, or all ranks hear of it at once."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests._threads import no_more_threads

import stepseal as ss
from stepseal import errors
from stepseal.process import Behind
from stepseal.session import _save_call
from stepseal.session._saving import tell_failure
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 60


def stepseal_threads() -> set[str]:
    gc.collect()
    for one in threading.enumerate():
        if one.name.startswith("stepseal-"):
            one.join(0.0)
    return {one.name for one in threading.enumerate() if one.name.startswith("stepseal-")}


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_save_needs_no_new_thread(
    mode: Any,  # noqa: ANN401 - one of two words
    naive: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start_one(_: Behind, work: Any) -> threading.Event:  # noqa: ANN401 - of a save
        threading.Thread(target=work, daemon=True).start()
        return threading.Event()

    state = {"w": torch.ones(8)}
    with ss.Checkpointer(tmp_path, mode=mode) as ckpt:
        ckpt.add("state", state)
        ckpt.restore()
        if naive:
            monkeypatch.setattr(Behind, "start", start_one)
            with no_more_threads(), pytest.raises(RuntimeError, match="can't start"):
                ckpt.save(1)
            return
        with no_more_threads():
            assert ckpt.save(1).wait().step == 1
            state["w"].zero_()
            assert ckpt.save(2).wait().step == 2
    with no_more_threads():
        assert ss.open(tmp_path).steps() == (1, 2)


def test_a_restore_reads_without_threads(tmp_path: Path) -> None:
    wide = torch.arange(6 << 20, dtype=torch.float32)  # several blocks
    state = {"w": wide.clone()}
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("state", state, kind="tensors")
        ckpt.save(1).wait()
        state["w"].zero_()
        with no_more_threads():
            assert ckpt.restore() is not None
    assert torch.equal(state["w"], wide)


def test_a_publication_that_finds_no_thread_is_refused_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("state", {"w": torch.ones(8)})
        ckpt.restore()
        with no_more_threads(), pytest.raises(errors.ParticipantFailed, match="ulimit -u"):
            ckpt.publish(1, components=["state"]).wait()
        assert ckpt.publish(2, components=["state"]).wait().step == 2
    assert ss.open(tmp_path).published() == (2,)


def test_a_checkpointer_that_finds_no_thread_leaves_none_behind(tmp_path: Path) -> None:
    before = stepseal_threads()
    tried, codes = 0, set()
    while True:
        with no_more_threads(after=tried):
            try:
                ckpt = ss.Checkpointer(tmp_path, on_commit=lambda _: None)
            except errors.ParticipantFailed as error:
                codes.add(error.errno)
            else:
                break
        for one in threading.enumerate():  # of those that are ending
            if one.name.startswith("stepseal-"):
                one.join(WAIT_S)
        assert stepseal_threads() == before
        tried += 1
    assert codes == {errno.EAGAIN}
    assert tried == 5  # writer, announcer, and the coordinator's three
    with ckpt:
        ckpt.add("counters", {"n": 1})
        ckpt.save(1).wait()


@pytest.mark.parametrize("naive", [False, True])
def test_a_rank_that_finds_no_thread_tells_the_others_at_once(
    naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage held its last write up, so it needs a thread; the others must not wait write_s."""
    if naive:

        def say_nothing(*arguments: Any) -> contextlib.AbstractContextManager[None]:  # noqa: ANN401
            return (
                contextlib.nullcontext() if arguments[-1] == "write" else tell_failure(*arguments)
            )

        monkeypatch.setattr(_save_call, "tell_failure", say_nothing)
    limits = ss.Deadlines(write_s=1e6, close_s=1.0, lost_s=1e6)
    shared = MemoryStorage()

    def fails(rank: int, ckpt: ss.Checkpointer) -> str:
        me = threading.current_thread()
        with contextlib.ExitStack() as stack:
            if rank == 1:
                ckpt._wiring.behind._done.clear()  # as while a write hangs
                stack.enter_context(no_more_threads(on=lambda: threading.current_thread() is me))
            try:
                ckpt.save(1).wait()
            except errors.CheckpointError as error:
                return f"{type(error).__name__}: {error}"
        return "saved 1"

    def work(rank: int, ckpt: ss.Checkpointer) -> list[str]:
        with ckpt:
            ckpt.add("counters", {"n": rank}, sharing=ss.PER_RANK)
            ckpt.restore()
            found = [fails(rank, ckpt)]
            if not naive:
                found.append(f"saved {ckpt.save(2).wait().step}")
        return found

    told = World(2, lambda _: shared, deadlines=limits).run(work)
    if naive:
        assert "ulimit -u" not in told[0][0]
        return
    for first, second in told:
        assert first.startswith("ParticipantFailed")
        assert "ulimit -u" in first
        assert second == "saved 2"


REAL = """
    import os, sys
    import torch
    import stepseal as ss
    ckpt = ss.Checkpointer(sys.argv[1])
    ckpt.add("state", {"w": torch.ones(8)})
    ckpt.restore()
    limit(0)
    print("saved", ckpt.save(1).wait().step)
    try:
        ss.Checkpointer(sys.argv[1] + ".2")
    except ss.errors.ParticipantFailed as error:
        print("refused", LIMIT in str(error))
    limit(100)
    print("saved", ckpt.save(2).wait().step)
    ckpt.close()
"""
_BY_USER = """
    import resource
    LIMIT = "ulimit -u"
    def limit(more):
        of_user = 0 if more == 0 else resource.getrlimit(resource.RLIMIT_NPROC)[1]
        resource.setrlimit(
            resource.RLIMIT_NPROC, (of_user, resource.getrlimit(resource.RLIMIT_NPROC)[1])
        )
"""
_BY_CGROUP = """
    import sys
    from pathlib import Path
    LIMIT = "pids.max"
    group = Path(sys.argv[2])
    def limit(more):
        now = int((group / "pids.current").read_text())
        (group / "pids.max").write_text(str(now + more))
"""


def run_real(limit: str, *arguments: str) -> list[str]:
    code = textwrap.dedent(limit) + textwrap.dedent(REAL)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


EXPECTED = ["saved 1", "refused True", "saved 2"]


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() == 0, reason="`ulimit -u` does not bind root")
def test_under_the_limit_of_a_user(tmp_path: Path) -> None:
    assert run_real(_BY_USER, str(tmp_path / "run")) == EXPECTED


@contextlib.contextmanager
def pids_cgroup() -> Iterator[Path]:
    """Make a cgroup that counts processes, where this machine lets us."""
    top = Path("/sys/fs/cgroup/pids")
    top = top if (top / "cgroup.procs").exists() else Path("/sys/fs/cgroup")
    group = top / f"stepseal-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {top}: {error}")
    try:
        if not (group / "pids.max").exists():
            pytest.skip(f"{top}: the pids controller is not on for cgroups made there")
        yield group
    finally:
        group.rmdir()


@pytest.mark.slow
def test_under_the_limit_of_a_cgroup(tmp_path: Path) -> None:
    with pids_cgroup() as group:
        joined = f"""
            import os
            with open({str(group / "cgroup.procs")!r}, "w") as file:
                file.write(str(os.getpid()))
        """
        limit = textwrap.dedent(joined) + textwrap.dedent(_BY_CGROUP)
        assert run_real(limit, str(tmp_path / "run"), str(group)) == EXPECTED
