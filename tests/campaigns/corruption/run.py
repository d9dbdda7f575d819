"""Corruption: no damaged byte reaches live state, and no damage strands a job.

Every file of the newest step is flipped, cut, extended, zeroed, repeated, swapped and replaced at
each of its structural boundaries, exchanged with those of other steps, participants and runs; so
are the marker, `latest` and the claims. After each damage the job looks with `verify` and restores
over scrambled state, see `_judge`.

    python -m tests.campaigns.corruption.run --size fast|nightly|release
    python -m tests.campaigns.corruption.run --damage 'flip step-30/manifest.json 8'      one, again
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tests.campaigns.corruption import _plans as plans
from tests.campaigns.corruption._damages import Pristine, harm
from tests.campaigns.corruption._judge import Bench, ControlBench
from tests.campaigns.corruption._variants import VARIANTS
from tests.campaigns.harness._programs import run_program
from tests.campaigns.harness._sizes import Row, Size, main
from tests.campaigns.harness._small_job import NEWEST, STEPS, SavedRoot, new_folder, save_small_job

from stepseal.steps._catalog import read_step
from stepseal.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["run"]

SEED = 20_260_101
_MODULE = "tests.campaigns.corruption.run"
_MANIFEST = f"{NEWEST}/manifest.json"
_CONTROL = ("stepseal.json", "latest", ".stepseal")


@dataclass(frozen=True)
class _Scope:
    """How much of everything; 1 in `every` of what there is."""

    flips: int
    chunks_every: int
    control_every: int
    manifest_bits_every: int
    """Of those that a reader looks at."""
    restored_bits_every: int
    """Of those of a manifest that are restored over."""
    at_each_file: int | None = None
    """Damages of each kind at the boundaries of each file; None for all."""
    only_known: bool = False
    """Broken readers meet the damage that is known to show them, where there is one, alone."""


_SCOPES: dict[Size, _Scope] = {
    "fast": _Scope(26, 17, 60, 7, 1213, at_each_file=1, only_known=True),
    "nightly": _Scope(5_000, 1, 1, 1, 11),
    "release": _Scope(20_000, 1, 1, 1, 1),
}
"""The fast size looks at a bit of every byte of a manifest."""


@dataclass
class _Found:
    """What one process found."""

    num_cases: int = 0
    num_manifest_bits: int = 0
    violations: list[str] = field(default_factory=list)
    caught: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Base:
    """What is made once and copied for every process."""

    folder: Path
    run_id: str
    saved: dict[int, list[dict[str, object]]]
    large: bool

    @classmethod
    def make(cls, folder: Path, *, large: bool = False) -> _Base:
        root = save_small_job(folder / "root", large=large)
        save_small_job(folder / "other", salt=7, large=large)
        return cls(folder, root.run_id, root.saved, large)

    @contextlib.contextmanager
    def copy(self) -> Iterator[SavedRoot]:
        with new_folder() as folder:
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
            path = folder / "root"
            with LocalStorage.open(path) as storage:
                yield SavedRoot(path, storage, self.run_id, dict(self.saved), self.large)


def run(size: Size) -> Row:
    """Try all damages of a size, in one process per core, and broken readers."""
    started = time.monotonic()
    found = _Found(**json.loads(run_program(_MODULE, "--size", size, "--json")))
    return Row(
        campaign="corruption",
        unit="damages",
        cases=found.num_cases + found.num_manifest_bits,
        violations=tuple(found.violations),
        caught=tuple(sorted(found.caught)),
        missed=tuple(sorted(found.missed)),
        seconds=time.monotonic() - started,
        notes=(
            f"{found.num_cases:,} with verify and restore; {found.num_manifest_bits:,} bits of a "
            "manifest, each refused by what selects a step",
        ),
    )


def _damages(root: SavedRoot, scope: _Scope) -> list[str]:
    """Return damages inside steps, without those that are there twice."""
    files = {p: d for p, d in Pristine.of(root.path).files.items() if p.startswith("step-")}
    boundaries = plans.at_boundaries(files, root.item_bounds())
    if scope.at_each_file is not None:
        boundaries = plans.of_each(boundaries, scope.at_each_file, SEED)
    num_bits = 8 * len(files[_MANIFEST])
    found = [
        *plans.of_whole_files(files),
        *plans.between_files(files),
        *boundaries,
        *(f"flip {_MANIFEST} {bit}" for bit in range(0, num_bits, scope.restored_bits_every)),
        *plans.flips(files, scope.flips, SEED),
    ]
    return list(dict.fromkeys(found))


def _control_damages(bench: ControlBench, scope: _Scope) -> list[str]:
    """Return damages outside steps: some of those inside a file, all of those to whole files."""
    found = list(plans.of_control_files(bench.pristine.files))
    inside = [text for text in found if text.startswith(("flip", "truncate"))]
    longer = [text for text in found if text.startswith("extend")]
    whole = [text for text in found if text not in inside and text not in longer]
    if scope.at_each_file is not None:
        longer = list(plans.of_each(longer, scope.at_each_file, SEED))
    return [*inside[:: scope.control_every], *longer, *whole]


def _chunk_damages(root: SavedRoot, scope: _Scope) -> list[str]:
    files = Pristine.of(root.path).files
    return list(plans.at_chunks(files, root.item_bounds()))[:: scope.chunks_every]


def _share(bases: tuple[_Base, _Base], scope: _Scope, number: int, num_shares: int) -> _Found:
    """Do one process's part of the work, on a root of usual size and on a large one."""
    found = _Found()
    base, large = bases
    with base.copy() as root:
        damages = _damages(root, scope)
        random.Random(SEED).shuffle(damages)  # all take equally long
        bits = range(0, 8 * (root.path / _MANIFEST).stat().st_size, scope.manifest_bits_every)
        found.violations += _manifest_bits(root, bits[number::num_shares], found)
        bench = Bench(root)
        bench.run(damages[number::num_shares])
        bench.close()
    with base.copy() as root:
        control = ControlBench(root)
        control.run(_control_damages(control, scope)[number::num_shares])
    with large.copy() as root:
        chunks = Bench(root)
        chunks.run(_chunk_damages(root, scope)[number::num_shares])
        chunks.close()
    for each in (bench, control, chunks):
        found.num_cases += each.num_cases
        found.violations += each.violations
    return found


def _manifest_bits(root: SavedRoot, bits: range, found: _Found) -> Iterator[str]:
    """Flip bits of a manifest, and let what selects a step look at each."""
    for bit in bits:
        damage = f"flip {_MANIFEST} {bit}"
        harm(root.path, damage)
        entry = read_step(root.storage, STEPS[-1], root.run_id)
        if entry.state != "damaged" or "manifest.json" not in entry.problem:
            again = f"python -m tests.campaigns.corruption.run --damage '{damage}'"
            yield f"a step with this manifest is {entry.state}, {entry.problem}: {again}"
        harm(root.path, damage)
        found.num_manifest_bits += 1


def _broken_reader(base: _Base, scope: _Scope, name: str) -> _Found:
    """Break this process's reader, and look whether that is noticed."""
    reader = VARIANTS[name]
    reader.patch()
    with base.copy() as root:
        files = Pristine.of(root.path).files
        bench = Bench(root)
        damages = [*plans.between_files(files), *plans.of_whole_files(files)]
        if name in ("no-chunk-digests", "no-tree-digests", "no-manifest-seal"):
            bits = [f"flip {_MANIFEST} {bit}" for bit in range(0, 8 * 2000, 97)]
            damages = list(plans.flips(files, 200, SEED))
            damages = [*bits, *damages] if name == "no-manifest-seal" else [*damages, *bits]
        if name == "no-sizes":
            damages = [text for text in _damages(root, scope) if text.startswith("extend")]
        if scope.only_known and reader.known:
            damages = [reader.known]
        bench.run(damages, until=reader.caught_as)
        bench.close()
    if any(text.startswith(reader.caught_as) for text in bench.violations):
        return _Found(caught=[name])
    return _Found(missed=[name])


def _in_children(works: list[Callable[[], _Found]], num_processes: int) -> _Found:
    """Run works in children, so many at a time, and join what they found."""
    whole = _Found()
    running: dict[int, Path] = {}
    with tempfile.TemporaryDirectory(prefix="stepseal-corruption-") as folder:
        for number, work in enumerate(works):
            if len(running) == num_processes:
                _join(running, whole)
            answer = Path(folder, str(number))
            child = os.fork()
            if child == 0:
                _be_child(work, answer)
            running[child] = answer
        while running:
            _join(running, whole)
    return whole


def _be_child(work: Callable[[], _Found], answer: Path) -> None:
    """Leave the answer, and never return."""
    try:
        answer.write_text(json.dumps(vars(work())))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _join(running: dict[int, Path], whole: _Found) -> None:
    child, status = os.wait()
    answer = running.pop(child)
    if status != 0:
        raise RuntimeError(f"a child of the corruption campaign ended with {status}")
    for name, value in json.loads(answer.read_text()).items():
        setattr(whole, name, getattr(whole, name) + value)


def _all(size: Size) -> _Found:
    num_processes = len(os.sched_getaffinity(0))
    scope = _SCOPES[size]
    with new_folder() as folder:
        base = _Base.make(folder / "usual")
        large = _Base.make(folder / "large", large=True)
        gc.collect()
        gc.freeze()  # children that collect would copy every page
        works: list[Callable[[], _Found]] = [
            partial(_share, (base, large), scope, number, num_processes)
            for number in range(num_processes)
        ]
        works += [partial(_broken_reader, base, scope, name) for name in VARIANTS]
        return _in_children(works, num_processes)


def _once(damage: str, *, large: bool) -> int:
    """Try one damage again; return the exit code."""
    with new_folder() as folder, _Base.make(folder, large=large).copy() as root:
        control = damage.split()[1].startswith(_CONTROL)
        bench = ControlBench(root) if control else Bench(root)
        bench.run([damage])
        if isinstance(bench, Bench):
            bench.close()
    print("\n".join(bench.violations) or f"{bench.num_cases} damages, no violation")
    return 1 if bench.violations else 0


def _main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--damage")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments, rest = parser.parse_known_args()
    torch.set_num_threads(1)
    if arguments.damage:
        return _once(arguments.damage, large=arguments.large)
    if arguments.json:
        parser.add_argument("--size", choices=list(_SCOPES))
        print(json.dumps(vars(_all(parser.parse_args().size))))
        return 0
    sys.argv[1:] = rest
    return main(run)


if __name__ == "__main__":
    sys.exit(_main())
