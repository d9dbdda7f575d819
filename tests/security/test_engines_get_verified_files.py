"""An engine may unpickle what it finds: it is never called on a folder with anything else in it."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import stepseal as ss
from stepseal import errors
from stepseal.layout import decode_manifest, encode_manifest, manifest_digest
from stepseal.steps import open_store

if TYPE_CHECKING:
    from collections.abc import Callable


class Unpickler:
    """An engine that loads every pickle in its folder, as real ones do."""

    def __init__(self) -> None:
        self.loaded: list[object] = []

    def save(self, folder: str) -> None:
        Path(folder, "a").mkdir()
        Path(folder, "a", "state.pkl").write_bytes(pickle.dumps({"good": 1}))

    def load(self, folder: str) -> None:
        for path in sorted(Path(folder).rglob("*.pkl")):
            self.loaded.append(pickle.loads(path.read_bytes()))


EVIL = b"cos\nmkdir\n(S'owned'\ntR."


def plant(folder: Path, _outside: Path) -> None:
    (folder / "b.pkl").write_bytes(EVIL)


def plant_deep(folder: Path, _outside: Path) -> None:
    (folder / "c" / "d").mkdir(parents=True)
    (folder / "c" / "d" / ".hidden.pkl").write_bytes(EVIL)


def replace_file(folder: Path, _outside: Path) -> None:
    (folder / "a" / "state.pkl").write_bytes(EVIL)


def link_file(folder: Path, outside: Path) -> None:
    (folder / "a" / "state.pkl").rename(outside / "state.pkl")
    (folder / "a" / "state.pkl").symlink_to(outside / "state.pkl")


def link_directory(folder: Path, outside: Path) -> None:
    shutil.move(folder / "a", outside / "a")
    (folder / "a").symlink_to(outside / "a")


def link_folder(folder: Path, outside: Path) -> None:
    shutil.move(folder, outside / "engine")
    folder.symlink_to(outside / "engine")


def link_above(folder: Path, outside: Path) -> None:
    shutil.move(folder.parent, outside / "external")
    folder.parent.symlink_to(outside / "external")


def a_fifo(folder: Path, _outside: Path) -> None:
    os.mkfifo(folder / "b.pkl")


ATTACKS = [
    plant, plant_deep, replace_file, link_file, link_directory, link_folder, link_above, a_fifo,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_engine_never_sees_what_was_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Callable[[Path, Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)  # where EVIL would leave its mark
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    with ss.Checkpointer(root) as ckpt:
        engine = Unpickler()
        ckpt.add("engine", ss.External(save=engine.save, load=engine.load))
        ckpt.save(1).wait()
    attack(root / "step-1" / "external" / "engine", outside)
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("engine", ss.External(save=engine.save, load=engine.load))
        with pytest.raises(errors.Corrupt):
            ckpt.restore(1)
        with pytest.raises(errors.NoResumableStep):
            ckpt.restore()
    with pytest.raises(errors.Corrupt):
        ss.load(root, step=1, engine=ss.External(save=engine.save, load=engine.load))
    assert engine.loaded == []
    assert not (tmp_path / "owned").exists()
    assert ss.open(root).step(1).verify() != ()


def test_the_attack_would_work_on_a_folder_that_nobody_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plant(tmp_path, tmp_path)
    Unpickler().load(str(tmp_path))
    assert (tmp_path / "owned").exists()


def test_a_manifest_cannot_turn_tensors_into_files_of_an_engine(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", torch.nn.Linear(1, 1))
        ckpt.save(1).wait()
    path = tmp_path / "step-1" / "manifest.json"
    found = decode_manifest(path.read_bytes())
    forged = [dataclasses.replace(one, kind="external") for one in found.components]
    path.write_bytes(encode_manifest(dataclasses.replace(found, components=tuple(forged))))
    engine = Unpickler()
    store = open_store(str(tmp_path))
    assert store.entry(1).manifest_sha256 == manifest_digest(path.read_bytes())
    with pytest.raises(errors.Corrupt, match="none listed"):
        ss.load(tmp_path, step=1, model=ss.External(save=engine.save, load=engine.load))
    with pytest.raises(errors.StateMismatch, match="saved as external, now tensors"):
        ss.load(tmp_path, step=1, model=torch.nn.Linear(1, 1))
    assert engine.loaded == []
