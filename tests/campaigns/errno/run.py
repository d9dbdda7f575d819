"""The errno campaign: storage operations of a job fail once, or from then on, in every way.

Nightly, every operation of `fresh` in memory is struck in each way. Of `pruning`, whose every
commit removes a step beside a pin and a lease, every operation is struck in about one way of four;
of the others one in 7, and one in 31 on a disk and of system calls. The release size strikes every
operation of all workloads in memory, and one in 3 on a disk and of system calls. The fast one
strikes one operation of each workload in each way in memory, and one of any workload in each way on
a disk and of system calls, spread over the run.

    python -m tests.campaigns.errno.run --size fast
    python -m tests.campaigns.errno.run --size nightly --journal FILE    # stop it, and go on later
    python -m tests.campaigns.errno.run --workload fresh --kind EIO --sticky --at 123
    python -m tests.campaigns.errno.run --workload fresh --kind EIO --at 'sync_dir #6'

Reading operations count, too. Which operation has which index varies a little from run to run,
because participants are threads; a name with a count, such as the sixth sync of the root, does
not. Where every operation is to be struck, those that no index hit are struck by name.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import logging
import multiprocessing
import os
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, get_args

import torch
from tests.campaigns.errno._job import WORKLOADS, Trial, Where
from tests.campaigns.errno._strike import KINDS
from tests.campaigns.errno._variants import VARIANTS
from tests.campaigns.harness._journal import Journal
from tests.campaigns.harness._processes import each
from tests.campaigns.harness._sizes import Row, Size, report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["run"]

T = TypeVar("T")
R = TypeVar("R")

_MODULE = "tests.campaigns.errno.run"
_HANG_S = 120.0
_VARIANT_LIMIT_S = 600.0
_TOLD_EVERY = 20
_PROCESSES_PER_WALK = 4
"""Those that strike every operation take that long; several do it together."""
_GOLDEN = 0.6180339887
_WAYS = 2 * len(KINDS)
"""Each kind once, and sticky."""


class _Scale(NamedTuple):
    strides: dict[str, int]
    """Workload to: strike one operation of so many in memory; each kind begins elsewhere."""
    stride_on_disk: int
    """The same for local storage."""
    stride_of_calls: int
    """The same for system calls."""
    most: int | None = None
    """Strikes of one walk; None for all to the end."""
    takes_turns: bool = False
    """On a disk and of system calls, each kind strikes one of the workloads."""


_SCALES: dict[Size, _Scale] = {
    "fast": _Scale(
        {"fresh": 450, "superseding": 570, "pruning": 720}, 450, 1700, most=1, takes_turns=True
    ),
    "nightly": _Scale({"fresh": 1, "pruning": 4, "resumed": 7, "superseding": 7}, 31, 31),
    "release": _Scale(dict.fromkeys(WORKLOADS, 1), 3, 3),
}


@dataclass(frozen=True)
class _Share:
    """What one process does in one go."""

    workload: str
    kind: str
    sticky: bool
    start: int
    stride: int
    where: Where = "memory"
    variant: str = "none"
    at: tuple[str, ...] = ()
    """Operations by name, instead of by index."""
    most: int | None = None
    """Stop after so many; None goes on until there is no further operation."""


@dataclass
class _Report:
    num_cases: int = 0
    violations: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    """What stands before the colon of each violation."""
    struck: set[str] = field(default_factory=set)
    """Names of the operations that failed first."""


def _work(share: _Share) -> _Report:
    """Strike one operation after the other, until there is no further one or it is enough."""
    logging.getLogger("stepseal").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    VARIANTS[share.variant].patch()
    outcome = _Report()
    places = share.at or itertools.islice(itertools.count(share.start, share.stride), share.most)
    for at in places:
        faulthandler.dump_traceback_later(_HANG_S, exit=True)
        trial = Trial(
            share.workload, share.kind, at, sticky=share.sticky, where=share.where,
            wrap=VARIANTS[share.variant].wrap, deadline_s=VARIANTS[share.variant].deadline_s,
        )  # fmt: skip
        found = trial.run()
        outcome.kinds |= {text.partition(":")[0] for text in found}
        faulthandler.cancel_dump_traceback_later()
        if not trial.struck:
            if found:
                outcome.violations += [f"{_again(share, 'nothing')}  # {text}" for text in found]
            if isinstance(at, int):
                break
            continue
        outcome.num_cases += 1
        outcome.struck.add(trial.struck)
        outcome.violations += [f"{_again(share, trial.struck)}  # {text}" for text in found]
        if outcome.kinds & VARIANTS[share.variant].caught_as and share.variant != "none":
            break
    return outcome


def _again(share: _Share, struck: str) -> str:
    sticky = " --sticky" if share.sticky else ""
    where = "" if share.where == "memory" else f" --where {share.where}"
    variant = "" if share.variant == "none" else f" --variant {share.variant}"
    return (
        f"python -m {_MODULE} --workload {share.workload} --kind {share.kind}{sticky}{where}"
        f"{variant} --at {shlex.quote(struck)}"
    )


def _shares(scale: _Scale) -> list[_Share]:
    walks = list(itertools.product(scale.strides, KINDS, (False, True)))
    shares = []
    for number, (workload, kind, sticky) in enumerate(walks):
        for turn, where in enumerate(get_args(Where)):
            takes_turns = scale.takes_turns and where != "memory"
            if takes_turns and (number % _WAYS + turn) % len(scale.strides) != number // _WAYS:
                continue
            stride = {
                "memory": scale.strides[workload],
                "disk": scale.stride_on_disk,
                "calls": scale.stride_of_calls,
            }[where]
            num_parts = _PROCESSES_PER_WALK if stride == 1 else 1
            first = _start(number % _WAYS if takes_turns else number, stride)
            shares += [
                _Share(
                    workload, kind, sticky, first + part, stride * num_parts, where, most=scale.most
                )
                for part in range(num_parts)
            ]
    return shares


def _start(number: int, stride: int) -> int:
    """Return where a walk begins, so that any few of them lie evenly over the whole stride."""
    return int(number * _GOLDEN % 1 * stride)


def _left_over(shares: Sequence[_Share], reports: Sequence[_Report]) -> list[_Share]:
    """Return, by name, what no index hit of that which is struck whole: threads take turns
    differently each time.
    """
    struck: dict[_Share, set[str]] = {}
    for share, outcome in zip(shares, reports, strict=True):
        if share.stride == _PROCESSES_PER_WALK and share.where == "memory":
            walk = replace(share, start=0)
            struck[walk] = struck.get(walk, set()) | outcome.struck
    every = {name: _apart(_performed, name) for name in sorted({w.workload for w in struck})}
    for walk, names in struck.items():
        every[walk.workload] |= names
    left = {walk: every[walk.workload] - names for walk, names in struck.items()}
    return [replace(walk, at=tuple(sorted(names))) for walk, names in left.items() if names]


def _performed(workload: str) -> set[str]:
    """Return the names of all operations of a job that meets no error."""
    nothing = Trial(
        workload, "EIO", "nothing", sticky=False, where="memory", wrap=VARIANTS["none"].wrap,
        deadline_s=VARIANTS["none"].deadline_s,
    )  # fmt: skip
    nothing.run()
    return nothing.performed


def _spread(shares: Sequence[_Share], journal: Journal[_Share, _Report]) -> list[_Report]:
    """Do what the journal lacks, and say on stderr how far it is: long sizes take hours."""
    todo = [share for share in shares if share not in journal.reports]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
        working = {pool.submit(_work, share): share for share in todo}
        for number, done in enumerate(as_completed(working), 1):
            journal.add(working[done], done.result())
            for violation in done.result().violations:
                print(violation, file=sys.stderr, flush=True)
            if number % _TOLD_EVERY == 0:
                num_cases = sum(outcome.num_cases for outcome in journal.reports.values())
                print(
                    f"{number} of {len(todo)} shares, {num_cases} operations struck",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
    return [journal.reports[share] for share in shares]


def _caught(name: str) -> bool:
    """Tell whether a variant is noticed; it patches this process."""
    variant = VARIANTS[name]
    share = _Share(
        variant.workload, variant.kind, variant.sticky, 0, 1, variant=name, at=variant.at
    )
    return bool(_work(share).kinds & variant.caught_as)


def _apart(work: Callable[[T], R], argument: T) -> R:
    """Do something in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(work, argument).result()


def run(size: Size, journal: Path | None = None) -> Row:
    """Strike, then let every broken variant be caught."""
    done = Journal(journal, _Share, _Report)
    shares = _shares(_SCALES[size])
    reports = _spread(shares, done)
    reports += _spread(_left_over(shares, reports), done)
    seconds = done.seconds
    names = [name for name in VARIANTS if name != "none"]
    cores = len(os.sched_getaffinity(0))
    caught = dict(each(names, _caught, cores, _VARIANT_LIMIT_S))
    return Row(
        "storage errors",
        "operations struck",
        sum(outcome.num_cases for outcome in reports),
        tuple(violation for outcome in reports for violation in outcome.violations),
        tuple(name for name in names if caught[name]),
        tuple(name for name in names if not caught[name]),
        seconds,
        (f"{len(KINDS)} kinds, once and sticky: {', '.join(KINDS)}",),
    )


def _one() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, default="fresh")
    parser.add_argument("--kind", choices=KINDS, default="EIO")
    parser.add_argument("--sticky", action="store_true")
    parser.add_argument("--where", choices=get_args(Where), default="memory")
    parser.add_argument("--variant", choices=VARIANTS, default="none")
    parser.add_argument("--at", required=True)
    options = parser.parse_args()
    at = int(options.at) if options.at.isdigit() else options.at
    VARIANTS[options.variant].patch()
    trial = Trial(
        options.workload, options.kind, at, sticky=options.sticky, where=options.where,
        wrap=VARIANTS[options.variant].wrap, deadline_s=VARIANTS[options.variant].deadline_s,
    )  # fmt: skip
    found = trial.run()
    print(f"struck: {trial.struck or 'nothing'}")
    for line in [*trial.told(), *found]:
        print(f"  {line}")
    return 1 if found else 0


def _all() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=get_args(Size), default="fast")
    parser.add_argument("--journal", type=Path)
    options = parser.parse_args()
    return report(run(options.size, options.journal))


if __name__ == "__main__":
    sys.exit(_one() if "--at" in sys.argv else _all())
