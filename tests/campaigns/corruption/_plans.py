"""Which damages are tried: at every structural boundary of every file, and between whole files."""

from __future__ import annotations

import json
import random
import re
from itertools import chain, combinations, pairwise, product
from typing import TYPE_CHECKING

from tests.campaigns.corruption._damages import KINDS
from tests.campaigns.harness._small_job import NEWEST, STEPS

from stepseal.layout import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "at_boundaries",
    "at_chunks",
    "between_files",
    "flips",
    "of_control_files",
    "of_each",
    "of_whole_files",
]

_PAGE_BYTES = 4096
_BEFORE = f"step-{STEPS[-2]}"
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*')
"""A string, which may be a name, or a number of a JSON document."""
_NUM_VALUES = 24
"""Whose edges are boundaries, of each JSON document, besides the ends of its lines."""
_EXTENSIONS = (1, 7, 63, _PAGE_BYTES - 1, _PAGE_BYTES, _PAGE_BYTES + 1)


def _boundaries(path: str, data: bytes, items: Mapping[str, set[int]]) -> list[int]:
    """Return where something begins or ends in a file, its ends and its pages included."""
    found = {0, len(data), *range(0, len(data), _PAGE_BYTES), *items.get(path, ())}
    if path.endswith(".json"):
        found |= {match.end() for match in re.finditer(rb"\n", data)}
        values = [match.span() for match in _VALUE.finditer(data)]
        chosen = random.Random(path).sample(values, min(_NUM_VALUES, len(values)))
        found |= {edge for span in chosen for edge in span}
    elif path.endswith(".safetensors"):
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        ends = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        found |= {8, start, *(start + offset for pair in ends for offset in pair)}
    return sorted(found)


def at_boundaries(files: Mapping[str, bytes], items: Mapping[str, set[int]]) -> Iterator[str]:
    """Yield damages at and one byte beside every boundary of every file of the newest step.

    Args:
        files: path in the root to bytes.
        items: path of a payload file to the offsets at which records and their data begin and end.
    """
    for path, data in files.items():
        if path.startswith(f"{NEWEST}/"):
            yield from _at(path, data, _boundaries(path, data, items))


def at_chunks(files: Mapping[str, bytes], items: Mapping[str, set[int]]) -> Iterator[str]:
    """Yield the same for files of several chunks, where chunks begin and end.

    Arguments as for `at_boundaries`.
    """
    for path, data in files.items():
        if path.startswith(f"{NEWEST}/") and len(data) > CHUNK_BYTES:
            bounds = {0, len(data), *range(0, len(data), CHUNK_BYTES)}
            if path in items:
                spread = sorted(items[path])
                large = [a for a, b in pairwise(spread) if b - a == CHUNK_BYTES]
                bounds = {0, len(data), *large, *(at + CHUNK_BYTES for at in large)}
            yield from _at(path, data, sorted(bounds))


def _at(path: str, data: bytes, bounds: list[int]) -> Iterator[str]:
    near = {at + beside for at in bounds for beside in (-1, 0, 1)}
    for at in sorted(near & set(range(len(data)))):
        yield f"truncate {path} {at}"
        yield f"flip {path} {8 * at + at % 8}"
    for num_bytes in _EXTENSIONS:
        yield f"extend {path} {num_bytes}"
    for pair in pairwise(bounds):
        for start, stop in _beside(pair, len(data)):
            yield f"zero {path} {start} {stop}"
            yield f"repeat {path} {start} {stop}"
            yield f"cut {path} {start} {stop}"
    for three in zip(bounds, bounds[1:], bounds[2:], strict=False):
        for start, middle, stop in _beside(three, len(data)):
            yield f"swap {path} {start} {middle} {stop}"
            yield f"double {path} {start} {middle} {stop}"


def _beside(bounds: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    """Yield bounds, and the same with one of them a byte earlier or later, where that is inside."""
    yield bounds
    for number, shift in product(range(len(bounds)), (-1, 1)):
        moved = tuple(at + shift * (place == number) for place, at in enumerate(bounds))
        if moved[0] >= 0 and moved[-1] <= size and all(a < b for a, b in pairwise(moved)):
            yield moved


def of_each(damages: Iterable[str], number: int, seed: int) -> Iterator[str]:
    """Yield so many damages of each kind to each file, from anywhere in it."""
    strata: dict[tuple[str, ...], list[str]] = {}
    for damage in damages:
        strata.setdefault(tuple(damage.split()[:2]), []).append(damage)
    chance = random.Random(seed)
    for stratum in strata.values():
        yield from chance.sample(stratum, min(number, len(stratum)))


def of_whole_files(files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield damages to every file of the newest step as a whole, and to its folders."""
    for path, data in files.items():
        if path.startswith(f"{NEWEST}/"):
            yield from (f"become {path} {kind}" for kind in KINDS)
            yield f"truncate {path} {1 << 40}"
            yield f"truncate {path} {len(data) - 1}"
            yield f"extend {path} 1"
            yield f"zero {path} 0 {len(data)}"
    for folder in ("parts", "parts/trainer", "components", "components/loader"):
        for kind in ("nothing", "empty", "moved-symlink"):
            yield f"become {NEWEST}/{folder} {kind}"


def between_files(files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what happens between files: replayed, exchanged, of another step, part or run."""
    newest = [path.removeprefix(f"{NEWEST}/") for path in files if path.startswith(f"{NEWEST}/")]
    for path in newest:
        yield f"copy {_BEFORE}/{path} {NEWEST}/{path}"
        yield f"copy ../other/{NEWEST}/{path} {NEWEST}/{path}"
        yield f"exchange {_BEFORE}/{path} {NEWEST}/{path}"
    yield f"copy {_BEFORE} {NEWEST}"
    yield f"copy ../other/{NEWEST} {NEWEST}"
    yield f"exchange {_BEFORE} {NEWEST}"
    for first, second in combinations(newest, 2):
        if len(files[f"{NEWEST}/{first}"]) == len(files[f"{NEWEST}/{second}"]):
            yield f"exchange {NEWEST}/{first} {NEWEST}/{second}"
    yield from _parts_between_steps(newest)
    yield from _parts_between_participants(newest)


def _parts_between_steps(newest: list[str]) -> Iterator[str]:
    payload = [path for path in newest if path.endswith(".distcp")]
    documents = [path for path in newest if path.startswith("parts/")]
    indexes = [path for path in documents if path.endswith(".safetensors")]
    trees = [path for path in newest if path.startswith("components/")]
    groups = [documents, indexes, trees, [*indexes, *payload], [*documents, *payload]]
    for owner in ("trainer/0", "trainer/1"):
        own = [path for path in newest if f"/{owner}." in path]
        groups += [own, [*own, *payload]]
    groups.append([path for path in newest if path != "manifest.json"])
    for group in groups:
        yield "; ".join(f"exchange {_BEFORE}/{path} {NEWEST}/{path}" for path in group)
        yield "; ".join(f"copy ../other/{NEWEST}/{path} {NEWEST}/{path}" for path in group)


def _parts_between_participants(newest: list[str]) -> Iterator[str]:
    pairs = [
        f"exchange {NEWEST}/{path} {NEWEST}/{other}"
        for path in newest
        if "/trainer/0." in path and (other := path.replace("trainer/0", "trainer/1")) in newest
    ]
    yield from pairs
    yield "; ".join(pairs)
    yield "; ".join(pair for pair in pairs if "/components/" in pair)


def of_control_files(files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield damages to the marker, to `latest` and to every claim: every byte, and as a whole."""
    for path, data in files.items():
        if path.startswith("step-"):
            continue
        yield from (f"flip {path} {8 * at + at % 8}" for at in range(len(data)))
        yield from (f"truncate {path} {at}" for at in range(0, len(data), 16))
        yield from (f"become {path} {kind}" for kind in KINDS)
        yield from (f"extend {path} {num_bytes}" for num_bytes in _EXTENSIONS)
        yield f"zero {path} 0 {len(data)}"
    claims = [path for path in files if "/incarnations/" in path]
    yield from (f"exchange {one} {other}" for one, other in combinations(claims, 2))
    yield "; ".join(f"zero {path} 0 {len(files[path])}" for path in claims)
    yield "; ".join(f"become {path} nothing" for path in claims)


def flips(files: Mapping[str, bytes], num_flips: int, seed: int) -> Iterator[str]:
    """Yield flips outside the manifest of the newest step: half by file, half by size."""
    chance = random.Random(seed)
    sizes = {
        path: len(data)
        for path, data in files.items()
        if path.startswith(f"{NEWEST}/") and not path.endswith("/manifest.json")
    }
    paths = list(sizes)
    half = num_flips // 2
    by_file = (paths[number % len(paths)] for number in range(half))
    by_size = chance.choices(paths, list(sizes.values()), k=num_flips - half)
    for path in chain(by_file, by_size):
        yield f"flip {path} {chance.randrange(8 * sizes[path])}"
