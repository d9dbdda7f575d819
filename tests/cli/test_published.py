"""`ls`, `show` and `verify` of publications, in their root, by their folder, and copied."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from tests.cli.conftest import save_run

import stepseal as ss
from stepseal.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def run(code: int, *arguments: object) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout


def as_json(code: int, *arguments: object) -> Any:  # noqa: ANN401 - any JSON
    return json.loads(run(code, *arguments, "--json"))


def publish(root: Path, *versions: int) -> None:
    with ss.Checkpointer(root, publish_keep=9) as ckpt:
        ckpt.add("model", torch.nn.Linear(4, 3))
        ckpt.add("counters", {"seen": 0})
        ckpt.restore()
        for version in versions:
            ckpt.publish(version, components=["model"], metrics={"reward": 0.5}, tags=["live"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with steps 1 and 2, versions 3 and 12, and folders beside them that are none."""
    save_run(tmp_path, 1, 2)
    publish(tmp_path, 3, 12)
    (tmp_path / "published/v-13").mkdir()
    (tmp_path / "published/notes").mkdir()
    return tmp_path


def damage(root: Path, version: int) -> None:
    payload = root / f"published/v-{version}/__0_0.distcp"
    data = bytearray(payload.read_bytes())
    data[-300] ^= 1
    payload.write_bytes(data)


def test_ls_lists_them_after_the_steps(root: Path) -> None:
    steps, versions = run(0, "ls", root).split("\n\n")
    assert [line.split()[0] for line in steps.splitlines()] == ["STEP", "1", "2"]
    rows = [line.split() for line in versions.splitlines()]
    assert [row[:2] for row in rows] == [
        ["VERSION", "STATE"], ["3", "committed"], ["12", "committed"], ["13", "foreign"],
    ]  # fmt: skip
    assert rows[1][-3:] == ["reward=0.5", "model,", "#live"]


def test_ls_as_json_has_the_same_facts(root: Path) -> None:
    found = as_json(0, "ls", root)
    assert [row["step"] for row in found["steps"]] == [1, 2]
    assert found["foreign"] == []
    assert [(row["version"], row["state"]) for row in found["published"]] == [
        (3, "committed"), (12, "committed"), (13, "foreign"),
    ]  # fmt: skip
    first = found["published"][0]
    assert first["components"] == ["model"]
    assert first["metrics"] == {"reward": 0.5}
    assert first["size_bytes"] > 0


def test_a_root_with_publications_alone_is_not_empty(tmp_path: Path) -> None:
    publish(tmp_path, 3)
    assert "3" in run(0, "ls", tmp_path)
    assert run(0, "verify", tmp_path).startswith("version 3: whole")
    run(4, "show", tmp_path)  # `latest` is a step


@pytest.mark.parametrize("name", ["v-3", "published/v-3"])
def test_show_and_verify_find_one_by_its_name(root: Path, name: str) -> None:
    shown = run(0, "show", root, name, "--tensors")
    assert shown.startswith("version ")
    assert "weights, not resumable" in shown
    assert "bias" in shown
    assert "counters" not in shown
    assert run(0, "verify", root, name).startswith("version 3: whole (")


def test_show_and_verify_take_its_folder_and_a_copy(root: Path) -> None:
    copy = root.parent / "copy"
    shutil.copytree(root / "published/v-3", copy)
    for folder in (root / "published/v-3", copy):
        assert run(0, "verify", folder).startswith("version 3: whole (")
        assert as_json(0, "show", folder)["kind"] == "weights"
    shutil.rmtree(copy)


def test_verify_checks_all_of_a_root(root: Path) -> None:
    found = as_json(0, "verify", root)
    assert [one["step"] for one in found["steps"]] == [1, 2]
    assert [one["version"] for one in found["published"]] == [3, 12]
    damage(root, 12)
    found = as_json(3, "verify", root)
    assert [one["state"] for one in found["published"]] == ["whole", "damaged"]
    run(3, "verify", root, "v-12")
    run(3, "verify", root / "published/v-12")
    run(0, "verify", root, "v-3", "1")


@pytest.mark.parametrize("name", ["v-4", "v-13"])
def test_what_is_not_there_is_not_found(root: Path, name: str) -> None:
    run(4, "show", root, name)
    run(4, "verify", root, name)


def test_a_name_of_no_version_is_refused(root: Path) -> None:
    done = CliRunner().invoke(main, ["show", str(root), "v-03"])
    assert done.exit_code == 2
    assert "v-7 of a publication" in done.stderr


def test_prune_leaves_them(root: Path) -> None:
    run(0, "prune", root, "--keep-latest", "1")
    found = as_json(0, "ls", root)
    assert [row["step"] for row in found["steps"]] == [2]
    assert [row["version"] for row in found["published"]] == [3, 12, 13]
