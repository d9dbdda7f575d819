"""The soak: rounds of a job of real processes that are killed, stopped, and robbed of their disk.

See `_round` for the troubles and `_oracle` for what must hold.

    python -m tests.campaigns.soak.run --size nightly
    python -m tests.campaigns.soak.run --seed 17 --rounds 1     one round, again
    python -m tests.campaigns.soak.run --minutes 5 --seed 1000  from this seed on
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, get_args

from tests.campaigns.harness._programs import finish, row_of
from tests.campaigns.harness._sizes import Row, Size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.campaigns.soak._round import RoundReport

__all__ = ["run", "too_little"]

_MODULE = "tests.campaigns.soak.run"
_MINUTES: dict[Size, float] = {"fast": 0.0, "nightly": 30.0, "release": 24 * 60.0}
_LIMIT_S = 600.0
_LANES_PER_CORE = 2
_MOST_ROUNDS = 40
"""Of a broken protocol, until it counts as missed."""
_LEAST_PER_ROUND = {"acknowledged": 10, "read": 5, "verified": 5}
"""What must have happened, on average: a soak in which nothing happens is no good one."""


def run(size: Size) -> Row:
    """Run the campaign as a program of its own."""
    return row_of(_MODULE, "--size", size, "--json")


def _soak(seeds: Iterator[int], end: float, lanes: int) -> list[tuple[int, RoundReport | None]]:
    """Run rounds until `end`, several at once; at least one that begins with each trouble."""
    from tests.campaigns.harness._processes import each
    from tests.campaigns.soak._round import TROUBLES, run_round

    first = list(itertools.islice(seeds, len(TROUBLES)))
    more = itertools.takewhile(lambda _: time.monotonic() < end, seeds)
    found = []
    for seed, report in each(itertools.chain(first, more), run_round, lanes, _LIMIT_S):
        found.append((seed, report))
        if report is None or report.problems:
            _print_problems(seed, report)
    return found


def _print_problems(seed: int, report: RoundReport | None) -> None:
    problems = ["the round itself died or hung"] if report is None else report.problems
    for problem in problems:
        print(f"seed {seed}: {problem}", file=sys.stderr, flush=True)


def _catch_all(names: Sequence[str], lanes: int, *, known: bool) -> dict[str, str]:
    """Run rounds of each broken protocol until one tells; return what they tell.

    Args:
        names: of the variants.
        lanes: how many rounds run at once.
        known: begin with the round in which each was seen before.
    """
    from tests.campaigns.soak._variants import SOAKED

    told = dict.fromkeys(names, "")
    if known:
        told |= _told([(name, SOAKED[name].seed) for name in names], lanes)
    for name in names:
        if not told[name]:
            told |= _told([(name, seed) for seed in range(_MOST_ROUNDS)], lanes)
    return told


def _told(rounds: Sequence[tuple[str, int]], lanes: int) -> dict[str, str]:
    """Run rounds, each of a variant and a seed, until all variants told; return what they tell."""
    from tests.campaigns.harness._processes import each
    from tests.campaigns.soak._round import run_round
    from tests.campaigns.soak._variants import SOAKED

    def work(item: tuple[str, int]) -> RoundReport:
        variant = SOAKED[item[0]]
        return run_round(item[1], variant.troubles, variant.patch)

    told: dict[str, str] = {}
    for (name, _), report in each(rounds, work, lanes, _LIMIT_S):
        texts = () if report is None else report.problems
        text = next((text for text in texts if SOAKED[name].told in text), "")
        told |= {name: text} if text else {}
        if told.keys() == {name for name, _ in rounds}:
            break
    return told


def _row(
    results: list[tuple[int, RoundReport | None]],
    variants: dict[str, str],
    seconds: float,
    *,
    judge_floors: bool,
) -> Row:
    violations = []
    counts: Counter[str] = Counter()
    for seed, report in results:
        if report is None or report.problems:
            first = "the round itself died or hung" if report is None else report.problems[0]
            again = f"python -m {_MODULE} --seed {seed} --rounds 1"
            violations.append(f"{again}  # {first.splitlines()[0]}")
        counts.update({} if report is None else report.counts)
    if judge_floors:
        violations += too_little(counts, len(results))
    return Row(
        "soak", "rounds", len(results), tuple(violations),
        tuple(name for name, told in variants.items() if told),
        tuple(name for name, told in variants.items() if not told),
        seconds,
        (
            *(f"{name}: {told.splitlines()[0]}" for name, told in variants.items() if told),
            *(f"{count} times {what}" for what, count in sorted(counts.items())),
        ),
    )  # fmt: skip


def too_little(counts: Counter[str], num_rounds: int) -> list[str]:
    """Return what happened too rarely in so many rounds."""
    from tests.campaigns.soak._round import TROUBLES

    floors = {what: least * num_rounds for what, least in _LEAST_PER_ROUND.items()}
    floors |= {f"life with {trouble}": num_rounds // len(TROUBLES) for trouble in TROUBLES}
    floors |= {"pinned": num_rounds // 3, "pruned": num_rounds // 3}
    return [
        f"expected at least {max(1, least)} times {what} in {num_rounds} rounds, "
        f"found {counts[what]}"
        for what, least in floors.items()
        if counts[what] < max(1, least)
    ]


def _main() -> int:
    from tests.campaigns.harness._processes import warm_up
    from tests.campaigns.soak._variants import SOAKED

    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=get_args(Size), default="fast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--variant", choices=SOAKED, action="append", default=[])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--lanes", type=int, default=_LANES_PER_CORE * cores)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warm_up()
    begun = time.monotonic()
    chosen = arguments.rounds is not None or arguments.minutes is not None
    names = arguments.variant if arguments.variant or chosen else list(SOAKED)
    variants = _catch_all(names, arguments.lanes, known=arguments.size == "fast")
    minutes = arguments.minutes or (1e6 if arguments.rounds else _MINUTES[arguments.size])
    seeds = itertools.islice(itertools.count(arguments.seed), arguments.rounds)
    results = []
    if not arguments.variant:
        results = _soak(seeds, time.monotonic() + 60 * minutes, arguments.lanes)
    whole = not chosen and not arguments.variant
    row = _row(results, variants, time.monotonic() - begun, judge_floors=whole)
    return finish(row, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(_main())
