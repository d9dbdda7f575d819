"""A step with files of an engine: every damage is found before an engine sees them."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import pytest
from tests.transfer._engine_folder import manifest_with, write_parts
from tests.transfer._steps import KEY

from stepseal.errors import Corrupt
from stepseal.layout import ComponentEntry, Manifest
from stepseal.transfer import StepReader, check_external, verify_step
from stepseal.transfer._external import external_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.storage import LocalStorage, Storage


@pytest.fixture
def step(local: LocalStorage, engine: Path) -> tuple[LocalStorage, Path, Manifest]:
    for name in ("a", "b", "c", "d/e"):
        (engine / name).parent.mkdir(exist_ok=True)
        (engine / name).write_bytes(name.encode() * 7)
    return local, engine, write_parts(local)


def check(storage: Storage, manifest: Manifest, share: tuple[int, int] = (0, 1)) -> None:
    reader = StepReader(storage, KEY, manifest)
    check_external(storage, KEY, manifest, reader, "engine", share=share)


def test_a_whole_step_is_checked_by_any_number(step: tuple[LocalStorage, Path, Manifest]) -> None:
    storage, _, manifest = step
    assert verify_step(storage, KEY, manifest) == ()
    for num in (1, 2, 3, 7):
        for number in range(num):
            check(storage, manifest, (number, num))
    reader = StepReader(storage, KEY, manifest)
    paths = [entry.path.split("engine/")[1] for entry in external_files(reader, manifest, "engine")]
    assert paths == ["a", "b", "c", "d/e"]
    assert external_files(reader, manifest, "eng") == []


def _as_link(engine: Path) -> None:
    (engine / "b").unlink()
    (engine / "b").symlink_to("a")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda engine: (engine / "b").write_bytes(b"B" + b"b" * 6), "expected digest"),
    "shorter": (lambda engine: os.truncate(engine / "b", 6), "expected 7 bytes, found 6"),
    "missing": (lambda engine: (engine / "b").unlink(), "found nothing"),
    "all missing": (lambda engine: engine.rename(engine.parent / "x"), "found nothing"),
    "symlink": (_as_link, "expected a regular file, found symlink"),
    "extra": (lambda engine: (engine / "x.pt").write_bytes(b"evil"), "found one"),
    "extra link": (lambda engine: (engine / "x").symlink_to("/etc"), "found one"),
    "extra below": (lambda engine: (engine / "d" / "x").write_bytes(b"evil"), "found one"),
    "odd name": (lambda engine: (engine / "x\n\x1b").write_bytes(b"evil"), "found one"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found_before_an_engine_sees_it(
    step: tuple[LocalStorage, Path, Manifest], damage: str
) -> None:
    storage, engine, manifest = step
    harm, text = DAMAGES[damage]
    harm(engine)
    found = []
    for number in range(3):
        try:
            check(storage, manifest, (number, 3))
        except Corrupt as error:
            found.append(str(error))
    assert found
    assert all(text in message and message.isprintable() for message in found)
    if damage != "flipped":
        assert len(found) == 3
    assert verify_step(storage, KEY, manifest) != ()


def test_a_file_that_two_parts_list_is_damage(step: tuple[LocalStorage, Path, Manifest]) -> None:
    storage, _, manifest = step

    reader = StepReader(storage, KEY, manifest)
    (first, *_) = external_files(reader, manifest, "engine")
    twice = dataclasses.replace(manifest, files=(*manifest.files, first))
    with pytest.raises(Corrupt, match="some listed twice"):
        check(storage, twice)


def test_an_external_component_without_files_is_damage(
    step: tuple[LocalStorage, Path, Manifest],
) -> None:
    storage, _, manifest = step
    other = ComponentEntry("other", "external", "sharded", {}, True, {})
    found = manifest_with(manifest, *manifest.components, other)
    reader = StepReader(storage, KEY, found)
    with pytest.raises(Corrupt, match="none listed"):
        check_external(storage, KEY, found, reader, "other", share=(0, 1))
    messages = {(f.path, f.message) for f in verify_step(storage, KEY, found)}
    assert ("external/other", "expected files of an engine, found none listed") in messages


def test_files_of_a_component_of_another_kind_are_damage(
    step: tuple[LocalStorage, Path, Manifest],
) -> None:
    storage, _, manifest = step
    tree = ComponentEntry("engine", "tensors", "replicated", {}, True, {})
    found = verify_step(storage, KEY, manifest_with(manifest, tree))
    assert ("external/engine", "expected files of external components only") in {
        (finding.path, finding.message) for finding in found
    }
