"""Loading imports, unpickles and executes nothing that a checkpoint names, and opens no file
outside it: whatever the checkpoint holds, in every way of loading, as Python's own audit tells.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.campaigns.harness._small_job import new_folder
from tests.security._forge import NEWEST, OLDER, Forgery
from tests.security.make_corpus import CORPUS, WITNESS, plant, small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # one process loads everything


def test_corpus_is_what_its_script_makes() -> None:
    kept = {path.name: path.read_bytes() for path in CORPUS.glob("*--*")}
    assert kept == small()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("pickle--*")), ids=lambda path: path.name)
def test_every_hostile_pickle_bites_whoever_unpickles_it(path: Path, tmp_path: Path) -> None:
    program = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", program, path], cwd=tmp_path, check=True)
    assert (tmp_path / WITNESS).is_dir()


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    """Return what a process that loaded the whole corpus, under an audit hook, tells."""
    with new_folder() as folder:
        roots, home = folder / "roots", folder / "home"
        home.mkdir()
        roots.mkdir()
        Forgery(roots / "0-warm")
        for path in sorted(CORPUS.glob("*--*")):
            name = path.name
            places = [name]
            if name.startswith("header--"):
                places.append(name.replace("header--", "header--index-"))
            for place in places:
                plant(Forgery(roots / place), place, path.read_bytes())
        done = subprocess.run(
            [sys.executable, "-m", "tests.security._loader", str(roots)],
            cwd=home,
            env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        yield json.loads(done.stdout)


def test_nothing_is_imported_unpickled_executed_or_opened_elsewhere(found: dict[str, Any]) -> None:
    assert not found["bad"], "\n".join(found["bad"][:20])
    assert found["num_events"] > 50_000  # the hook was there


def test_no_hostile_pickle_is_loaded(found: dict[str, Any]) -> None:
    assert found["in_cwd"] == []
    for name, steps in found["came_to"].items():
        if name.startswith("pickle--"):  # copies for stock tools are bytes like any others
            assert steps == [NEWEST, NEWEST], name


def test_whatever_is_wrong_is_said_with_a_typed_error(found: dict[str, Any]) -> None:
    assert not found["defects"], found["defects"][0]


def test_no_error_could_drive_a_terminal(found: dict[str, Any]) -> None:
    assert found["said"]
    assert [text for text in found["said"] if not text.isprintable()] == []


def test_a_hostile_step_is_never_restored(found: dict[str, Any]) -> None:
    assert found["came_to"]["0-warm"] == [NEWEST, NEWEST]
    harmless = {"manifest--options-deep", "manifest--tag-drives-the-terminal"}
    for name, came_to in found["came_to"].items():
        if name in harmless or name.startswith(("0-warm", "pickle--")) or came_to is None:
            continue
        assert came_to == [OLDER, OLDER] or isinstance(came_to, str), (name, came_to)
