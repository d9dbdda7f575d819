"""The crash campaign: SIGKILL before one mutating storage operation after the other.

Runs as a program of its own, which imports torch once and then only forks: one child for the job
that is killed, one for the incarnation after it.

    python -m tests.campaigns._kill mixed                   every kill point
    python -m tests.campaigns._kill mixed --kill-index 123  one of them, again
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stepseal.storage import LocalStorage
from stepseal.testing import Fault, FaultyStorage, Kill, Tear, ThreadCount
from tests.campaigns._lives import WORKLOADS, Life, Workload
from tests.campaigns._log import Log
from tests.campaigns._recovery import Violation, recover
from tests.campaigns._variants import VARIANTS, Variant

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

__all__ = ["Options", "Report", "run_campaign"]

_HANG_S = 90.0
_RANDOM_NAME = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{8})?")


@dataclass(frozen=True)
class Options:
    """What to run."""

    workload: str
    variant: str = "none"
    action: str = "kill"
    """`kill`: die before the operation; `tear`: die in the middle of it, if it is a write."""
    share: int = 0
    """This process takes the kill points `share`, `share + num_shares`, and so on."""
    num_shares: int = 1
    kill_index: int | None = None
    stop_after: int | None = None
    """Stop when as many kill points had violations that the variant is to be caught by."""

    def reproduction(self, index: int) -> str:
        """Return the command that repeats one kill point."""
        more = "" if self.variant == "none" else f" --variant {self.variant}"
        more += "" if self.action == "kill" else f" --action {self.action}"
        module = "python -m tests.campaigns._kill"
        return f"{module} {self.workload}{more} --kill-index {index}"


@dataclass
class Report:
    """What came out."""

    num_kills: int = 0
    num_torn: int = 0
    """Kill points that left a step begun and not committed."""
    untouched: bool = False
    """The last run completed: there was no further operation."""
    seconds: float = 0.0
    struck: list[str] = field(default_factory=list)
    """Operations before which the process died, without random names; each once."""
    violations: list[tuple[int, str, str, str]] = field(default_factory=list)
    """Index, operation, kind, and text."""

    def add(self, other: Report) -> None:
        """Take in what another share found at the same time."""
        self.num_kills += other.num_kills
        self.num_torn += other.num_torn
        self.untouched = self.untouched and other.untouched
        self.seconds = max(self.seconds, other.seconds)
        self.struck = sorted({*self.struck, *other.struck})
        self.violations += [(i, o, k, t) for i, o, k, t in other.violations]

    def summary(self) -> str:
        """Return the line that is printed."""
        bad = len({index for index, *_ in self.violations})
        rate = self.num_kills / max(self.seconds, 1e-9)
        return (
            f"{self.num_kills} kill points ({self.num_torn} left a torn step, {len(self.struck)} "
            f"different operations), {bad} with violations, {rate:.1f}/s, {self.seconds:.1f} s"
        )


class _Trial:
    """One kill point, in a directory of its own."""

    def __init__(self, folder: Path, options: Options, index: int) -> None:
        self._workload: Workload = WORKLOADS[options.workload]
        self._variant: Variant = VARIANTS[options.variant]
        self._folder = folder
        self._fault = Tear(0.5, Kill()) if options.action == "tear" else Kill()
        self._index = index
        self.log = Log(folder / "log")
        self.struck = ""
        self.killed = False

    def run(self) -> list[Violation]:
        """Run the job until it is killed, then recover."""
        if self._workload.prelude is not None:
            found = self._fork(self._prelude)
            if found is not None:
                return found or [Violation("workload", "the prelude was not killed")]
        found = self._fork(self._job)
        self.killed = found is None
        with contextlib.suppress(FileNotFoundError):
            self.struck = (self._folder / "struck").read_text()
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

    def _prelude(self) -> list[Violation]:
        assert self._workload.prelude is not None
        assert self._workload.crashed_before is not None
        self._workload.prelude(self._life(1, [Fault(self._workload.crashed_before, Kill())]))
        return []

    def _job(self) -> list[Violation]:
        self._variant.patch()
        plan = [Fault(self._index, self._fault)]
        self._workload.run(self._life(1, plan))
        return []

    def _recovery(self) -> list[Violation]:
        if self._variant.patch is not VARIANTS["none"].patch:
            self._variant.patch()
        return recover(self._life(5, []))

    def _life(self, number: int, plan: list[Fault]) -> Life:
        root = self._folder / "root"
        count = ThreadCount()

        def note(index: int, operation: str, key: str) -> None:
            if index == self._index:
                (self._folder / "struck").write_text(f"{operation} {key}")

        def storage(_rank: int) -> Storage:
            local = LocalStorage.create(root)
            if not plan:
                return self._variant.wrap(local)
            return self._variant.wrap(FaultyStorage(local, plan, count=count, before=note))

        return Life(number, root, self.log, storage, self._workload.num_participants)

    def _fork(self, work: Callable[[], list[Violation]]) -> list[Violation] | None:
        """Run `work` in a child; return its findings, or None if it was killed as planned."""
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
    """Be the child: never returns."""
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
    """Kill at one index after the other until a run completes untouched."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # children that collect would copy every page
    report = Report()
    fatal = VARIANTS[options.variant].caught_as
    started = time.monotonic()
    indices = itertools.count(options.share, options.num_shares)
    for index in indices if options.kill_index is None else [options.kill_index]:
        folder = Path(tempfile.mkdtemp(prefix="stepseal-kill-", dir=_fast_directory()))
        try:
            trial = _Trial(folder, options, index)
            violations = trial.run()
            report.num_kills += trial.killed
            report.num_torn += trial.killed and trial.torn
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        struck = _RANDOM_NAME.sub("*", trial.struck)
        report.struck = sorted({*report.struck, struck} - {""})
        report.violations += [(index, struck, v.kind, v.text) for v in violations]
        report.seconds = time.monotonic() - started
        report.untouched = not trial.killed
        caught = {i for i, _, kind, _ in report.violations if kind in fatal}
        if report.untouched or len(caught) == options.stop_after:
            break
    return report


def _fast_directory() -> str | None:
    """A file system in memory, where there is one: what is synced does not matter to SIGKILL."""
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--variant", choices=VARIANTS, default="none")
    parser.add_argument("--action", choices=["kill", "tear"], default="kill")
    parser.add_argument("--kill-index", type=int)
    parser.add_argument("--share", type=int, default=0)
    parser.add_argument("--num-shares", type=int, default=1)
    parser.add_argument("--stop-after", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    options = Options(**arguments)
    report = run_campaign(options)
    if as_json:
        json.dump(asdict(report), sys.stdout)
        return 0
    for index, struck, kind, text in report.violations:
        print(f"{kind} at {index} ({struck}): {text}\n    {options.reproduction(index)}")
    print(f"{options.workload}, {options.variant}: {report.summary()}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(_main())
