"""What becomes of a job when a step turns out to be damaged: all fall back, save again, and go on.

Also damage that only one participant sees, in the middle of the stream, and what is left to do when
no step is good.
"""

from __future__ import annotations

import filecmp
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.harness._small_job import NEWEST, STEPS, flip, flipped

from stepseal.errors import (
    Corrupt,
    NoResumableStep,
    NotRestored,
    StepExists,
    StepNotFound,
    Tainted,
)
from stepseal.session import Restored
from stepseal.testing import FaultyStorage, assert_identical

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.campaigns.harness._small_job import Life, SavedRoot
    from typing_extensions import Buffer, Self

    import stepseal as ss
    from stepseal.storage import ReadHandle, Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

PAYLOAD = "__0_0.distcp"


class _BadCable(FaultyStorage):
    """Storage of one participant that reads one byte wrong in each of some files."""

    def __init__(self, inner: Storage, bad: dict[str, int]) -> None:
        super().__init__(inner)
        self.bad = bad

    def open_read(self, key: str) -> ReadHandle:
        handle = super().open_read(key)
        if key not in self.bad:
            return handle
        return _BadHandle(handle, self.bad[key])


class _BadHandle:
    def __init__(self, inner: ReadHandle, byte: int) -> None:
        self._inner = inner
        self._byte = byte

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def read_into(self, buffer: Buffer, offset: int) -> None:
        self._inner.read_into(buffer, offset)
        view = memoryview(buffer)
        if offset <= self._byte < offset + view.nbytes:
            view[self._byte - offset] ^= 1

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()


def _in_a_tensor(root: SavedRoot) -> int:
    """Return the last byte of the tensor that is streamed last."""
    return max(stop for _, stop in root.tensor_ranges()[PAYLOAD]) - 1


def _bad_for_second(root: SavedRoot, *steps: int) -> tuple[_BadCable, Life]:
    byte = _in_a_tensor(root)
    cable = _BadCable(root.storage, {f"step-{step}/{PAYLOAD}": byte for step in steps})
    return cable, root.life(lambda rank: cable if rank == 1 else root.storage)


@pytest.mark.parametrize(
    "name",
    ["manifest.json", PAYLOAD, "parts/trainer/1.json", "components/loader/trainer/0.safetensors"],
)
def test_after_a_fall_back_the_job_saves_the_same_number_again_and_goes_on(
    saved_root: SavedRoot, name: str
) -> None:
    before = {path: (saved_root.path / NEWEST / path).read_bytes() for path in saved_root.files()}
    byte = _in_a_tensor(saved_root) if name == PAYLOAD else 100
    flip(saved_root.path / NEWEST / name, 8 * byte)
    life = saved_root.life()
    restored = life.restore()
    assert restored.step == 20
    assert name in restored.skipped[NEWEST]
    saved_root.saved[30] = life.train_and_save(30)
    saved_root.saved[40] = life.train_and_save(40)
    life.close()
    (superseded,) = (saved_root.path / ".stepseal" / "superseded").iterdir()
    kept = {path: (superseded / path).read_bytes() for path in before}
    assert [path for path in before if kept[path] != before[path]] == [name]
    assert saved_root.damage(30) == saved_root.damage(40) == []
    for step in (None, 30):
        life = saved_root.life()
        life.scramble()
        restored = life.restore(step)
        assert (restored.step, restored.skipped) == (step or 40, {})
        assert saved_root.wrong_values(life, restored.step) is None
        life.close()


def test_a_step_passed_over_is_not_resumed_later_even_if_it_is_whole_again(
    saved_root: SavedRoot,
) -> None:
    with flipped(saved_root.path / NEWEST / PAYLOAD, 8 * _in_a_tensor(saved_root)):
        life = saved_root.life()
        assert life.restore().step == 20
        saved_root.saved[25] = life.train_and_save(25)
        life.close()
    life = saved_root.life()
    restored = life.restore()
    assert restored.step == 25
    assert "outside the lineage" in restored.skipped[NEWEST]
    assert saved_root.wrong_values(life, 25) is None
    life.close()
    exactly = saved_root.life()
    assert exactly.restore(30).step == 30
    assert saved_root.wrong_values(exactly, 30) is None
    exactly.close()


def test_two_damaged_steps_fall_back_twice_with_both_reasons(saved_root: SavedRoot) -> None:
    byte = _in_a_tensor(saved_root)
    with (
        flipped(saved_root.path / NEWEST / PAYLOAD, 8 * byte),
        flipped(saved_root.path / "step-20" / "parts" / "trainer" / "0.json", 99),
    ):
        life = saved_root.life()
        restored = life.restore()
    assert restored.step == 10
    assert list(restored.skipped) == ["step-30", "step-20"]
    assert saved_root.wrong_values(life, 10) is None
    life.close()


def test_a_flip_that_one_participant_meets_in_the_stream_sends_all_back(
    saved_root: SavedRoot,
) -> None:
    _, life = _bad_for_second(saved_root, 30)
    life.scramble()
    first, second = life.outcomes(lambda checkpointer: checkpointer.restore())
    assert isinstance(first, Restored)
    assert first == second
    assert first.step == 20
    assert first.skipped[NEWEST].startswith("trainer/1: ")
    assert PAYLOAD in first.skipped[NEWEST]
    assert saved_root.wrong_values(life, 20) is None
    saved_root.saved[30] = life.train_and_save(30)
    life.close()


def _check_all_refuse(life: Life, call: Callable[[ss.Checkpointer], object], kind: type) -> None:
    outcomes = life.outcomes(call)
    assert [type(outcome) for outcome in outcomes] == [kind, kind], outcomes


def test_with_no_step_left_the_state_is_tainted_until_a_restore_succeeds(
    saved_root: SavedRoot,
) -> None:
    cable, life = _bad_for_second(saved_root, *STEPS)
    for _ in range(2):
        for outcome in life.outcomes(lambda checkpointer: checkpointer.restore()):
            assert isinstance(outcome, NoResumableStep)
            assert list(outcome.reasons) == ["step-30", "step-20", "step-10"]
            assert all(PAYLOAD in reason for reason in outcome.reasons.values())
            assert outcome.tainted
        _check_all_refuse(life, lambda checkpointer: checkpointer.save(40), Tainted)
        _check_all_refuse(life, lambda checkpointer: checkpointer.step(40), Tainted)
    assert [path.name for path in sorted(saved_root.path.glob("step-*"))] == [
        "step-10", "step-20", "step-30",
    ]  # fmt: skip
    cable.bad.clear()
    assert life.restore().step == 30
    assert saved_root.wrong_values(life, 30) is None
    saved_root.saved[40] = life.train_and_save(40)
    life.close()
    assert saved_root.damage(40) == []


def test_a_tainted_job_stays_so_after_a_restore_that_touched_nothing(saved_root: SavedRoot) -> None:
    _, life = _bad_for_second(saved_root, *STEPS)
    _check_all_refuse(life, lambda checkpointer: checkpointer.restore(30), Corrupt)
    _check_all_refuse(life, lambda checkpointer: checkpointer.restore(31), StepNotFound)
    _check_all_refuse(life, lambda checkpointer: checkpointer.save(40), Tainted)
    life.close()


def test_with_no_manifest_left_nothing_is_touched_and_nothing_is_saved(
    saved_root: SavedRoot,
) -> None:
    for step in STEPS:
        with (saved_root.path / f"step-{step}" / "manifest.json").open("r+b") as file:
            file.write(b"[")
    life = saved_root.life()
    life.scramble()
    before = life.states()
    for outcome in life.outcomes(lambda checkpointer: checkpointer.restore()):
        assert isinstance(outcome, NoResumableStep)
        assert all("manifest.json" in reason for reason in outcome.reasons.values())
        assert not outcome.tainted
    assert_identical(before, life.states())
    _check_all_refuse(life, lambda checkpointer: checkpointer.save(40).wait(), NotRestored)
    assert not (saved_root.path / "step-40").exists()
    life.close()


@pytest.mark.parametrize("name", ["manifest.json", PAYLOAD, "parts/trainer/1.json"])
def test_restore_of_an_exact_step_never_falls_back(saved_root: SavedRoot, name: str) -> None:
    byte = _in_a_tensor(saved_root) if name == PAYLOAD else 100
    with flipped(saved_root.path / NEWEST / name, 8 * byte):
        life = saved_root.life()
        life.scramble()
        before = life.states()
        for outcome in life.outcomes(lambda checkpointer: checkpointer.restore(30)):
            assert isinstance(outcome, Corrupt)
            assert name in str(outcome)
            if name == PAYLOAD:
                assert outcome.path == f"{NEWEST}/{name}"
            assert outcome.tainted == (name == PAYLOAD)
        if name == PAYLOAD:
            _check_all_refuse(life, lambda checkpointer: checkpointer.save(31), Tainted)
        else:
            assert_identical(before, life.states())
        assert life.restore(20).step == 20
        assert saved_root.wrong_values(life, 20) is None
        life.close()


def test_a_good_step_is_never_superseded(saved_root: SavedRoot) -> None:
    before = saved_root.files("step-20")
    life = saved_root.life()
    assert life.restore(10).step == 10
    saved_root.saved[20] = life.train_and_save(20)  # the old one left the lineage, and is kept
    (superseded,) = (saved_root.path / ".stepseal" / "superseded").iterdir()
    kept = filecmp.dircmp(superseded, saved_root.path / "step-20")
    assert {str(p.relative_to(superseded)) for p in _files(superseded)} == before.keys()
    assert "manifest.json" in kept.diff_files
    _check_all_refuse(life, lambda checkpointer: checkpointer.save(19), StepExists)
    assert saved_root.damage(20) == []
    life.close()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
