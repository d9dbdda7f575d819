from __future__ import annotations

import dataclasses
import errno
import io
import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import stepseal as ss
from stepseal.cli import _pruning, main
from stepseal.cli._pruning import prune_root
from stepseal.cli._roots import open_root
from stepseal.retention import Retention, latest
from stepseal.steps import PosixSteps
from stepseal.steps._claims import claim
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
    faulty = dataclasses.replace(inner, steps=PosixSteps(FaultyStorage(inner.steps.storage, bad)))
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
            claim(inner.steps.storage, None, now_s=1.8e9)
        return False

    faulty = dataclasses.replace(
        inner,
        steps=PosixSteps(FaultyStorage(inner.steps.storage, [Fault(claim_first, Fail(errno.EIO))])),
    )
    monkeypatch.setattr(_pruning, "open_root", lambda *_, **__: faulty)
    done = CliRunner().invoke(main, ["prune", str(root), "--keep-latest", "1"])
    assert done.exit_code == 1
    assert "Run the command again" in done.stderr
    assert steps_of(root) == before


def test_damage_that_sizes_do_not_show_never_counts_as_the_last_good_step(root: Path) -> None:
    payload = root / "step-30" / "__0_0.distcp"
    data = bytearray(payload.read_bytes())
    data[-300] ^= 1
    payload.write_bytes(data)
    arguments = ("prune", root, "--keep-latest", 1, "--json")
    assert actions(run(*arguments, "--dry-run", "--no-verify"))[10] == "would remove"
    planned = json.loads(run(*arguments, "--dry-run"))
    assert actions(json.dumps(planned))[10] == "keep"
    done = json.loads(run(*arguments))
    assert done["steps"] == planned["steps"]
    assert "step-10" in steps_of(root)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bytes_are_counted_on_a_terminal_while_a_step_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    prune_root(
        str(root), keep_latest=1, superseded_grace_s=0, dry_run=True, verify=True,
        allow_shared=False,
    )  # fmt: skip
    assert "verifying step 30 " in terminal.getvalue()


def test_pins(root: Path) -> None:
    assert "pinned" in run("pin", root, "step-10", "--reason", "paper")
    assert "already; its first reason stays: paper" in run("pin", root, 10, "--reason", "mine")
    assert run("pin", root, 10, "--reason", "paper").endswith("already\n")
    listed = json.loads(run("ls", root, "--json"))["steps"]
    assert [step["step"] for step in listed if step.get("pinned")] == [10]
    assert [step["pin"] for step in listed if step["pinned"]] == ["paper"]
    assert "pinned: paper" in run("ls", root)
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


def trash_of(root: Path, *arguments: object) -> tuple[dict[int, str], list[tuple[str, str]]]:
    """Prune, and return what became of the steps, and of the folders in the trash."""
    text = run("prune", root, "--json", *arguments)
    trash = json.loads(text)["trash"]
    assert all(folder["reasons"] for folder in trash)
    return actions(text), [(folder["name"].split(".")[0], folder["action"]) for folder in trash]


@pytest.fixture
def young(tmp_path: Path) -> Path:
    """A root with the steps 1, 2 and 3, the first of which its job has put into the trash."""
    root = tmp_path / "young"
    keep = Retention(latest(2), trash_grace_s=1e6)
    with ss.Checkpointer(root, mode="sync", keep=keep) as checkpointer:
        checkpointer.add("counters", {"seen": 0})
        checkpointer.restore()
        for step in (1, 2, 3):
            checkpointer.save(step).wait()
    return root


def in_trash(root: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in (root / ".stepseal" / "trash").iterdir())


def test_what_a_job_keeps_in_the_trash_is_shown_and_left_alone_for_a_day(young: Path) -> None:
    kept = [("step-1", "keep")]
    assert in_trash(young) == ["step-1"]
    two = ("--keep-latest", 2)
    assert trash_of(young, *two, "--dry-run") == ({2: "keep", 3: "keep"}, kept)
    assert trash_of(young, *two) == ({2: "keep", 3: "keep"}, kept)
    assert "kept in the trash for 24.0 h" in run("prune", young, *two)
    one = ("--keep-latest", 1)
    assert trash_of(young, *one) == ({2: "removed", 3: "keep"}, kept)
    assert in_trash(young) == ["step-1"]


def test_the_trash_has_a_grace_on_request(young: Path) -> None:
    arguments = ("--keep-latest", 1, "--trash-grace-h", 0.5)
    kept = [("step-1", "keep")]
    assert trash_of(young, *arguments, "--dry-run") == (
        {2: "would move to trash", 3: "keep"}, kept,
    )  # fmt: skip
    assert trash_of(young, *arguments) == ({2: "moved to trash", 3: "keep"}, kept)
    assert in_trash(young) == ["step-1", "step-2"]
    arguments = ("--keep-latest", 1, "--trash-grace-h", 0)
    gone = [("step-1", "would remove"), ("step-2", "would remove")]
    assert trash_of(young, *arguments, "--dry-run")[1] == gone
    assert in_trash(young) == ["step-1", "step-2"]
    assert trash_of(young, *arguments)[1] == [("step-1", "removed"), ("step-2", "removed")]
    assert in_trash(young) == []


def test_what_is_pinned_comes_out_of_the_trash(young: Path) -> None:
    (young / ".stepseal" / "pins" / "step-1.json").write_text("{}")
    arguments = ("--keep-latest", 2)
    assert trash_of(young, *arguments, "--dry-run")[1] == [("step-1", "would put back")]
    assert trash_of(young, *arguments)[1] == [("step-1", "put back")]
    assert "step-1" in steps_of(young)


def test_what_does_not_come_out_of_the_trash_is_not_called_put_back(
    young: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (young / ".stepseal" / "pins" / "step-1.json").write_text("{}")
    inner = open_root(str(young))
    bad = [Fault(lambda verb, _key: verb == "rename", Fail(errno.EIO), sticky=True)]
    faulty = dataclasses.replace(inner, steps=PosixSteps(FaultyStorage(inner.steps.storage, bad)))
    monkeypatch.setattr(_pruning, "open_root", lambda *_, **__: faulty)
    found = json.loads(run("prune", young, "--keep-latest", 2, "--json", code=1))
    assert [folder["action"] for folder in found["trash"]] == ["not put back"]


def test_what_was_moved_but_not_deleted_is_called_that(
    young: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = open_root(str(young))
    bad = [Fault(lambda verb, key: verb == "sync_dir" and "trash" in key, Fail(errno.EIO))]
    faulty = dataclasses.replace(inner, steps=PosixSteps(FaultyStorage(inner.steps.storage, bad)))
    monkeypatch.setattr(_pruning, "open_root", lambda *_, **__: faulty)
    found = json.loads(run("prune", young, "--keep-latest", 1, "--json", code=1))
    assert [step["action"] for step in found["steps"]] == ["moved to trash", "keep"]
    assert "not deleted" in found["steps"][0]["reasons"][-1]
    assert "Check the disk" in found["failures"][0]
    assert in_trash(young) == ["step-1", "step-2"]


def test_afterwards_latest_names_the_newest_step_that_is_left(root: Path) -> None:
    (root / "latest").write_text("step-30\n")
    shutil.rmtree(root / "step-30")
    run("prune", root, "--keep-latest", 1, "--dry-run")
    assert (root / "latest").read_text() == "step-30\n"
    run("prune", root, "--keep-latest", 1)
    assert (root / "latest").read_text() == "step-20\n"


def test_a_latest_that_cannot_be_moved_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "latest").write_text("step-31\n")
    fault = Fault(lambda verb, key: verb == "rename" and key.endswith("> latest"), Fail(errno.EIO))
    inner = open_root(str(root))
    faulty = FaultyStorage(inner.steps.storage, [fault])
    opened = dataclasses.replace(inner, steps=PosixSteps(faulty))
    monkeypatch.setattr(_pruning, "open_root", lambda *_, **__: opened)
    found = json.loads(run("prune", root, "--keep-latest", 1, "--json", code=1))
    assert "latest was not moved" in found["failures"][0]
