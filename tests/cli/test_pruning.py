from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from stepseal.cli import _pruning, main
from stepseal.cli._roots import open_root
from stepseal.commit._claims import claim
from stepseal.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(eventful_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(eventful_root, tmp_path / "root", symlinks=True)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def steps_of(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.name.startswith("step-")}


def actions(text: str) -> dict[int, Any]:
    return {step["step"]: step["action"] for step in json.loads(text)["steps"]}


def test_a_dry_run_gives_a_reason_per_step_and_changes_nothing(root: Path) -> None:
    before = sorted(path.name for path in root.rglob("*"))
    text = run("prune", root, "--keep-latest", 1, "--dry-run")
    for word in ("step 10", "would remove", "among the newest 1", "outside the lineage", "damaged"):
        assert word in text
    found = json.loads(run("prune", root, "--keep-latest", 1, "--dry-run", "--json"))
    assert all(step["reasons"] for step in found["steps"])
    assert sorted(path.name for path in root.rglob("*")) == before


def test_only_what_the_dry_run_named_is_removed(root: Path) -> None:
    before = steps_of(root)
    arguments = ("prune", root, "--keep-latest", 1, "--superseded-grace-h", 0, "--json")
    planned = actions(run(*arguments, "--dry-run"))
    assert actions(run(*arguments)) == {
        step: "removed" if action == "would remove" else action for step, action in planned.items()
    }
    gone = {f"step-{step}" for step, action in planned.items() if action == "would remove"}
    assert gone
    assert before - steps_of(root) == gone
    assert list((root / ".stepseal" / "trash").iterdir()) == []
    assert "whole" in run("verify", root, 30)


def test_what_could_not_be_removed_is_not_called_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"step-15.2.{'a' * 32}.{1000:08x}{'0' * 8}"
    (root / ".stepseal" / "superseded" / name).mkdir(parents=True)
    inner = open_root(str(root))
    bad = [Fault(lambda verb, _key: verb == "rename", Fail(errno.EIO), sticky=True)]
    faulty = dataclasses.replace(inner, storage=FaultyStorage(inner.storage, bad))
    monkeypatch.setattr(_pruning, "open_root", lambda *_, **__: faulty)
    found = json.loads(run("prune", root, "--keep-latest", 1, "--json", code=1))
    assert [aside["action"] for aside in found["superseded"]] == ["not removed"]
    assert {step["action"] for step in found["steps"]} == {"keep", "not removed"}
    assert found["failures"]


def test_a_job_that_claims_the_root_meanwhile_stops_a_prune(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = steps_of(root)
    inner = open_root(str(root))

    def claim_first(verb: str, key: str) -> bool:
        if verb == "rename" and key.startswith("step-"):
            claim(inner.storage, None)
        return False

    faulty = dataclasses.replace(
        inner, storage=FaultyStorage(inner.storage, [Fault(claim_first, Fail(errno.EIO))])
    )
    monkeypatch.setattr(_pruning, "open_root", lambda *_, **__: faulty)
    done = CliRunner().invoke(main, ["prune", str(root), "--keep-latest", "1"])
    assert done.exit_code == 1
    assert "Run it again" in done.stderr
    assert steps_of(root) == before


def test_damage_that_sizes_do_not_show_never_counts_as_the_last_good_step(root: Path) -> None:
    payload = root / "step-30" / "__0_0.distcp"
    data = bytearray(payload.read_bytes())
    data[-300] ^= 1
    payload.write_bytes(data)
    text = run("prune", root, "--keep-latest", 1, "--json")
    assert actions(text)[10] == "keep"
    assert "step-10" in steps_of(root)


def test_pins(root: Path) -> None:
    assert "pinned" in run("pin", root, "step-10", "--reason", "paper")
    assert "already" in run("pin", root, 10)
    listed = json.loads(run("ls", root, "--json"))["steps"]
    assert [step["step"] for step in listed if step.get("pinned")] == [10]
    assert "pinned" in run("ls", root)
    assert actions(run("prune", root, "--keep-latest", 1, "--json"))[10] == "keep"
    assert "unpinned" in run("unpin", root, 10)
    run("unpin", root, 10, code=4)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("prune",), 2),
        (("prune", "--keep-latest", 0), 2),
        (("prune", "--keep-latest", "all"), 2),
        (("pin", "latest"), 2),
        (("pin", "step-010"), 2),
        (("pin", 12345), 4),
        (("pin", 50), 4),
        (("pin", 40), 4),
        (("unpin", "x"), 2),
    ],
)
def test_bad_input_changes_nothing(root: Path, arguments: tuple[object, ...], code: int) -> None:
    before = sorted(path.name for path in root.rglob("*"))
    run(arguments[0], root, *arguments[1:], code=code)
    assert sorted(path.name for path in root.rglob("*")) == before


def test_no_such_root(tmp_path: Path) -> None:
    for arguments in (("prune", "--keep-latest", "1"), ("pin", "1"), ("unpin", "1")):
        run(arguments[0], tmp_path / "nowhere", *arguments[1:], code=10)


def test_where_others_can_change_names_steps_go_only_on_request(root: Path) -> None:
    for area in ("trash", "pins"):
        (root / ".stepseal" / area).chmod(0o777)
    before = steps_of(root)
    found = json.loads(run("prune", root, "--keep-latest", 1, "--json", "--dry-run"))
    assert any(step["action"] == "would remove" for step in found["steps"])
    run("prune", root, "--keep-latest", 1, code=1)
    run("pin", root, 10, code=2)
    assert steps_of(root) == before
    run("pin", root, 30, "--allow-shared")
    run("prune", root, "--keep-latest", 1, "--allow-shared")
    assert steps_of(root) < before


def test_a_root_that_others_can_change_is_read_without_a_lease(root: Path) -> None:
    (root / ".stepseal" / "leases").chmod(0o777)
    root.chmod(0o777)
    assert "whole" in run("verify", root, 30)
