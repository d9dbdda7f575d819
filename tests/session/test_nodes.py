"""Which node a rank is on: what it says, and how rank 0 numbers what all said."""

from __future__ import annotations

from typing import Any

import pytest

import stepseal as ss
from stepseal.session import _host
from stepseal.session._nodes import node_text, numbered, packed, unpacked


def test_what_the_user_says_comes_before_torchrun_and_that_before_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any,  # noqa: ANN401 - a path
) -> None:  # fmt: skip
    monkeypatch.setenv("GROUP_RANK", "3")
    assert node_text("left") == "named left"
    assert node_text(0) == "named 0"
    assert node_text(None) == "GROUP_RANK 3"
    monkeypatch.delenv("GROUP_RANK")
    assert node_text(None).startswith("boot ")
    monkeypatch.setattr(_host, "_BOOT_ID", tmp_path / "gone")
    assert node_text(None) == ""


@pytest.mark.parametrize("node", ["", True, 1.5, ("a",)])
def test_what_names_no_node_is_refused_before_anything_is_made(node: Any, tmp_path: Any) -> None:  # noqa: ANN401
    with pytest.raises(ss.errors.InvalidInput, match="node: expected a name or a number"):
        ss.Checkpointer(tmp_path / "root", node=node)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("texts", "nodes"),
    [
        (["GROUP_RANK 7", "GROUP_RANK 7", "GROUP_RANK 2"], (0, 0, 1)),
        (["named a", "named b", "named a"], (0, 1, 0)),
        (["GROUP_RANK 0", "boot x"], ()),
        (["boot x", ""], ()),
    ],
)
def test_nodes_are_numbered_by_their_lowest_rank_if_all_name_theirs_in_one_way(
    texts: list[str], nodes: tuple[int, ...]
) -> None:
    assert numbered(texts) == nodes


def test_neighbours_on_one_node_take_one_place_on_the_way() -> None:
    nodes = (0,) * 8 + (1,) * 8 + (0,)
    assert packed(nodes) == [[0, 8], [1, 8], [0, 1]]
    assert unpacked(packed(nodes)) == nodes


def test_a_job_of_one_is_one_node(tmp_path: Any) -> None:  # noqa: ANN401 - a path
    state = {"n": 1}
    with ss.Checkpointer(tmp_path / "root") as ckpt:
        ckpt.add("cache", state, sharing=ss.PER_NODE)
        ckpt.save(1).wait()
        state["n"] = 2
        assert ckpt.restore() is not None
    assert state == {"n": 1}
