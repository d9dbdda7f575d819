"""Every verb, as text and as JSON, over a root with all kinds of steps, and its exit codes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from tests.cli.conftest import save_run

from stepseal.cli import _listing, main
from stepseal.cli._roots import open_root
from stepseal.layout import seal
from stepseal.steps import PosixSteps
from stepseal.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _run(*arguments: object) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def _json(code: int, *arguments: object) -> Any:  # noqa: ANN401 - any JSON
    found, out, _ = _run(*arguments, "--json")
    assert found == code

    def refuse(constant: str) -> None:
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(out, parse_constant=refuse)


def test_ls_shows_every_state(eventful_root: Path) -> None:
    code, out, _ = _run("ls", eventful_root)
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert {number: lines[number].split()[1] for number in lines if number.isdigit()} == {
        "10": "committed", "15": "committed", "20": "committed", "30": "committed",
        "40": "damaged", "50": "foreign", "51": "foreign", "52": "foreign",
    }  # fmt: skip
    assert "outside the lineage" in lines["15"]
    assert "outside the lineage" not in lines["10"] + lines["20"] + lines["30"]
    assert "manifest.json" in lines["40"]
    assert "loss=0.1" in lines["10"]
    assert "bad=nan" in lines["10"]
    assert "#nice" in lines["10"]
    assert "foreign, left alone: my-checkpoint" in out
    assert "foreign, left alone: step-060" in out


def test_ls_as_json_has_the_same_facts(eventful_root: Path) -> None:
    found = _json(0, "ls", eventful_root)
    assert found["root"] == str(eventful_root)
    assert found["incarnation"] == 3
    assert found["foreign"] == ["my-checkpoint", "step-060"]
    steps = {step["step"]: step for step in found["steps"]}
    assert [number for number, step in steps.items() if step.get("in_lineage")] == [10, 20, 30]
    assert steps[15]["in_lineage"] is False
    assert steps[10]["metrics"] == {"loss": 0.1, "bad": "nan"}
    assert steps[10]["size_bytes"] == sum(
        path.stat().st_size
        for path in (eventful_root / "step-10").rglob("*")
        if path.is_file() and path.name != "manifest.json"
    )
    assert steps[40]["state"] == "damaged"
    assert "symlink" in steps[52]["problem"]


def test_show_takes_the_newest_step_of_the_lineage(eventful_root: Path) -> None:
    code, out, _ = _run("show", eventful_root)
    assert code == 0
    facts = dict(line.split("  ", 1) for line in out.split("\n\n")[0].splitlines())
    assert facts["step"].strip() == "30"
    assert facts["descends from"].strip() == "step 20"
    assert facts["cut policy_version"].strip() == "30"
    assert "counters   tree     global" in out
    assert _json(0, "show", eventful_root) == _json(0, "show", eventful_root, "step-30")


def test_show_lists_tensors_on_request(eventful_root: Path) -> None:
    assert "weight" not in _run("show", eventful_root, 10)[1]
    _, out, _ = _run("show", eventful_root, 10, "--tensors")
    assert "weight  float32  3x4    48 B  1" in out
    tensors = _json(0, "show", eventful_root, 10, "--tensors")["tensors"]
    assert [(t["name"], t["dtype"], t["shape"], t["size_bytes"]) for t in tensors] == [
        ("bias", "float32", [3], 12),
        ("weight", "float32", [3, 4], 48),
    ]
    assert tensors[1]["boxes"] == [{"participant": "trainer/0", "offsets": [0, 0], "sizes": [3, 4]}]


def test_show_as_json_is_the_manifest(eventful_root: Path) -> None:
    found = _json(0, "show", eventful_root, 15)
    written = json.loads((eventful_root / "step-15" / "manifest.json").read_text())["body"]
    for key in ("step", "attempt", "run_id", "participants", "cut", "tags", "metrics", "kind"):
        assert found[key] == written[key], key


@pytest.mark.parametrize(
    ("step", "code"),
    [("40", 3), ("50", 4), ("51", 4), ("52", 4), ("99", 4), ("060", 2), ("-1", 2), ("x", 2)],
)
def test_what_is_no_good_step_has_its_exit_code(eventful_root: Path, step: str, code: int) -> None:
    found, out, err = _run("show", eventful_root, "--", step)
    assert (found, out) == (code, "")
    assert err.startswith("stepseal: step")
    if code != 3:
        assert _run("verify", eventful_root, "--", step)[0] == code


def test_verify_checks_all_steps_and_names_the_damage(eventful_root: Path) -> None:
    code, out, err = _run("verify", eventful_root)
    assert (code, err) == (3, "")
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.split(" (")[0] for line in lines] == [
        "step 10: whole", "step 15: whole", "step 20: damaged", "step 30: whole",
        "step 40: damaged",
    ]  # fmt: skip
    assert "  damage: __0_0.distcp: model." in out
    assert "  damage: manifest.json: " in out


def test_verify_as_json_and_of_chosen_steps(eventful_root: Path) -> None:
    found = _json(3, "verify", eventful_root, 20, 30, 40)
    assert [(step["step"], step["state"]) for step in found["steps"]] == [
        (20, "damaged"), (30, "whole"), (40, "damaged"),
    ]  # fmt: skip
    assert [f["path"] for step in found["steps"] for f in step["findings"]] == [
        "__0_0.distcp",
        "manifest.json",
    ]
    whole = _json(0, "verify", eventful_root, "latest", 10)
    assert [(step["step"], step["findings"]) for step in whole["steps"]] == [(30, []), (10, [])]


def test_extra_files_are_shown_but_are_no_damage(tmp_path: Path) -> None:
    save_run(tmp_path, 1)
    (tmp_path / "step-1" / "notes.txt").write_text("mine")
    code, out, _ = _run("verify", tmp_path)
    assert code == 0
    assert "step 1: whole" in out
    assert "  extra: notes.txt: " in out


@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
def test_no_such_root(tmp_path: Path, verb: str) -> None:
    for path in (tmp_path / "none", tmp_path):
        code, out, err = _run(verb, path)
        assert (code, out) == (10, "")
        assert "root" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
def test_a_root_without_steps_matches_nothing(tmp_path: Path, verb: str) -> None:
    save_run(tmp_path)
    code, out, err = _run(verb, tmp_path)
    assert (code, out) == (4, "")
    assert "step" in err
    if verb != "show":
        assert _json(4, verb, tmp_path)["steps"] == []


@pytest.mark.parametrize("verb", ["ls", "show", "verify"])
def test_a_root_that_cannot_be_read(tmp_path: Path, verb: str) -> None:
    save_run(tmp_path, 1)
    (tmp_path / "file").write_text("mine")
    assert _run(verb, tmp_path / "file")[0] == 2
    marker = tmp_path / "stepseal.json"
    marker.write_bytes(seal({"format_version": 2, "run_id": "0" * 32}))
    assert _run(verb, tmp_path)[0] == 1
    marker.write_bytes(b"{}")
    assert _run(verb, tmp_path)[0] == 3
    marker.unlink()
    code, _, err = _run(verb, tmp_path)
    assert code == 3
    assert f"{tmp_path} has steps up to step-1 (1 in all), but no stepseal.json" in err
    os.mkfifo(marker)
    assert _run(verb, tmp_path)[0] == 3
    assert _run(verb, "x" * 5000)[0] == 1


def test_a_part_document_that_is_damaged_makes_the_step_damaged(tmp_path: Path) -> None:
    save_run(tmp_path, 1, 2)
    (tmp_path / "step-2" / "parts" / "trainer" / "0.json").write_text("{}")
    first, second = _json(0, "ls", tmp_path)["steps"]
    assert (first["state"], first["problem"]) == ("committed", "")
    assert (second["state"], second["size_bytes"]) == ("damaged", None)
    assert "parts/trainer/0.json" in second["problem"]
    shown = _json(0, "show", tmp_path, 2)
    assert (shown["state"], shown["problem"]) == ("damaged", second["problem"])
    lines = _run("ls", tmp_path)[1].splitlines()
    assert lines[2].split()[:2] == ["2", "damaged"]
    assert "parts/trainer/0.json" in lines[2]
    assert "damaged: step 2 is damaged: step-2/parts/trainer/0.json" in _run("show", tmp_path, 2)[1]


@pytest.mark.parametrize("again", [False, True])
def test_a_size_that_cannot_be_looked_up_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    save_run(tmp_path, 1)
    if again:  # what is damaged is looked at once more
        (tmp_path / "step-1" / "parts" / "trainer" / "0.json").write_text("{}")
    looks: list[str] = []

    def refused(verb: str, key: str) -> bool:
        if (verb, key) == ("open_read", "step-1/manifest.json"):
            looks.append(key)
            return len(looks) > 1
        return not again and verb == "open_read" and "/parts/" in key

    _with_faults(monkeypatch, tmp_path, refused)
    (row,) = _json(0, "ls", tmp_path)["steps"]
    assert (row["state"], row["size_bytes"]) == ("committed", None)
    assert row["problem"].startswith("size not known: ")
    assert "EIO" in row["problem"]
    looks.clear()
    _with_faults(monkeypatch, tmp_path, refused)
    assert "size not known" in _run("ls", tmp_path)[1]


@pytest.mark.parametrize("superseded", [False, True])
def test_a_step_that_goes_away_under_a_listing_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, superseded: bool
) -> None:
    save_run(tmp_path, 1, 2)

    def goes(verb: str, key: str) -> bool:
        if verb == "open_read" and key.startswith("step-1/parts/"):
            (tmp_path / "step-1").rename(tmp_path / "gone")
            if superseded:
                (tmp_path / "step-2").rename(tmp_path / "step-1")
        return False

    _with_faults(monkeypatch, tmp_path, goes)
    row = _json(0, "ls", tmp_path)["steps"][0]
    assert (row["state"], row["size_bytes"]) == ("committed", None)
    assert "pruned or superseded" in row["problem"]


def _with_faults(
    monkeypatch: pytest.MonkeyPatch, root: Path, strikes: Callable[[str, str], bool]
) -> None:
    """Let the listing read through a storage that refuses what is chosen."""
    inner = open_root(str(root))
    faulty = FaultyStorage(
        inner.steps.storage, [Fault(strikes, Fail(errno.EIO), sticky=True)], reads=True
    )
    opened = dataclasses.replace(inner, steps=PosixSteps(faulty))
    monkeypatch.setattr(_listing, "open_root", lambda _path: opened)


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENAMETOOLONG, "shorter path"), (errno.ELOOP, "symlinks")]
)
def test_a_path_that_leads_nowhere_says_why(tmp_path: Path, number: int, advice: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / ("loop" if number == errno.ELOOP else "x" * 300)
    code, _, err = _run("ls", path)
    assert code == 1
    assert os.strerror(number) in err
    assert advice in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", ""],
        ["show", ""],
        ["verify", ""],
        ["doctor", ""],
        ["pin", "", "1"],
        ["unpin", "", "1"],
        ["prune", "", "--keep-latest", "1"],
    ],
)
def test_an_empty_path_is_not_the_current_directory(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(*arguments)
    assert code == 2
    assert "root '' refused" in err


def test_a_root_that_may_not_be_read_is_a_failure_and_no_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        return False

    monkeypatch.setattr(os, "access", refuse)  # root, who runs these tests, may read anything
    (tmp_path / "root").mkdir()
    assert _run("ls", tmp_path / "root")[0] == 10
    assert _run("import", "--from", "dcp", tmp_path, tmp_path / "new", "--step", 1)[0] == 4


def test_usage() -> None:
    for arguments in ((), ("nonsense",), ("ls",), ("ls", ".", "--nonsense"), ("show",)):
        code, out, err = _run(*arguments)
        assert (code, out) == (2, "")
        assert "Usage: " in err
    assert _run("--version")[1].startswith("stepseal, version ")
    for verb in ("ls", "show", "verify"):
        assert "--json" in _run(verb, "-h")[1]


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    save_run(tmp_path, 1)
    (tmp_path / "step-\x1b[2J\n99  committed").mkdir()
    (tmp_path / os.fsdecode(b"step-\xff")).mkdir()
    code, out, _ = _run("ls", tmp_path)
    assert code == 0
    assert "\x1b" not in out
    assert r"step-\x1b[2J\n99" in out
    assert r"step-\udcff" in out
    assert len(out.splitlines()) == 4
    assert len(_json(0, "ls", tmp_path)["foreign"]) == 2
