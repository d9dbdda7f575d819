"""One job with one failing storage operation, and what must hold of every call and of the root."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.campaigns.errno._strike import KINDS, FaultyCalls, errno_of
from tests.campaigns.errno._told import Call, check_told
from tests.campaigns.errno._watch import Watch
from tests.campaigns.harness._lives import Life
from tests.campaigns.harness._log import Event, Kind, Log
from tests.campaigns.harness._recovery import resume_and_save, survey_storage
from tests.campaigns.harness._states import Replica, digest_of, expected_step, names
from tests.campaigns.harness._strike import Strike, write_all_uncached

import stepseal as ss
from stepseal import errors
from stepseal.layout import MANIFEST
from stepseal.session import Run
from stepseal.steps import PosixSteps
from stepseal.steps._catalog import read_marker
from stepseal.steps._leases import take_lease
from stepseal.steps._pins import pin
from stepseal.steps._roots import TRASH
from stepseal.storage import KeyNotFound, LocalStorage, exists
from stepseal.testing import Fault, FaultyStorage, MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

__all__ = ["WORKLOADS", "Trial", "Where"]

Where = Literal["memory", "disk", "calls"]
"""Operations of a storage in memory, or of local storage, or the system calls of the latter."""

_NUM_PARTICIPANTS = 2
_LIFE = 2
_LEASE_S = 86_400.0


@dataclass(frozen=True)
class _Workload:
    earlier: tuple[int, ...]
    """Steps that an undisturbed job saved before."""
    back_to: int | None
    """Step that the job under test restores; None for the newest, if any."""
    steps: tuple[int, ...]
    """What it saves then, before the fault is lifted; last of all, after that."""
    keep: int | None = None
    """How many of the newest steps the job under test keeps; None keeps all."""
    pinned: int | None = None
    leased: int | None = None
    """Two of the earlier steps that stay whatever the rule says."""

    @property
    def guarded(self) -> set[int]:
        """Steps that nothing may remove."""
        return {step for step in (self.pinned, self.leased) if step is not None}


WORKLOADS = {
    "fresh": _Workload((), None, (10, 20, 30, 40)),
    "resumed": _Workload((10, 20), None, (30, 40, 50, 60)),
    "superseding": _Workload((10, 20, 30), 10, (20, 30, 40, 50)),
    # Step 30 stays because the job resumes from it, so that 5 is what the first commit prunes.
    "pruning": _Workload((5, 10, 20, 30), None, (40, 50, 60, 70), keep=1, pinned=10, leased=20),
}


class _Events(Log):
    """A log in memory, for threads."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def add(self, event: Event) -> None:
        """Append one event."""
        with self._lock:
            self._events.append(event)

    def events(self) -> list[Event]:
        """Return all events, oldest first."""
        return list(self._events)


class Trial:
    """One run of one workload with one fault.

    Args:
        workload: name in `WORKLOADS`.
        kind: name in `KINDS`.
        at: index of the operation, or its name with `#` and how often it has come by then.
        sticky: all later operations fail, too.
        where: what fails.
        wrap: breaks the storage that participants see.
        deadline_s: of every phase.
    """

    def __init__(
        self,
        workload: str,
        kind: str,
        at: int | str,
        *,
        sticky: bool,
        where: Where,
        wrap: Callable[[Storage], Storage],
        deadline_s: float,
    ) -> None:
        self._workload = WORKLOADS[workload]
        self._action = KINDS[kind]
        self._strike = Strike(at, sticky=sticky)
        self._where = where
        self._calls_made = FaultyCalls()
        write_all_uncached()
        self._wrap = wrap
        self._deadline_s = deadline_s
        self._log = _Events()
        self._calls: list[list[Call]] = [[] for _ in range(_NUM_PARTICIPANTS)]
        self._barrier = threading.Barrier(_NUM_PARTICIPANTS)
        self._storage: Storage | None = None
        self._lost: list[str] = []

    @property
    def struck(self) -> str:
        """Name of the operation that failed first; empty if none did."""
        return self._strike.struck

    @property
    def performed(self) -> set[str]:
        """Names of all operations, where none failed."""
        return self._strike.performed

    def told(self) -> list[str]:
        """Return every outcome in words."""
        return [
            f"{rank}: {call.name}: {call.outcome} [{call.seconds:.2f} s] {call.text}"
            for rank, calls in enumerate(self._calls)
            for call in calls
        ]

    def run(self) -> list[str]:
        """Run the job, check it, and let the next incarnation run; return what is wrong."""
        if self._where == "memory":
            return self._run(MemoryStorage())
        folder = tempfile.mkdtemp(prefix="stepseal-errno-")
        try:
            with LocalStorage.create(Path(folder) / "root", calls=self._calls_made) as storage:
                return self._run(storage)
        finally:
            shutil.rmtree(folder)

    def _run(self, storage: Storage) -> list[str]:
        if self._workload.earlier:
            replace(self._life(1, storage), keep=None).run(self._prelude, "sync")
            self._guard(storage)
        self._storage = storage
        watch = Watch(self._armed(storage))
        self._job(watch)
        self._strike.lift()
        found = self._check_calls() + watch.violations() + self._lost
        found += self._check_commits(storage, watch)
        left = storage
        if isinstance(storage, MemoryStorage):
            left = storage.after_power_loss(_only_renames)
        found += self._survey(left)
        if not found:
            found = [f"{v.kind}: {v.text}" for v in resume_and_save(self._life(8, storage))]
            found += self._survey(storage) + self._check_pruned(storage)
            found = [f"next incarnation: {text}" for text in found]
        return found

    def _survey(self, storage: Storage) -> list[str]:
        found = survey_storage(storage, self._log.events(), set(), self._workload.keep)
        gone = {s for s in self._workload.guarded if not exists(storage, f"step-{s}/{MANIFEST}")}
        return [f"{v.kind}: {v.text}" for v in found] + [
            f"guarded: step {step} is pinned or leased, and gone" for step in sorted(gone)
        ]

    def _armed(self, storage: Storage) -> Storage:
        if self._where == "calls":
            self._calls_made.arm(self._strike, self._action)
            return storage
        return FaultyStorage(storage, [Fault(self._strike, self._action, sticky=True)], reads=True)

    def _life(self, number: int, storage: Storage) -> Life:
        keep = self._workload.keep
        return Life(number, Path(), self._log, lambda _: storage, _NUM_PARTICIPANTS, keep)

    def _guard(self, storage: Storage) -> None:
        """Pin one earlier step and lease another."""
        run_id = read_marker(storage)
        if self._workload.pinned is not None:
            pin(storage, self._workload.pinned, run_id)
        if self._workload.leased is not None:
            take_lease(storage, self._workload.leased, ttl_s=_LEASE_S, now_s=time.time())

    def _prelude(self, player: object) -> None:
        assert hasattr(player, "save")
        assert hasattr(player, "restore")
        player.restore()
        for step in self._workload.earlier:
            player.save(step)

    # -- the job ---------------------------------------------------------------------------------

    def _job(self, watch: Watch) -> None:
        names = ("connect_s", "capture_s", "write_s", "commit_s", "check_s", "apply_s", "close_s")
        deadlines = ss.Deadlines(**dict.fromkeys(names, self._deadline_s))
        worlds: list[World] = []

        def make() -> None:
            seen = self._wrap(watch)
            keep = None if self._workload.keep is None else ss.latest(self._workload.keep)
            worlds.append(World(_NUM_PARTICIPANTS, lambda _: seen, deadlines=deadlines, keep=keep))

        if self._call(0, "world", make) is not None:
            worlds[0].run(self._script, mode="async")

    def _script(self, rank: int, checkpointer: ss.Checkpointer) -> None:
        replica = Replica(rank)
        replica.add_to(checkpointer)
        restored = self._restore(rank, checkpointer)
        pending: list[ss.PendingSave] = []
        *steps, last = self._workload.steps
        for number, step in enumerate(steps):
            self._save(rank, checkpointer, replica, step, pending)
            if number != 1:  # the outcome of this one is taken by the next save
                self._wait(rank, pending)
        self._wait(rank, pending)
        self._barrier.wait()
        self._strike.lift()
        self._barrier.wait()
        if not restored:
            self._restore(rank, checkpointer, "again ")
        self._save(rank, checkpointer, replica, last, pending, "again ")
        self._wait(rank, pending, "again ")
        self._call(rank, "close", checkpointer.close)

    def _restore(self, rank: int, checkpointer: ss.Checkpointer, prefix: str = "") -> bool:
        back_to = self._workload.back_to
        if back_to is not None:
            self._note("branching", back_to)
        done = self._call(rank, f"{prefix}restore", lambda: checkpointer.restore(back_to))
        if done is not None and back_to is not None:
            self._note("branched", back_to)
        return done is not None

    def _save(
        self,
        rank: int,
        checkpointer: ss.Checkpointer,
        replica: Replica,
        step: int,
        pending: list[ss.PendingSave],
        prefix: str = "",
    ) -> None:
        replica.fill(_LIFE, step)
        self._note("begin", step)

        def save() -> None:
            pending.append(checkpointer.save(step, cut={"life": _LIFE}))

        self._call(rank, f"{prefix}save {step}", save)

    def _wait(self, rank: int, pending: list[ss.PendingSave], prefix: str = "") -> None:
        for each in pending:
            if self._call(rank, f"{prefix}wait {each.step}", each.wait) is not None:
                self._note("acknowledged", each.step)
                self._check_durable(each.step)
        pending.clear()

    def _note(self, kind: Kind, step: int) -> None:
        self._log.add(
            Event(
                kind, _LIFE, step, digest_of(expected_step(_LIFE, step, names(_NUM_PARTICIPANTS)))
            )
        )

    def _call(self, rank: int, name: str, call: Callable[[], object]) -> Call | None:
        """Make one call and note what came of it; None if it failed."""
        started = time.monotonic()
        error: BaseException | None = None
        try:
            call()
        except Exception as failure:
            error = failure
        seconds = time.monotonic() - started
        if error is None:
            self._calls[rank].append(Call(name, "ok", seconds=seconds))
            return self._calls[rank][-1]
        step = number = path = None
        if isinstance(error, errors.CheckpointError):
            step, number, path = error.step, error.errno, error.path
        outcome = f"{type(error).__name__} of step {step}"
        self._calls[rank].append(Call(name, outcome, str(error), number, path, seconds))
        return None

    # -- what must hold --------------------------------------------------------------------------

    def _check_calls(self) -> list[str]:
        return check_told(
            self._calls,
            errno_of(self._action),
            interruptible=self._where == "calls",
            deadline_s=self._deadline_s,
        )

    def _check_durable(self, step: int) -> None:
        """A step that was just acknowledged survives a power loss now, unless a newer one, which
        does, has taken its place by the rule.
        """
        if not isinstance(self._storage, MemoryStorage):
            return
        left = self._storage.after_power_loss(lambda *_: 0.0)
        newer = [number for number in self._workload.steps if number > step]
        enough = [step] if self._workload.keep is None else [step, *newer]
        if not any(exists(left, f"step-{number}/{MANIFEST}") for number in enough):
            self._lost.append(f"lost: step {step} was acknowledged before it was durable")

    def _check_pruned(self, storage: Storage) -> list[str]:
        """What a prune could not remove of the job's own steps, a later one did.

        Earlier ones may stay: for the lease of a restore that could not be ended, or for a day
        after a restore passed over one that could not be read.
        """
        if self._workload.keep is None:
            return []
        steps = Run(PosixSteps(storage), "").steps()
        old = set(steps[: -1 - self._workload.keep])  # the last incarnation resumed from one more
        found = [f"unpruned: step {step}" for step in sorted(old & set(self._workload.steps))]
        with suppress(KeyNotFound):
            found += [f"unpruned: {entry.name} in the trash" for entry in storage.list_dir(TRASH)]
        return found

    def _check_commits(self, storage: Storage, watch: Watch) -> list[str]:
        """Nothing is committed unless somebody was told so, or told that it is not known."""
        try:
            run = Run(PosixSteps(storage), "")
        except errors.RootNotFound:
            return []
        told = {call.name.split()[-1] for calls in self._calls for call in calls
                if call.name.split()[-2:-1] == ["wait"] and call.outcome == "ok"}  # fmt: skip
        unknown = {call.outcome.split()[-1] for calls in self._calls for call in calls
                   if call.outcome.startswith("OutcomeUnknown")}  # fmt: skip
        found = []
        for entry in run.entries():
            manifest = entry.manifest
            if manifest is None or manifest.cut.get("life") != _LIFE:
                continue
            if str(entry.step) not in told | unknown:
                found.append(f"unsaid: step {entry.step} is committed, but nobody was told so")
            broken = watch.failures_of(manifest.attempt)
            if broken and str(entry.step) in told:
                found.append(f"false commit: step {entry.step}, although these failed: {broken}")
        return found


def _only_renames(_what: str, key: str) -> float:
    """Nothing survives that was not synced, but what durably left staging arrived: a rename is one
    change, whichever of its directories was synced."""
    return 1.0 if key.startswith(".stepseal/superseded/") else 0.0
