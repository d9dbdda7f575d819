"""The hang proofs: whoever is killed, stopped, blocked or cut off, everybody else comes back.

Real processes over real sockets; see `_cases` for who is hit where and how, `_judge` for
what must hold.

    python -m tests.campaigns.hang.run --size fast                    this size of the matrix
    python -m tests.campaigns.hang.run --size nightly --sample 400 --seed 1     400 cases of it
    python -m tests.campaigns.hang.run --case stop:save/write:1of3    one case, again
    python -m tests.campaigns.hang.run --variant silence-ignored      one broken protocol
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tests.campaigns.harness._programs import finish, row_of
from tests.campaigns.harness._sizes import Row, Size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.campaigns.hang._cases import Case, Result

    Outcome = tuple[tuple[Case, str], Result | None]
    """A case, the name of the broken protocol or nothing, and what came of it."""

__all__ = ["run"]

_MODULE = "tests.campaigns.hang.run"
_LANES_PER_CORE = 5
"""Cases sleep most of their time; with three times as many, who is only slow counts as lost."""
_TOLD_EVERY = 100
_VARIANT_LIMIT_S = 14.0
"""In a broken protocol, who runs for longer hangs; real cases get far more."""


def run(size: Size) -> Row:
    """Run the campaign as a program of its own."""
    return row_of(_MODULE, "--size", size, "--json")


def _cases(size: Size) -> Iterator[Case]:
    from tests.campaigns.hang._cases import How, matrix
    from tests.campaigns.hang._relay import PARTITIONS

    if size == "fast":
        hows: tuple[How, ...] = ("kill", "stop", "block")
        for number, how in enumerate(hows):  # every gate of both in one of the three ways
            yield from itertools.islice(matrix(2, (how,), (0, 1)), number, None, 3)
        yield from itertools.islice(matrix(3, ("kill", "stop"), (0, 2)), 0, None, 5)
        zombies = matrix(2, ("zombie",), (0,))
        yield from (case for case in zombies if case.gate.startswith("coordinator"))
        for number, how in enumerate(PARTITIONS):  # every gate in one direction or another
            yield from itertools.islice(matrix(2, (how,), (1, 0)), number, None, 4)
        return
    worlds = range(2, 9)
    for world in worlds:
        hows = get_args(How)
        everybody = range(world)
        ends = sorted({0, 1, world - 1})
        yield from matrix(world, hows, everybody if size == "release" or world <= 4 else ends)
        if size != "release" and world > 4:
            between = [rank for rank in everybody if rank not in ends]
            yield from matrix(world, ("kill", "stop"), between)


def _campaign(cases: Sequence[Case], variants: Sequence[str], lanes: int) -> Row:
    from tests.campaigns.hang._job import make_template
    from tests.campaigns.hang._run_case import run_case
    from tests.campaigns.hang._variants import HANGING
    from tests.campaigns.harness._processes import each, fast_directory, warm_up

    warm_up()
    logging.getLogger("stepseal").setLevel(logging.ERROR)  # each life says that memory is volatile
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="stepseal-hang-", dir=fast_directory()))
    broken = [_of_variant(name) for name in variants]
    try:
        worlds = sorted({case.world for case in (*cases, *broken)})
        made = each(worlds, lambda world: make_template(folder / str(world), world), 1, 60.0)
        assert len(list(made)) == len(worlds)

        def work(item: tuple[Case, str]) -> Result:
            case, variant = item
            if not variant:
                return run_case(case, folder / str(case.world))
            patch = HANGING[variant].patch
            return run_case(case, folder / str(case.world), patch, _VARIANT_LIMIT_S)

        items = [*zip(broken, variants, strict=True), *((case, "") for case in cases)]
        results = list(_counted(each(items, work, lanes, 400.0), len(items)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _row(results, time.monotonic() - begun)


def _counted(found: Iterator[Outcome], total: int) -> Iterator[Outcome]:
    """Pass on, and say on stderr how far it is: long sizes take half an hour."""
    bad = 0
    for number, outcome in enumerate(found, 1):
        (case, variant), result = outcome
        if not variant and (result is None or result.violations):
            bad += 1
            print(f"{case}: {_first(result)}", file=sys.stderr, flush=True)
        if number % _TOLD_EVERY == 0 or number == total:
            print(f"{number} of {total} cases, {bad} with violations", file=sys.stderr, flush=True)
        yield outcome


def _first(result: Result | None) -> str:
    return "the case itself died or hung" if result is None else result.violations[0]


def _of_variant(name: str) -> Case:
    from tests.campaigns.hang._cases import parse_case
    from tests.campaigns.hang._variants import HANGING

    return parse_case(HANGING[name].case)


def _row(results: list[Outcome], seconds: float) -> Row:
    from tests.campaigns.hang._variants import HANGING

    violations: list[str] = []
    caught: list[str] = []
    missed: list[str] = []
    kinds: Counter[str] = Counter()
    real = [(case, result) for (case, variant), result in results if not variant]
    for (_, variant), result in results:
        if variant:
            said = () if result is None else result.violations  # a crash is no finding
            told = any(HANGING[variant].told in text for text in said)
            (caught if told else missed).append(variant)
            if not told:
                print(f"{variant} was told as: {said or result}", file=sys.stderr)
    for case, result in real:
        found = ["the case itself died or hung"] if result is None else result.violations
        for text in found[:1]:
            again = f"python -m {_MODULE} --case '{case}'"
            violations.append(f"{again}  # {text.splitlines()[0]}")
            for line in "\n".join(found).splitlines():
                print(f"{case}: {line}", file=sys.stderr)
        kinds.update([] if result is None else result.kinds)
    done = [result for _, result in real if result is not None]
    notes = [
        f"longest beyond a limit {max((r.over_s for r in done), default=0.0):.2f} s, longest from "
        f"hit to answer {max((r.noticed_s for r in done), default=0.0):.2f} s",
        *(f"{count} cases saw {kind}" for kind, count in sorted(kinds.items())),
    ]
    return Row(
        "hang proofs", "cases", len(real), tuple(violations), tuple(caught), tuple(missed),
        seconds, tuple(notes),
    )  # fmt: skip


def _main() -> int:
    from tests.campaigns.hang._cases import parse_case
    from tests.campaigns.hang._variants import HANGING

    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=get_args(Size), default="fast")
    parser.add_argument("--case", action="append", default=[], metavar="HOW:GATE:NofM")
    parser.add_argument("--sample", type=int, metavar="N", help="N random cases of the size")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--variant", choices=HANGING, action="append", default=[])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--lanes", type=int, default=_LANES_PER_CORE * cores)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chosen = [parse_case(text) for text in arguments.case]
    everything = not chosen and not arguments.variant
    cases = list(_cases(arguments.size)) if everything else chosen
    if everything and arguments.sample is not None:
        cases = random.Random(arguments.seed).sample(cases, min(arguments.sample, len(cases)))
    variants = list(HANGING) if everything else arguments.variant
    row = _campaign(cases, variants, arguments.lanes)
    return finish(row, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(_main())
