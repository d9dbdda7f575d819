"""No name of a checkpoint, and no argument, leads out of the step folder or the root."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from msgspec import to_builtins
from tests.layout._samples import index, manifest, part
from tests.security._forge import BASE, Forgery, sealed

import stepseal as ss
from stepseal import layout
from stepseal.cli import main
from stepseal.errors import CheckpointError, Corrupt, InvalidInput
from stepseal.layout import PartIndex, decode_index, decode_manifest, decode_part
from stepseal.layout._index import _pack
from stepseal.layout._names import component_problem, participant_problem
from stepseal.storage import LocalStorage
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONG = "a" * 256
BAD = [
    "", "/", "//", ".", "..", "...", "./a", "../a", "../../../../etc/passwd", "a/..", "a/../b",
    "a/../../b", "a/.", "a/./b", "a//b", "a/", "/a", "/etc/passwd", "//server/share", "~", "~/a",
    "~root/a", "$HOME/a", "${HOME}", "%2e%2e/a", "..%2fa", "..\\a", "a\\b", "\\\\server\\share",
    "C:\\a", "C:a", "c:/a", "a:b", "a:$DATA", "file:///etc/passwd", "a\0", "\0", "a\0.json",
    "a\n", "\na", "a\r", "a\tb", "a b", " a", "a ", "a\x1b[2J", "a\x7f", "a\x80", "a\u2028b",
    "\u202egpj.json", "a\u200bb", "\ufeffa", "\u00e9", unicodedata.normalize("NFD", "\u00e9"),
    "\uff0e\uff0e/a", "\u2025/a", "a\u2215b", "\u212a", "\u0131", ".a", ".hidden/a", ".git/config",
    ".ssh/authorized_keys", "a.", "a./b", "a/b..", "CON:", "nul\\a", "*", "?", "a*", "a|b", "a>b",
    "a<b", 'a"b', "a'b", "a`b", "a;b", "a&b", "$(id)", "!a", LONG, f"a/{LONG}",
    "/".join(["a" * 200] * 6), "a/" * 600 + "a", "\ud800",
]  # fmt: skip


def label(name: str) -> str:
    return ascii(name)[:24]


def test_the_table_is_long() -> None:
    assert len(set(BAD)) == len(BAD) >= 60


def refusals(name: str) -> dict[str, Callable[[], object]]:
    """Return every decoder, given a document that has `name` where a path or name stands."""
    entry = layout.FileEntry(name, 0, "external", ())
    plain: Any = to_builtins(manifest())
    first = plain["parts"][0]
    elsewhere = {**first, "document": {**first["document"], "path": name}}
    changes: dict[str, dict[str, object]] = {
        "file": {"files": [to_builtins(entry)]},
        "document": {"parts": [elsewhere, *plain["parts"][1:]]},
        "participant": {"participants": [name, *plain["participants"][1:]]},
        "component": {"components": [{**plain["components"][0], "name": name}]},
    }
    listed: Any = to_builtins(part())
    owned = {**listed["index"], "path": name}
    sound = index()
    tensor = replace(sound.tensors[0], component=name)
    found: dict[str, Callable[[], object]] = {
        f"manifest, {field}": lambda body={**plain, **change}: decode_manifest(sealed(body))  # type: ignore[misc]
        for field, change in changes.items()
    }
    return found | {
        "part, file": lambda: decode_part(sealed({**listed, "files": [to_builtins(entry)]})),
        "part, index": lambda: decode_part(sealed({**listed, "index": owned})),
        "part, participant": lambda: decode_part(sealed({**listed, "participant": name})),
        "index, payload": lambda: decode_index(
            _pack(PartIndex((name,), sound.tensors, sound.bytes_items))
        ),
        "index, component": lambda: decode_index(_pack(replace(sound, tensors=(tensor,)))),
    }


@pytest.mark.parametrize("name", [name for name in BAD if name != "\ud800"], ids=label)
def test_a_bad_name_is_refused_in_every_document(name: str) -> None:
    for where, decode in refusals(name).items():
        if "component" in where and component_problem(name) is None:
            continue
        with pytest.raises(Corrupt) as caught:
            decode()
        assert len(str(caught.value)) < 500, where


@pytest.mark.parametrize("name", BAD, ids=label)
def test_a_bad_name_is_refused_as_an_argument(name: str) -> None:
    with pytest.raises(InvalidInput):
        layout.check_component_name(name)
    checkpointer = World(1, lambda _: MemoryStorage()).checkpointer(0)
    with checkpointer, pytest.raises(InvalidInput):
        checkpointer.add(name, {"a": 1})
    if name not in ("a b", " a", "a "):
        assert participant_problem(name) is not None


@pytest.mark.parametrize("name", BAD, ids=label)
def test_no_step_has_such_a_name(name: str) -> None:
    assert layout.parse_step_name(name) is None
    assert layout.parse_step_name(f"step-{name}") is None


@pytest.mark.parametrize("verb", ["show", "verify"])
@pytest.mark.parametrize("name", [n for n in BAD if n != "\ud800"], ids=label)
def test_the_command_line_takes_no_such_step(verb: str, name: str) -> None:
    done = CliRunner().invoke(main, [verb, str(BASE), "--", name])
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert "root:" not in done.output  # no line of /etc/passwd


@pytest.mark.parametrize("root", ["", "/dev/null", "/etc/passwd", "no/such", "-"])
def test_the_command_line_refuses_what_is_no_root(root: str) -> None:
    done = CliRunner().invoke(main, ["ls", "--", root])
    assert done.exit_code in (2, 10), done.output
    assert isinstance(done.exception, SystemExit)


CLASHES = [
    ("external/a/B", "external/a/b"), ("external/A/b", "external/a/b"),
    ("external/a/b", "external/a/b"), ("external/a/b", "external/a/b/c"),
    ("external/a/STRASSE", "external/a/strasse"),
]  # fmt: skip


@pytest.mark.parametrize("pair", CLASHES)
def test_two_paths_that_one_file_system_could_join_are_refused(pair: tuple[str, str]) -> None:
    entries = [to_builtins(layout.FileEntry(path, 0, "external", ())) for path in pair]
    plain: Any = to_builtins(manifest())
    with pytest.raises(Corrupt):
        decode_manifest(sealed({**plain, "files": entries}))
    listed: Any = to_builtins(part())
    with pytest.raises(Corrupt):
        decode_part(sealed({**listed, "files": entries}))


KEYS = ["../../../../tmp/x", "/etc/passwd", "a\0b", "..", "", "a/b", "\x1b]0;x\x07", "x" * 5000]


@pytest.mark.parametrize("kind", ["tensors", "tree"])
def test_keys_of_tensors_are_never_paths(kind: Any, tmp_path: Path) -> None:  # noqa: ANN401
    root = tmp_path / "in" / "root"
    world = World(1, lambda _: LocalStorage.create(root))
    state = {key: torch.full((3,), float(n)) for n, key in enumerate(KEYS)}
    with world.checkpointer(0, mode="sync") as checkpointer:
        checkpointer.add("table", state, kind=kind, sharing=ss.REPLICATED)
        checkpointer.restore()
        checkpointer.save(1)
    step = ss.open(root).step(1)
    if kind == "tensors":
        found = {name.removeprefix("table."): value for name, value in step.tensors().items()}
    else:
        found = step.value("table")
    assert {key: value.tolist() for key, value in found.items()} == {
        key: value.tolist() for key, value in state.items()
    }
    assert not step.verify()
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["root"]
    names = [p.relative_to(root / "step-1").as_posix() for p in (root / "step-1").rglob("*")]
    assert not [name for name in names if layout.path_problem(name)]


def test_a_part_cannot_name_the_file_of_another_participant(tmp_path: Path) -> None:
    forgery = Forgery(tmp_path / "root")

    def take(body: dict[str, Any]) -> None:
        for entry in body["files"]:
            entry["path"] = entry["path"].replace("__0_0", "__1_0")

    forgery.change_part(take)
    with pytest.raises(CheckpointError, match="files of trainer/0"):
        ss.open(forgery.root).step(7).tensors()
