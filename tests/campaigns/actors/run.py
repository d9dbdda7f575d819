"""Actors: SIGKILL of each actor in each phase, on real Ray and Monarch, round after round.

Each round saves, hits one actor in one phase (see `_member.PHASES`), starts it again, admits it,
restores and saves again. The next round goes on with the same job. Round N hits phase N % 7 and
actor N % 8, so that 56 rounds have every pair.

    python -m tests.campaigns.actors.run --size fast|nightly|release
    python -m tests.campaigns.actors.run --framework monarch --rounds 50
    python -m tests.campaigns.actors.run --first 13 --rounds 1                one round, again
    python -m tests.campaigns.actors.run --variant losses-unheard
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tests.campaigns.actors._frameworks import FRAMEWORKS, why_not
from tests.campaigns.actors._member import PHASES
from tests.campaigns.actors._round import Hung, Job
from tests.campaigns.actors._variants import VARIANTS
from tests.campaigns.harness._programs import finish, row_of
from tests.campaigns.harness._sizes import Row, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.campaigns.actors._frameworks import Framework

__all__ = ["hit_in", "ids_of", "run"]

_MODULE = "tests.campaigns.actors.run"
_IDS = {
    "ray": (
        *(f"trainer/{rank}" for rank in range(4)),
        "generator/0", "generator/1", "buffer/0", "dataset/0",
    ),
    "monarch": ("trainer/0", "trainer/1", "buffer/0", "dataset/0"),
}  # fmt: skip
"""Consumers before producers; all sizes are prime to the number of phases."""
_ROUNDS: dict[Size, dict[str, int]] = {
    "fast": {"ray": 10, "monarch": 7},
    "nightly": {"ray": 200, "monarch": 50},
    "release": {"ray": 1000, "monarch": 200},
}
_LIMIT_S = 240.0
"""Above the sum of all deadlines of a call, and the start of a process on a busy machine."""
_VARIANT_LIMIT_S = 25.0
"""Below the deadline of a phase."""
_VARIANT_IDS = ("trainer/0", "buffer/0")
_TOLD_EVERY = 20


def ids_of(framework: str) -> tuple[str, ...]:
    """Return the participants of the job on a framework."""
    return _IDS[framework]


def hit_in(number: int, ids: Sequence[str]) -> tuple[str, str]:
    """Return in which phase a round hits whom."""
    return PHASES[number % len(PHASES)], ids[number % len(ids)]


async def _rounds(
    folder: Path, framework: Framework, ids: Sequence[str], numbers: range
) -> tuple[list[str], dict[str, list[float]]]:
    """Run rounds with one job, and with another one after a call hung."""
    found: list[str] = []
    delays_ms: dict[str, list[float]] = {}
    left = list(numbers)
    while left:
        try:
            async with Job(folder / str(left[0]), framework, ids, _LIMIT_S) as job:
                job.delays_ms = delays_ms
                while left:
                    number = left.pop(0)
                    phase, victim = hit_in(number, ids)
                    what = f"--first {number} --rounds 1  # {phase}, {victim}"
                    found += [f"{what}: {text}" for text in await job.round(number, phase, victim)]
                    if len(left) % _TOLD_EVERY == 0:
                        told = f"{len(numbers) - len(left)} of {len(numbers)} rounds"
                        print(f"{told}, {len(found)} violations", file=sys.stderr, flush=True)
        except Hung as error:
            found.append(f"{what}: {error}")
    return found, delays_ms


async def _seen_of(name: str, folder: Path, framework: Framework) -> list[str]:
    """Run one round with a broken coordinator; return what it shows."""
    variant = VARIANTS[name]
    with variant.patch():
        try:
            async with Job(folder / name, framework, _VARIANT_IDS, _VARIANT_LIMIT_S) as job:
                return await job.round(0, variant.phase, "buffer/0")
        except Hung as error:
            return [*job.problems, str(error)]


def _campaign(name: str, numbers: range, variants: Sequence[str]) -> Row:
    logging.getLogger("stepseal").setLevel(logging.ERROR)  # of what is hit, and of memory
    begun = time.monotonic()
    framework = FRAMEWORKS[name]()
    with tempfile.TemporaryDirectory(prefix="stepseal-actors-") as folder:
        found, delays_ms = asyncio.run(_rounds(Path(folder), framework, _IDS[name], numbers))
        seen = {one: asyncio.run(_seen_of(one, Path(folder), framework)) for one in variants}
        framework.end()
    caught = [one for one in variants if any(VARIANTS[one].told in text for text in seen[one])]
    missed = [one for one in variants if one not in caught]
    for one in missed:
        print(f"{one} was told as: {seen[one][:3]}", file=sys.stderr)
    again = f"python -m {_MODULE} --framework {name}"
    return Row(
        f"actors on {name}", "rounds", len(numbers),
        tuple(f"{again} {text}" for text in found), tuple(caught), tuple(missed),
        time.monotonic() - begun, tuple(_told_delay(*one) for one in sorted(delays_ms.items())),
    )  # fmt: skip


def _told_delay(phase: str, delays_ms: list[float]) -> str:
    middle, most = statistics.median(delays_ms), max(delays_ms)
    return (
        f"{phase}: from the death to the error {middle:.0f} ms in the median, at most {most:.0f} "
        f"({len(delays_ms)} deaths)"
    )


def run(size: Size, framework: str) -> Row:
    """Run the campaign, in a process of its own."""
    return row_of(_MODULE, "--size", size, "--framework", framework, "--json", anew=True)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=get_args(Size), default="fast")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="default: all that are installed")
    parser.add_argument("--first", type=int, default=0, metavar="N")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--variant", choices=VARIANTS, action="append", default=[])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if (reason := why_not(asked.framework)) is not None:
        print(f"skipped: {reason}", flush=True)
        return 0
    if asked.framework is None:  # each in a process of its own
        rows = [run(asked.size, name) for name in FRAMEWORKS if why_not(name) is None]
        return max(finish(row, as_json=False) for row in rows)
    chosen = asked.rounds is not None or asked.variant
    number = asked.rounds or (0 if asked.variant else _ROUNDS[asked.size][asked.framework])
    names = asked.variant if chosen else list(VARIANTS)
    row = _campaign(asked.framework, range(asked.first, asked.first + number), names)
    return finish(row, as_json=asked.json)


if __name__ == "__main__":
    sys.exit(_main())
