"""The errno campaign: storage operations of a job fail once, or from then on, in every way.

Nightly, every operation of two workloads in memory is struck (`fresh`, and `pruning`, whose every
commit removes a step beside a pin and a lease), one in 7 of the others, and one in 31 on a disk and
of system calls. The release size strikes every operation of all workloads in memory, and one in 3
on a disk and of system calls. The fast one takes few, spread over the whole run.

    python -m tests.campaigns._errno --size fast
    python -m tests.campaigns._errno --workload fresh --kind EIO --sticky --at 123
    python -m tests.campaigns._errno --workload fresh --kind EIO --at 'sync_dir #6'

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
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar, get_args

import torch
from tests.campaigns._errno_job import WORKLOADS, Trial, Where
from tests.campaigns._errno_strike import KINDS
from tests.campaigns._errno_variants import VARIANTS
from tests.campaigns._sizes import Row, Size, main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["run"]

T = TypeVar("T")
R = TypeVar("R")

_MODULE = "tests.campaigns._errno"
_HANG_S = 120.0
_TOLD_EVERY = 20
_PROCESSES_PER_WALK = 4
"""Those that strike every operation take that long; several do it together."""
_GOLDEN = 0.6180339887


class _Scale(NamedTuple):
    strides: dict[str, int]
    """Workload to: strike one operation of so many in memory; each kind begins elsewhere."""
    stride_on_disk: int
    """The same for local storage, and for system calls."""


_SCALES: dict[Size, _Scale] = {
    "fast": _Scale({"fresh": 100, "superseding": 100, "pruning": 100}, 750),
    "nightly": _Scale({"fresh": 1, "pruning": 1, "resumed": 7, "superseding": 7}, 31),
    "release": _Scale(dict.fromkeys(WORKLOADS, 1), 3),
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


@dataclass
class _Report:
    num_cases: int = 0
    violations: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    """What stands before the colon of each violation."""
    struck: set[str] = field(default_factory=set)
    """Names of the operations that failed first."""


def _work(share: _Share) -> _Report:
    """Strike one operation after the other until there is no further one."""
    logging.getLogger("stepseal").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    VARIANTS[share.variant].patch()
    report = _Report()
    places = share.at or itertools.count(share.start, share.stride)
    for at in places:
        faulthandler.dump_traceback_later(_HANG_S, exit=True)
        trial = Trial(
            share.workload, share.kind, at, sticky=share.sticky, where=share.where,
            wrap=VARIANTS[share.variant].wrap, deadline_s=VARIANTS[share.variant].deadline_s,
        )  # fmt: skip
        found = trial.run()
        report.kinds |= {text.partition(":")[0] for text in found}
        faulthandler.cancel_dump_traceback_later()
        if not trial.struck:
            if found:
                report.violations += [f"{_again(share, 'nothing')}  # {text}" for text in found]
            if isinstance(at, int):
                break
            continue
        report.num_cases += 1
        report.struck.add(trial.struck)
        report.violations += [f"{_again(share, trial.struck)}  # {text}" for text in found]
        if report.kinds & VARIANTS[share.variant].caught_as and share.variant != "none":
            break
    return report


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
        for where in get_args(Where):
            stride = scale.strides[workload] if where == "memory" else scale.stride_on_disk
            num_parts = _PROCESSES_PER_WALK if stride == 1 else 1
            first = _start(number, stride)
            shares += [
                _Share(workload, kind, sticky, first + part, stride * num_parts, where)
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
    for share, report in zip(shares, reports, strict=True):
        if share.stride == _PROCESSES_PER_WALK and share.where == "memory":
            walk = replace(share, start=0)
            struck[walk] = struck.get(walk, set()) | report.struck
    performed = {name: _apart(_performed, name) for name in {walk.workload for walk in struck}}
    left = {walk: performed[walk.workload] - names for walk, names in struck.items()}
    return [replace(walk, at=tuple(sorted(names))) for walk, names in left.items() if names]


def _performed(workload: str) -> set[str]:
    """Return the names of all operations of a job that meets no error."""
    nothing = Trial(
        workload, "EIO", "nothing", sticky=False, where="memory", wrap=VARIANTS["none"].wrap,
        deadline_s=VARIANTS["none"].deadline_s,
    )  # fmt: skip
    nothing.run()
    return nothing.performed


def _spread(shares: Iterable[_Share]) -> list[_Report]:
    context = multiprocessing.get_context("fork")
    num_processes = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(num_processes, context, max_tasks_per_child=None) as pool:
        return list(_told(pool.map(_work, shares)))


def _told(reports: Iterable[_Report]) -> Iterator[_Report]:
    """Pass on, and say on stderr how far it is: long sizes take more than an hour."""
    num_cases = 0
    for number, report in enumerate(reports, 1):
        num_cases += report.num_cases
        for violation in report.violations:
            print(violation, file=sys.stderr, flush=True)
        if number % _TOLD_EVERY == 0:
            print(f"{number} shares, {num_cases} operations struck", file=sys.stderr, flush=True)
        yield report


def _caught(name: str) -> bool:
    """Tell whether a variant is noticed; in a process of its own, because it patches that."""
    variant = VARIANTS[name]
    share = _Share(
        variant.workload, variant.kind, variant.sticky, 0, 1, variant=name, at=variant.at
    )
    return bool(_apart(_work, share).kinds & variant.caught_as)


def _apart(work: Callable[[T], R], argument: T) -> R:
    """Do something in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(work, argument).result()


def run(size: Size) -> Row:
    """Strike, then let every broken variant be caught."""
    started = time.monotonic()
    shares = _shares(_SCALES[size])
    reports = _spread(shares)
    reports += _spread(_left_over(shares, reports))
    seconds = time.monotonic() - started
    names = [name for name in VARIANTS if name != "none"]
    caught = {name: _caught(name) for name in names}
    return Row(
        "storage errors",
        "operations struck",
        sum(report.num_cases for report in reports),
        tuple(violation for report in reports for violation in report.violations),
        tuple(name for name in names if caught[name]),
        tuple(name for name in names if not caught[name]),
        seconds,
        (f"{len(KINDS)} kinds, once and sticky: {', '.join(KINDS)}",),
    )


def _main() -> int:
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


if __name__ == "__main__":
    sys.exit(_main() if "--at" in sys.argv else main(run))
