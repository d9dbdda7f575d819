"""The system-call campaign: a job is killed from outside before one system call after the other.

    python -m tests.campaigns.strace.run --size fast
    python -m tests.campaigns.strace.run --call renameat2 --at 3
    python -m tests.campaigns.strace.run --workload back --differences

strace sees what our own layer does not, if anything writes past it. It counts calls per thread, so
the job makes all calls of its storage on one thread. A job is forked from a process that has
imported everything, and strace is attached before it begins.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import torch
from tests.campaigns.harness._lives import Life
from tests.campaigns.harness._log import Log, OpenLog
from tests.campaigns.harness._recovery import Violation, recover
from tests.campaigns.harness._sizes import Row, Size, main
from tests.campaigns.harness._strike import write_all_uncached
from tests.campaigns.strace._calls import (
    CHANGING,
    Kinds,
    OneThread,
    kinds_of,
    kinds_seen,
    wait_attached,
    why_not,
)
from tests.campaigns.strace._variants import VARIANTS

from stepseal.errors import CheckpointError
from stepseal.storage import LocalStorage
from stepseal.testing import FaultyStorage, ThreadCount

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.harness._lives import Player

    from stepseal.storage import Storage

__all__ = ["CALLS", "KILL", "Trial", "differences", "run"]

_MODULE = "tests.campaigns.strace.run"
CALLS = (
    "openat", "pwrite64", "pwritev2", "fsync", "close", "mkdir", "mkdirat", "renameat2",
    "renameat", "linkat", "unlinkat",
)  # fmt: skip
"""What changes a root, as strace shows it."""
KILL = "signal=KILL"
_ERRORS = ("error=EIO", "error=ENOSPC")
_HANG_S = 120.0
_NEVER = 60_000
"""More than a job makes, and less than strace can count."""


@dataclass(frozen=True)
class _Workload:
    run: Callable[[Player], None]
    prelude: Callable[[Player], None] | None = None
    """What an earlier job did, undisturbed."""
    keep: int | None = None
    """How many of the newest steps the job keeps; None keeps all."""


def _two(player: Player) -> None:
    player.restore()
    player.save(10, wait=False)
    player.save(20)


def _back(player: Player) -> None:
    """Save step 20 in place of the one that is outside the lineage then, and prune it after 30."""
    player.go_back(10)
    player.save(20, wait=False)
    player.save(30)


WORKLOADS = {"two": _Workload(_two), "back": _Workload(_back, prelude=_two, keep=1)}


class _Scale(NamedTuple):
    workloads: tuple[str, ...]
    per_call: int | None
    """Kill at so many places of each call; None for all."""
    injections: tuple[str, ...]


_SCALES: dict[Size, _Scale] = {
    "fast": _Scale(("two",), 3, (KILL,)),
    "nightly": _Scale(tuple(WORKLOADS), None, (KILL, *_ERRORS)),
    "release": _Scale(tuple(WORKLOADS), None, (KILL, *_ERRORS, "error=EDQUOT", "error=EACCES")),
}


@dataclass
class Trial:
    """One job in a directory of its own.

    Args:
        folder: empty.
        inject: what becomes of the call: `signal=KILL`, or `error=` and an errno; empty for
            nothing.
        call: name of the system call.
        at: which one on its thread, from 1.
        variant: broken protocol.
        workload: name in `WORKLOADS`.
    """

    folder: Path
    inject: str = ""
    call: str = ""
    at: int = 0
    variant: str = "none"
    workload: str = "two"
    killed: bool = False
    trace: str = ""
    performed: Kinds = field(default_factory=dict)
    """What our own layer carried out, by kind."""

    def run(self) -> list[Violation]:
        """Run the job, then the incarnation after it."""
        if WORKLOADS[self.workload].prelude is not None:
            _fork(self._prelude, self.folder, lambda _: None)
        answer = self._job_under_strace()
        if answer is not None:
            found = [Violation(*each) for each in answer["violations"]]
            self.performed = answer["performed"]
            if found:
                return found
        elif not self.killed:
            return [Violation("hang", (self.folder / "hang").read_text())]
        recovered = _fork(self._recovery, self.folder, lambda _: None)[1]
        if recovered is None:
            return [Violation("hang", (self.folder / "hang").read_text())]
        return [Violation(*each) for each in recovered["violations"]]

    @property
    def struck(self) -> bool:
        """The call came."""
        return self.killed or "(INJECTED)" in self.trace

    def _job_under_strace(self) -> dict[str, Any] | None:
        calls = ",".join(CALLS if self.inject else CHANGING)
        out = self.folder / "trace"
        command = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(out), "-e", f"trace={calls}"]
        command += ["-e", "signal=none"]
        if self.inject:
            command += ["-e", f"inject={self.call}:{self.inject}:when={self.at}"]
        tracers = []

        def attach(pid: int) -> None:
            tracers.append(subprocess.Popen([*command, "-p", str(pid)]))
            assert wait_attached(pid, tracers[0]), "strace did not attach"

        log = OpenLog(self.folder / "log")
        try:
            status, answer = _fork(lambda: self._job(log), self.folder, attach)
        finally:
            log.close()
        tracers[0].wait()
        self.trace = out.read_text()
        self.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return answer

    def _prelude(self) -> dict[str, Any]:
        prelude = WORKLOADS[self.workload].prelude
        assert prelude is not None
        with LocalStorage.create(self.folder / "root") as storage:
            replace(self._life(1, storage, self._log()), keep=None).run(prelude, "async")
        return {}

    def _job(self, log: Log) -> dict[str, Any]:
        variant = VARIANTS[self.variant]
        variant.patch()
        write_all_uncached()
        count = ThreadCount()
        root = self.folder / "root"
        storage = OneThread(lambda: FaultyStorage(LocalStorage.create(root), count=count))
        violations: list[Violation] = []
        try:
            storage.begin()
            self._life(2, storage, log).run(WORKLOADS[self.workload].run, "async")
        except CheckpointError as error:
            if not self.inject:
                violations.append(Violation("workload", str(error)))
        kinds = kinds_of(count.operations())
        return {"violations": [(v.kind, v.text) for v in violations], "performed": kinds}

    def _recovery(self) -> dict[str, Any]:
        with LocalStorage.create(self.folder / "root") as storage:
            found = recover(self._life(6, storage, self._log()))
        return {"violations": [(v.kind, v.text) for v in found]}

    def _log(self) -> Log:
        return Log(self.folder / "log")

    def _life(self, number: int, storage: Storage, log: Log) -> Life:
        keep = WORKLOADS[self.workload].keep
        return Life(number, self.folder / "root", log, lambda _: storage, 1, keep)


def _fork(
    work: Callable[[], dict[str, Any]], folder: Path, attach: Callable[[int], None]
) -> tuple[int, dict[str, Any] | None]:
    """Run `work` in a child that begins once `attach` returned; return its status and answer."""
    go, let_go = os.pipe()
    answer, tell = os.pipe()
    with (folder / "hang").open("w") as hang:
        child = os.fork()
        if child == 0:
            os.close(let_go)
            os.close(answer)
            _live(work, go, tell, hang)
    os.close(go)
    os.close(tell)
    try:
        assert os.read(answer, 1), "the child ended before it began"
        attach(child)
        os.write(let_go, b".")
    finally:
        os.close(let_go)
    with os.fdopen(answer) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return status, json.loads(text) if text else None


def _live(work: Callable[[], dict[str, Any]], go: int, tell: int, hang: TextIO) -> None:
    """Be the child; never returns. It opens and closes nothing of its own once it is traced."""
    try:
        os.write(tell, b".")
        if not os.read(go, 1):
            return  # whoever was to attach is gone
        faulthandler.dump_traceback_later(_HANG_S, exit=True, file=hang)
        try:
            found = work()
        except BaseException:
            found = {"violations": [("workload", traceback.format_exc())], "performed": {}}
        os.write(tell, json.dumps(found).encode())
    finally:
        os._exit(0)


def _tried(**options: Any) -> tuple[Trial, list[Violation]]:  # noqa: ANN401 - those of `Trial`
    folder = Path(tempfile.mkdtemp(prefix="stepseal-strace-"))
    try:
        trial = Trial(folder.resolve(), **options)
        return trial, trial.run()
    finally:
        shutil.rmtree(folder)


def differences(variant: str = "none", workload: str = "two") -> list[str]:
    """Return where the calls on a root that strace sees differ from those that our layer made."""
    trial, found = _tried(variant=variant, workload=workload)
    seen = kinds_seen(trial.trace, str(trial.folder / "root"))
    lines = [f"{violation.kind}: {violation.text}" for violation in found]
    for kind in sorted({*seen, *trial.performed}):
        wanted = trial.performed.get(kind, 0)
        if seen.get(kind, 0) != wanted:
            lines.append(f"{kind}: our layer made {wanted}, strace saw {seen.get(kind, 0)}")
    return lines


def _most(call: str, trace: str) -> int:
    """Return how many such calls one thread made at most."""
    threads = [line.split()[0] for line in trace.splitlines() if f" {call}(" in line]
    return max((threads.count(thread) for thread in set(threads)), default=0)


def _places(most: int, per_call: int | None) -> list[int]:
    if per_call is None or not most:
        return list(range(1, most + 1))
    return sorted({1 + number * (most - 1) // max(1, per_call - 1) for number in range(per_call)})


def _warm_up() -> None:
    """Import in this process all that a job imports."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with LocalStorage.create(path / "root") as storage:
            life = Life(1, path / "root", Log(path / "log"), lambda _: storage, 1)
            life.run(_two, "async")
            replace(life, number=2, keep=1).run(_back, "async")
            recover(replace(life, number=3, keep=1))
    gc.collect()
    gc.freeze()


def _sound(workload: str) -> Trial:
    """Return a job that nothing disturbed, whose trace shows every call that one may be."""
    return _tried(inject=KILL, call="openat", at=_NEVER, workload=workload)[0]


def _is_caught(name: str, sound: Trial) -> bool:
    variant = VARIANTS[name]
    if not variant.call:
        return bool(differences(name))
    for at in range(1, _most(variant.call, sound.trace) + 40):
        trial, found = _tried(inject=KILL, call=variant.call, at=at, variant=name)
        if any(violation.kind in variant.caught_as for violation in found):
            return True
        if not trial.killed:
            break
    return False


def run(size: Size) -> Row:
    """Compare the calls, kill at each, and let the broken variants be caught."""
    scale = _SCALES[size]
    started = time.monotonic()
    _warm_up()
    logging.getLogger("stepseal").setLevel(logging.ERROR)  # that housekeeping is refused is said
    violations: list[str] = []
    num_cases, notes = 0, []
    for workload in scale.workloads:
        again = f"python -m {_MODULE} --workload {workload}"
        lines = differences(workload=workload)
        violations += [f"{again} --differences  # {line}" for line in lines]
        trace = _sound(workload).trace
        for call, inject in itertools.product(CALLS, scale.injections):
            most = _most(call, trace)
            struck = 0
            for at in _places(most, scale.per_call):
                trial, found = _tried(inject=inject, call=call, at=at, workload=workload)
                struck += trial.struck
                command = f"{again} --call {call} --inject {inject} --at {at}"
                violations += [f"{command}  # {v.kind}: {v.text}" for v in found]
            num_cases += struck
            notes.append(f"{call}, {inject}, {workload}: {struck} struck of {most} in one job")
    seconds = time.monotonic() - started
    names = [name for name in VARIANTS if name != "none"]
    sound = _sound("two")
    caught = {name: _is_caught(name, sound) for name in names}
    return Row(
        "system calls",
        "calls struck",
        num_cases,
        tuple(violations),
        tuple(name for name in names if caught[name]),
        tuple(name for name in names if not caught[name]),
        seconds,
        tuple(notes),
    )


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, default="two")
    parser.add_argument("--call", choices=CALLS)
    parser.add_argument("--inject", default=KILL)
    parser.add_argument("--at", type=int)
    parser.add_argument("--differences", action="store_true")
    options = parser.parse_args()
    _warm_up()
    if options.differences:
        lines = differences(workload=options.workload)
    else:
        trial, found = _tried(
            inject=options.inject, call=options.call, at=options.at, workload=options.workload
        )
        print(f"struck: {trial.struck}, killed: {trial.killed}")
        print("\n".join(trial.trace.splitlines()[-8:]))
        lines = [f"{violation.kind}: {violation.text}" for violation in found]
    print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(_main() if {"--call", "--differences"} & {*sys.argv} else main(run, why_not))
