"""Every bit of a manifest, and random bits of all other files: what a flip does to a restore.

A case flips one bit of the newest step, looks with `verify`, restores over scrambled live state,
and flips the bit back. A violation is a flip that `verify` misses, a restore that uses a byte that
was flipped, a reason that does not name the file, or one live value that is not exactly what the
restored step holds.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.campaigns._small_job import NEWEST, STEPS, Life, SavedRoot, flipped

from stepseal.commit import read_step
from stepseal.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

MANIFEST = "manifest.json"
SEED = 20_260_101


@dataclass
class Campaign:
    """One life of the job that is restored over and over, once per flip."""

    root: SavedRoot
    life: Life
    fell_back: int = 0
    num_cases: int = 0
    violations: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _ranges: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ranges = self.root.tensor_ranges()

    def is_read(self, path: str, byte: int) -> bool:
        """Tell whether a restore reads this byte of the newest step."""
        if path.endswith(".distcp"):
            return any(start <= byte < stop for start, stop in self._ranges[path])
        return path != ".metadata"

    def run(self, cases: Iterable[tuple[str, int]]) -> None:
        """Judge flips, each a path inside the newest step and a bit of that file."""
        for path, bit in cases:
            self.num_cases += 1
            is_read = self.is_read(path, bit // 8)
            with flipped(self.root.path / NEWEST / path, bit):
                found = [*self._not_verified(path), *self._not_restored(path, is_read=is_read)]
            self.violations += [f"{path}, bit {bit}: {violation}" for violation in found]
            self.root.forget_claims()

    def _not_verified(self, path: str) -> list[str]:
        damage = self.root.damage(STEPS[-1])
        if any(path in line for line in damage):
            return []
        return [f"verify does not name the file, but says {damage}"]

    def _not_restored(self, path: str, *, is_read: bool) -> list[str]:
        self.life.scramble()
        try:
            restored = self.life.restore()
        except CheckpointError as error:
            return [f"restore raised {error!r}"]
        found = []
        if restored.step != STEPS[-1]:
            self.fell_back += 1
            if path not in restored.skipped.get(NEWEST, ""):
                found.append(f"the reason does not name the file: {restored.skipped}")
        elif is_read:
            found.append("restored the damaged step although it reads this byte")
        if wrong := self.root.wrong_values(self.life, restored.step):
            found.append(f"wrong value in live state: {wrong}")
        return found

    def report(self, name: str) -> None:
        seconds = time.monotonic() - self._started
        print(
            f"\ncorruption, {name}: {self.num_cases} cases, {self.fell_back} fell back, "
            f"{len(self.violations)} violations, {self.num_cases / seconds:.0f} cases/s"
        )


@pytest.fixture
def campaign(saved_root: SavedRoot) -> Any:  # noqa: ANN401 - a generator
    life = saved_root.life()
    yield Campaign(saved_root, life)
    life.close()


def random_flips(root: SavedRoot, num_flips: int) -> list[tuple[str, int]]:
    """Return seeded flips outside the manifest: half by file, half by size."""
    generator = random.Random(SEED)
    sizes = {path: size for path, size in root.files().items() if path != MANIFEST and size}
    paths = list(sizes)
    half = num_flips // 2
    chosen = [paths[number % len(paths)] for number in range(half)]
    chosen += generator.choices(paths, [sizes[path] for path in paths], k=num_flips - half)
    return [(path, generator.randrange(8 * sizes[path])) for path in chosen]


@pytest.mark.slow
def test_every_bit_of_the_manifest_is_detected_by_what_selects_a_step(
    saved_root: SavedRoot,
) -> None:
    path = saved_root.path / NEWEST / MANIFEST
    num_bits = 8 * path.stat().st_size
    started, violations = time.monotonic(), []
    for bit in range(num_bits):
        with flipped(path, bit):
            entry = read_step(saved_root.storage, STEPS[-1], saved_root.run_id)
            if entry.state != "damaged" or MANIFEST not in f"{NEWEST}/{entry.problem}":
                violations.append(f"bit {bit}: {entry}")
    rate = num_bits / (time.monotonic() - started)
    print(
        f"\ncorruption, every manifest bit: {num_bits} cases, {len(violations)} violations, "
        f"{rate:.0f} cases/s"
    )
    assert violations == []


@pytest.mark.slow
def test_restore_passes_over_a_step_with_a_flipped_manifest(campaign: Campaign) -> None:
    num_bits = 8 * campaign.root.files()[MANIFEST]
    campaign.run((MANIFEST, bit) for bit in range(0, num_bits, 41))
    campaign.report("every 41st manifest bit restored")
    assert campaign.violations == []
    assert campaign.fell_back == campaign.num_cases


@pytest.mark.slow
def test_a_thousand_random_flips_never_reach_live_state(campaign: Campaign) -> None:
    campaign.run(random_flips(campaign.root, 1000))
    campaign.report("random flips outside the manifest")
    assert campaign.violations == []
    assert 0 < campaign.fell_back < campaign.num_cases


@pytest.mark.slow
def test_a_reader_that_skips_digests_is_caught(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deliver(_: object, piece: Any, data: memoryview) -> None:  # noqa: ANN401 - private
        piece.sink.write(piece.stored.tensor.box, 0, data)  # all tensors here are one chunk

    monkeypatch.setattr("stepseal.transfer._stream.Streamer._deliver", deliver)
    flips = [
        (path, bit)
        for path, bit in random_flips(campaign.root, 400)
        if campaign.is_read(path, bit // 8) and path.endswith(".distcp")
    ]
    campaign.run(flips)
    campaign.report("broken reader")
    wrong = [line for line in campaign.violations if "wrong value in live state" in line]
    assert len(wrong) == len(flips) > 10


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_manifest_bit_is_restored_over_and_many_more_flips(campaign: Campaign) -> None:
    num_bits = 8 * campaign.root.files()[MANIFEST]
    campaign.run((MANIFEST, bit) for bit in range(num_bits))
    campaign.run(random_flips(campaign.root, 20_000))
    campaign.report("nightly")
    assert campaign.violations == []
