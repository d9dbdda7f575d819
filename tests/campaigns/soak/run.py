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

    _Round = tuple[str, int]
    """The name of a broken protocol, or nothing; and a seed."""

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


def _round(item: _Round) -> RoundReport:
    from tests.campaigns.soak._round import run_round
    from tests.campaigns.soak._variants import SOAKED

    name, seed = item
    if not name:
        return run_round(seed)
    return run_round(seed, SOAKED[name].troubles, SOAKED[name].patch)


def _soak(
    seeds: Iterator[int], end: float, lanes: int, known: Sequence[_Round]
) -> tuple[list[tuple[int, RoundReport | None]], dict[str, str]]:
    """Run rounds until `end`, several at once; at least one that begins with each trouble.

    Args:
        seeds: of the rounds.
        end: when no further one begins.
        lanes: how many run at once.
        known: rounds of broken protocols, which run with the first ones.

    Returns:
        What came of the rounds, and what the broken protocols told.
    """
    from tests.campaigns.harness._processes import each
    from tests.campaigns.soak._round import TROUBLES

    first = itertools.islice(seeds, len(TROUBLES))
    more = itertools.takewhile(lambda _: time.monotonic() < end, seeds)
    rounds = (("", seed) for seed in itertools.chain(first, more))
    results = []
    told: dict[str, str] = {}
    for (name, seed), report in each(itertools.chain(known, rounds), _round, lanes, _LIMIT_S):
        if name:
            told |= _told(name, report)
            continue
        results.append((seed, report))
        if report is None or report.problems:
            _print_problems(seed, report)
    return results, told


def _print_problems(seed: int, report: RoundReport | None) -> None:
    problems = ["the round itself died or hung"] if report is None else report.problems
    for problem in problems:
        print(f"seed {seed}: {problem}", file=sys.stderr, flush=True)


def _search(name: str, lanes: int) -> dict[str, str]:
    """Run rounds of a broken protocol until one tells; return what it tells."""
    from tests.campaigns.harness._processes import each

    for _, report in each(((name, seed) for seed in range(_MOST_ROUNDS)), _round, lanes, _LIMIT_S):
        if told := _told(name, report):
            return told
    return {}


def _told(name: str, report: RoundReport | None) -> dict[str, str]:
    """Return what a round of a broken protocol tells, if that is what it must."""
    from tests.campaigns.soak._variants import SOAKED

    texts = () if report is None else report.problems
    text = next((text for text in texts if SOAKED[name].told in text), "")
    return {name: text} if text else {}


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
    known = [(name, SOAKED[name].seed) for name in names] if arguments.size == "fast" else []
    minutes = arguments.minutes or (1e6 if arguments.rounds else _MINUTES[arguments.size])
    num_rounds = 0 if arguments.variant else arguments.rounds
    seeds = itertools.islice(itertools.count(arguments.seed), num_rounds)
    end = time.monotonic() + 60 * minutes
    results, told = _soak(seeds, end, arguments.lanes, known)
    for name in names:
        told |= {} if name in told else _search(name, arguments.lanes)
    variants = {name: told.get(name, "") for name in names}
    whole = not chosen and not arguments.variant
    row = _row(results, variants, time.monotonic() - begun, judge_floors=whole)
    return finish(row, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(_main())
