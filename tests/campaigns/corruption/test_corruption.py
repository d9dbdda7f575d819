"""Damage of every kind to every file: named by `verify`, never in live state, and nobody stranded.

See `run` for what is damaged, and `_judge` for what must hold.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.corruption._judge import knowable
from tests.campaigns.corruption._plans import at_boundaries, of_each
from tests.campaigns.corruption.run import run
from tests.campaigns.harness._small_job import NEWEST, STEPS

if TYPE_CHECKING:
    from tests.campaigns.harness._small_job import SavedRoot

pytestmark = pytest.mark.slow


@pytest.mark.serial
@pytest.mark.timeout(1800)
def test_no_damage_reaches_live_state(capsys: pytest.CaptureFixture[str]) -> None:
    row = run("fast")
    with capsys.disabled():
        print("", row.text(), *row.notes, sep="\n")
    assert row.good, row


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_no_damage_at_any_boundary_reaches_live_state(capsys: pytest.CaptureFixture[str]) -> None:
    row = run("nightly")
    with capsys.disabled():
        print("", row.text(), *row.notes, sep="\n")
    assert row.good, row


def _check_restores(root: SavedRoot) -> dict[str, str]:
    """Restore the newest step; return what was passed over."""
    life = root.life()
    life.scramble()
    restored = life.restore()
    assert restored.step == STEPS[-1]
    assert root.wrong_values(life, restored.step) is None
    life.close()
    return dict(restored.skipped)


def test_a_copy_of_a_step_under_another_number_is_no_step(saved_root: SavedRoot) -> None:
    shutil.copytree(saved_root.path / NEWEST, saved_root.path / "step-31")
    assert "is of step 30" in _check_restores(saved_root)["step-31"]


def test_extra_files_are_reported_and_never_read(saved_root: SavedRoot) -> None:
    folder = saved_root.path / NEWEST
    (folder / "notes.txt").write_text("mine")
    (folder / "__9_0.distcp").write_bytes(b"x" * 100)
    (folder / "components" / "loader" / "trainer" / "2.json").write_text("{}")
    (folder / "parts" / "trainer" / "2.json").symlink_to("0.json")
    (folder / "empty folder").mkdir()
    os.mkfifo(folder / "pipe")
    assert saved_root.damage(STEPS[-1]) == []
    extra = saved_root.findings(STEPS[-1], "extra")
    for name in ("notes.txt", "__9_0.distcp", "loader/trainer/2.json", "parts/trainer/2", "pipe"):
        assert any(name in line for line in extra), extra
    assert _check_restores(saved_root) == {}


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ({"__0_0.distcp", "parts/trainer/1.json"}, {"__0_0.distcp", "parts/trainer/1.json"}),
        ({"__1_0.distcp", "parts/trainer/1.json"}, {"parts/trainer/1.json"}),
        ({"__1_0.distcp", "parts/trainer/1.safetensors"}, {"parts/trainer/1.safetensors"}),
        ({"components/rng/trainer/0.json", "parts/trainer/0.json"}, {"parts/trainer/0.json"}),
        ({"manifest.json", ".metadata"}, {"manifest.json"}),
    ],
)
def test_all_damage_must_be_named_but_below_a_damaged_document(
    damaged: set[str], named: set[str]
) -> None:
    assert knowable(damaged) == named


def test_a_sample_has_every_kind_of_damage_to_every_file() -> None:
    damages = [f"{verb} step-30/{name} {at}" for verb in ("cut", "zero") for name in "ab"
               for at in range(9)]  # fmt: skip
    chosen = list(of_each(damages, 2, seed=1))
    assert len(set(chosen)) == 8
    assert set(chosen) < set(damages)
    assert len({tuple(damage.split()[:2]) for damage in chosen}) == 4
    assert list(of_each(damages, 2, seed=1)) == chosen


def test_every_kind_of_damage_is_tried_beside_each_boundary() -> None:
    document = b'{\n "steps": 12345\n}\n'  # boundaries among others: 2, 4, 9, 12, 17, 18
    found = set(at_boundaries({f"{NEWEST}/a.json": document}, {}))
    for verb in ("zero", "repeat", "cut"):
        for edges in ("12 17", "11 17", "13 17", "12 16"):
            assert f"{verb} {NEWEST}/a.json {edges}" in found
    for verb in ("swap", "double"):
        for edges in ("12 17 18", "13 17 18", "12 16 18", "12 17 19"):
            assert f"{verb} {NEWEST}/a.json {edges}" in found
