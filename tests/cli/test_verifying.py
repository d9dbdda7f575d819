"""`stepseal verify` beside a prune: no damage that is none, and no failure for what is gone."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner
from tests.cli.conftest import save_run

from stepseal.cli import _verifying as verifying
from stepseal.cli import main
from stepseal.cli._roots import OpenRoot, open_root_or_step
from stepseal.steps import PosixSteps
from stepseal.steps._roots import TRASH
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from stepseal.storage import ReadHandle, Storage, WriteHandle


def run(code: int, *arguments: object) -> tuple[Any, str]:
    """Return what was printed as JSON, and stderr."""
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout), done.stderr


def use(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Storage], Storage]) -> None:
    """Let the command line see the root through another storage."""

    def open_wrapped(path: str) -> OpenRoot:
        root = open_root_or_step(path)
        return dataclasses.replace(root, steps=PosixSteps(wrap(root.steps.storage)))

    monkeypatch.setattr(verifying, "open_root_or_step", open_wrapped)


class Absent(FaultyStorage):
    """Step 1 is taken out of its place by a prune for the time of one read, late in the look."""

    num_times = 0

    def open_read(self, key: str) -> ReadHandle:
        if self.num_times or not key.endswith(".distcp"):
            return super().open_read(key)
        self.num_times += 1
        trash = f"{TRASH}/step-1.1.{'0' * 32}.{'0' * 16}.pruned"
        self._inner.rename("step-1", trash)
        try:
            return super().open_read(key)
        finally:
            self._inner.rename(trash, "step-1")


class Pruned(FaultyStorage):
    """Step 2 is pruned right before it is leased."""

    def create_file(self, key: str) -> WriteHandle:
        if "/leases/step-2." in key:
            self._inner.rename("step-2", f"{TRASH}/gone")
        return super().create_file(key)


def test_a_step_that_is_put_back_is_whole_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, 1)
    undisturbed, _ = run(0, "verify", tmp_path)
    use(monkeypatch, Absent)
    found, err = run(0, "verify", tmp_path)
    assert (found, err) == (undisturbed, "")


def test_a_step_that_is_pruned_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, 1, 2, 3)
    use(monkeypatch, Pruned)
    found, err = run(0, "verify", tmp_path)
    assert [step["step"] for step in found["steps"]] == [1, 3]
    assert len(err.splitlines()) == 1
    assert "left out: step 2: " in err


def test_a_step_that_was_asked_for_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, 1, 2, 3)
    use(monkeypatch, Pruned)
    done = CliRunner().invoke(main, ["verify", str(tmp_path), "1", "2"])
    assert done.exit_code == 4
    assert "pruned or superseded" in done.stderr
