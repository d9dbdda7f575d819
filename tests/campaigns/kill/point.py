"""The crash campaign: SIGKILL before one mutating storage operation after the other.

Runs as a program of its own, which imports torch once and then only forks: one child for the job
that is killed, one for the incarnation after it.

    python -m tests.campaigns.kill.point mixed                   every kill point
    python -m tests.campaigns.kill.point mixed --kill-index 123  one of them, again
    python -m tests.campaigns.kill.point superseding --flagless  as on a network file system
    python -m tests.campaigns.kill.point mixed --kill-at 'sync_dir .stepseal/staging/step-20.1.*#1'

Which operation has which index varies a little from run to run, because participants are threads;
`--kill-at` names the operation itself, and which of its kind it is, from 1.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tests._flagless import FlaglessCalls
from tests.campaigns.harness._lives import WORKLOADS, Life
from tests.campaigns.harness._log import Log
from tests.campaigns.harness._recovery import Violation, recover
from tests.campaigns.harness._strike import Strike
from tests.campaigns.kill._report import SWITCH_INTERVALS_S, Broken, Options, Report
from tests.campaigns.kill._variants import VARIANTS

from stepseal.storage import LocalStorage
from stepseal.testing import Fault, FaultyStorage, Kill, Tear, ThreadCount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.storage import Storage

_HANG_S = 90.0


class _Trial:
    """One kill point, in a directory of its own.

    Args:
        folder: empty.
        options: which job.
        at: index of the operation, or its name: pattern, `#`, and how often it has come by then.
    """

    def __init__(self, folder: Path, options: Options, at: int | str) -> None:
        self._workload = WORKLOADS[options.workload]
        self._variant = VARIANTS[options.variant]
        self._options = options
        self._folder = folder
        self._at = at
        self.log = Log(folder / "log")
        self.killed = False

    def run(self) -> list[Violation]:
        """Run the job until it is killed, then recover."""
        if self._workload.prelude is not None:
            found = self._fork(self._prelude)
            if found is not None:
                return found or [Violation("workload", "the prelude was not killed")]
        found = self._fork(self._job)
        self.killed = found is None
        if found:
            return found
        found = self._fork(self._recovery)
        return [Violation("workload", "the recovery was killed")] if found is None else found

    @property
    def torn(self) -> bool:
        """A save was begun and never acknowledged."""
        events = self.log.events()
        told = {(event.life, event.step) for event in events if event.kind == "acknowledged"}
        return any((e.life, e.step) not in told for e in events if e.kind == "begin")

    @property
    def struck(self) -> str:
        """Name of the operation before which the job died; empty if it did not."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "struck").read_text()
        return ""

    @property
    def performed(self) -> list[str]:
        """Names of all operations, if the job completed."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "performed").read_text().splitlines()
        return []

    def _prelude(self) -> list[Violation]:
        assert self._workload.prelude is not None
        assert self._workload.crash is not None
        plan = [Fault(self._workload.crash, Kill())]
        count = ThreadCount()
        life = self._life(1, lambda local: FaultyStorage(local, plan, count=count))
        self._workload.prelude(life)
        return []

    def _job(self) -> list[Violation]:
        self._disturb()
        self._variant.patch()
        strike = Strike(self._at)
        action = Tear(0.5, Kill()) if self._options.action == "tear" else Kill()

        def strikes(operation: str, key: str) -> bool:
            if not strike(operation, key):
                return False
            (self._folder / "struck").write_text(strike.struck)
            return True

        def storage(local: Storage) -> Storage:
            return FaultyStorage(local, [Fault(strikes, action)])

        self._workload.run(self._life(1 if self._workload.prelude is None else 3, storage))
        (self._folder / "performed").write_text("\n".join(sorted(strike.performed)))
        return []

    def _recovery(self) -> list[Violation]:
        self._variant.patch()
        return recover(self._life(6, lambda local: local))

    def _disturb(self) -> None:
        """Let the threads take turns as the seed says."""
        if self._options.seed is not None:
            number = self._options.seed % len(SWITCH_INTERVALS_S)
            sys.setswitchinterval(SWITCH_INTERVALS_S[number])

    def _life(self, number: int, faults: Callable[[Storage], Storage]) -> Life:
        root = self._folder / "root"

        def storage(_rank: int) -> Storage:
            flagless = self._workload.flagless or self._options.flagless
            calls = FlaglessCalls() if flagless else None
            return self._variant.wrap(faults(LocalStorage.create(root, calls=calls)))

        workload = self._workload
        shape = (workload.num_participants, workload.keep, workload.engine)
        return Life(number, root, self.log, storage, *shape)

    def _fork(self, work: Callable[[], list[Violation]]) -> list[Violation] | None:
        """Run `work` in a child; return its findings, or None if it was killed."""
        answer = self._folder / "answer"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            _live(work, answer, self._folder / "hang")
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return None
        if answer.exists():
            return [Violation(*violation) for violation in json.loads(answer.read_text())]
        where = (self._folder / "hang").read_text()
        return [Violation("hang", f"status {status} after up to {_HANG_S:g} s\n{where}")]


def _live(work: Callable[[], list[Violation]], answer: Path, hang: Path) -> None:
    """Be the child; never returns."""
    torch.set_num_threads(1)  # makes this process's pool anew; two threads at once may not
    with hang.open("w") as file:
        faulthandler.dump_traceback_later(_HANG_S, exit=True, file=file)
        try:
            found = work()
        except BaseException:
            found = [Violation("workload", traceback.format_exc())]
        partial = answer.with_suffix(".partial")
        partial.write_text(json.dumps([(v.kind, v.text) for v in found]))
        partial.rename(answer)
        os._exit(0)


def run_campaign(options: Options) -> Report:
    """Kill at one point after the other; without chosen points, until a run completes untouched."""
    report = Report()
    fatal = VARIANTS[options.variant].caught_as
    started = time.monotonic()
    points: list[int | str] = [*options.kill_index, *options.kill_at]
    known = VARIANTS[options.variant].at if options.known else ()
    more: Iterator[int | str] = itertools.count(options.share, options.num_shares)
    every = itertools.chain(known, more)
    for at in points or every:
        folder = Path(tempfile.mkdtemp(prefix="stepseal-kill-", dir=_fast_directory()))
        try:
            trial = _Trial(folder, options, at)
            for found in trial.run():
                again = options.reproduction(at, trial.struck)
                report.broken.append(Broken(str(at), trial.struck, found.kind, found.text, again))
            report.note(trial.struck, killed=trial.killed, torn=trial.torn)
            report.completed(trial.performed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        report.seconds = time.monotonic() - started
        caught = {broken.point for broken in report.broken if broken.kind in fatal}
        is_over = report.untouched and not points and at not in known
        if is_over or len(caught) == options.stop_after:
            break
    return report


def _fast_directory() -> str | None:
    """A file system in memory, where there is one: what is synced does not matter to SIGKILL."""
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="broken protocol")
    parser.add_argument("--action", choices=["kill", "tear"], default="kill")
    parser.add_argument("--kill-index", type=int, action="append", default=[])
    parser.add_argument("--kill-at", action="append", default=[], metavar="OPERATION")
    parser.add_argument("--share", type=int, default=0)
    parser.add_argument("--num-shares", type=int, default=1)
    parser.add_argument("--stop-after", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--known", action="store_true", help="begin where the variant shows")
    parser.add_argument("--flagless", action="store_true", help="no flags of renameat2")
    parser.add_argument("--json", action="store_true")
    return parser


def _main() -> int:
    arguments = vars(_arguments().parse_args())
    as_json = arguments.pop("json")
    variants = arguments.pop("variant") or ["none"]
    torch.set_num_threads(1)
    logging.getLogger("stepseal").setLevel(logging.ERROR)  # each life says that memory is volatile
    gc.collect()
    gc.freeze()  # children that collect would copy every page
    gc.disable()
    failed = False
    for variant in variants:
        options = Options(**arguments, variant=variant)
        report = run_campaign(options)
        failed = failed or bool(report.broken)
        if as_json:
            print(json.dumps(asdict(report)))
        else:
            print(report.text(f"{options.workload}, {variant}"))
    return 1 if failed and not as_json else 0


if __name__ == "__main__":
    sys.exit(_main())
