from __future__ import annotations

import pytest

from stepseal.steps import FolderName, parse_folder

ATTEMPT = "ab" * 16


def test_names_are_read_back_as_they_were_made() -> None:
    staged = FolderName(20, 3, ATTEMPT)
    assert str(staged) == f"step-20.3.{ATTEMPT}"
    moved = staged.moved(1000.9)
    assert (moved.moved_at_s, moved.fate) == (1000, "")
    pruned = staged.moved(1000, ".pruned")
    for name in (staged, moved, pruned, pruned.with_fate(".deleting")):
        assert parse_folder(f"any/where/{name}") == name


def test_two_moves_of_one_second_have_different_names() -> None:
    staged = FolderName(20, 3, ATTEMPT)
    assert staged.moved(1000) != staged.moved(1000)


def test_a_fate_changes_nothing_else() -> None:
    pruned = FolderName(20, 3, ATTEMPT).moved(1000, ".pruned")
    assert str(pruned.with_fate("")) == str(pruned).removesuffix(".pruned")


@pytest.mark.parametrize(
    "name",
    [
        "step-20", f"step-020.3.{ATTEMPT}", f"step-20.0.{ATTEMPT}", f"step-20.3.{ATTEMPT[1:]}",
        f"step-20.3.{ATTEMPT}.pruned", f"step-20.3.{ATTEMPT}.{'0' * 15}",
        f"step-20.3.{ATTEMPT}.{'0' * 16}.", f"step-20.3.{ATTEMPT}.{'0' * 16}.mine",
        f"step-20.3.{ATTEMPT}.{'0' * 16}.pruned.deleting", f"my-step-20.3.{ATTEMPT}", "",
    ],
)  # fmt: skip
def test_names_that_stepseal_never_gives_are_none(name: str) -> None:
    assert parse_folder(name) is None
