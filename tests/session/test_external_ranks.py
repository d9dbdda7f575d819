"""Real engines over process groups: saved, killed inside an engine, and resumed on other worlds.

One world of each size runs all its cells, because starting processes is what takes the time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.session._engine_ranks import one_raises, resume, save_then_die

import stepseal as ss
from stepseal.testing import RanksFailed, run_ranks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num", [2, 4])
def test_killed_in_an_engine_and_resumed(tmp_path: Path, num: int) -> None:
    root = str(tmp_path)
    with pytest.raises(RanksFailed) as killed:
        run_ranks(num, save_then_die, root, timeout_s=120)
    assert set(killed.value.failures.values()) == {"died without a report"}, killed.value
    assert ss.open(tmp_path / "files").steps() == (1,)
    found = run_ranks(num, partial(resume, same_world=True), root, timeout_s=120)
    good = dict.fromkeys(["dcp", "whole", "dcp verified", "whole verified"], True)
    assert found == [good | {"files": True, "files of the rank": True}] * num
    staging = tmp_path / "files" / ".stepseal" / "staging"
    assert list(staging.iterdir()) == []  # what the killed engines left


def test_an_engine_that_can_restores_on_another_world(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(RanksFailed):
        run_ranks(4, save_then_die, root, timeout_s=120)
    good = dict.fromkeys(["dcp", "whole", "dcp verified", "whole verified"], True)
    assert run_ranks(2, partial(resume, same_world=False), root, timeout_s=120) == [good] * 2


@pytest.mark.parametrize("num", [2, 4])
def test_all_ranks_raise_what_one_engine_raised(tmp_path: Path, num: int) -> None:
    found = run_ranks(num, one_raises, str(tmp_path), timeout_s=120)
    assert len(set(found)) == 1
    text, steps = found[0]
    assert f"trainer/{num - 1}: component engine: its engine raised ValueError" in text
    assert steps == (2,)
