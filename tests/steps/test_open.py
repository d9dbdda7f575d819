"""Which store serves a root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import InvalidInput, RootNotFound
from stepseal.steps import PosixSteps, locate_root, open_store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "uri", ["s3://bucket/run", "gs://bucket/run", "file:///runs/a", "az:/x", "hf://datasets/a"]
)
def test_a_uri_of_an_unknown_scheme_is_refused_and_nothing_is_made(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="URI of scheme") as caught:
        open_store(uri, create=True)
    assert caught.value.found == uri.split(":")[0]
    assert os.listdir() == []


@pytest.mark.parametrize("path", ["$SCRATCH/runs", "${SCRATCH}/runs"])
def test_a_shell_variable_is_refused_by_name(path: str) -> None:
    with pytest.raises(InvalidInput, match=r"shell variable \$\{?SCRATCH"):
        locate_root(path)


def test_the_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_root("~/runs/a") == str(tmp_path / "runs" / "a")


@pytest.mark.parametrize("name", ["a:b", "C:x", "price$", "a$b", "step~1"])
def test_other_names_are_paths(name: str, tmp_path: Path) -> None:
    assert locate_root(str(tmp_path / name)) == str(tmp_path / name)
    assert locate_root(tmp_path / name) == str(tmp_path / name)


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(InvalidInput):
        locate_root(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="found bytes"):
        locate_root(b"/runs")  # type: ignore[arg-type]


def test_a_store_is_made_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(RootNotFound):
        open_store(tmp_path / "root")
    assert isinstance(open_store(tmp_path / "root", create=True), PosixSteps)
    assert open_store(tmp_path / "root").entries() == ()


def test_a_root_that_others_can_write_says_so(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o777)
    (tmp_path / "root").chmod(0o777)
    assert "all users can write" in str(open_store(tmp_path / "root").writable_problem())
