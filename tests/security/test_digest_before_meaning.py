"""No byte below the manifest means anything before its digest matched: a flipped byte is reported
as such, and no decoder ever sees it. A replayed, renamed or swapped file is noticed too.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.security._forge import BASE, NEWEST, OLDER, OWNER, Forgery
from tests.security._loader import restore
from typing_extensions import Self

import stepseal as ss
from stepseal.components import decode_tree
from stepseal.errors import CheckpointError, Corrupt, StepNotFound
from stepseal.layout import decode_document, decode_index, decode_part, parse_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

DECODERS: dict[Any, str] = {
    function.__code__: function.__name__
    for function in (decode_part, decode_index, decode_document, parse_header, decode_tree)
}
_DIRECTORY = "foreign/_records.py"
"""May list the directory of an archive, and nothing else of it."""
_DECOMPRESSORS = re.compile(
    r"^\s*(import|from) (gzip|bz2|lzma|zipfile|tarfile)|decompress", re.MULTILINE
)
READERS: dict[str, Callable[[ss.Step], object]] = {
    f"parts/{OWNER}.json": lambda step: step.tensors("w*"),
    f"parts/{OWNER}.safetensors": lambda step: step.tensors("w*"),
    f"components/loader/{OWNER}.json": lambda step: step.value("loader", OWNER),
    f"components/loader/{OWNER}.safetensors": lambda step: step.value("loader", OWNER),
}


class Witness:
    """Notes which bytes every decoder was given."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in DECODERS:
            data = next(iter(frame.f_locals.values()))
            if isinstance(data, (bytes, memoryview)):
                self.seen.append(bytes(data))

    def __enter__(self) -> Self:
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@pytest.fixture
def forgery(tmp_path: Path) -> Forgery:
    return Forgery(tmp_path / "root")


@pytest.mark.slow
@pytest.mark.parametrize("path", READERS)
def test_a_flipped_byte_is_never_interpreted(path: str, forgery: Forgery) -> None:
    file = forgery.folder / path
    good = file.read_bytes()
    step = ss.open(forgery.root).step(NEWEST)
    with Witness() as witness:
        READERS[path](step)
    assert good in witness.seen  # the witness sees what is decoded
    for position in range(0, len(good), max(1, len(good) // 60)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        file.write_bytes(bad)
        with Witness() as witness, pytest.raises(Corrupt, match=r"expected (sha256|digest)"):
            READERS[path](step)
        assert bytes(bad) not in witness.seen
        assert all(data in known_bytes() for data in witness.seen)
    file.write_bytes(good)
    READERS[path](step)


def known_bytes() -> set[bytes]:
    base = BASE / f"step-{NEWEST}"
    return {path.read_bytes() for path in base.rglob("*") if path.is_file()}


def test_any_byte_of_the_manifest_counts(forgery: Forgery) -> None:
    file = forgery.folder / "manifest.json"
    good = file.read_bytes()
    run = ss.open(forgery.root)
    for position in range(0, len(good), 5):
        bad = bytearray(good)
        bad[position] ^= 0x01
        file.write_bytes(bad)
        with pytest.raises(CheckpointError):
            run.step(NEWEST)


def test_files_of_equal_size_cannot_change_places(forgery: Forgery) -> None:
    one, other = (forgery.folder / f"components/loader/trainer/{n}.safetensors" for n in (0, 1))
    assert one.stat().st_size == other.stat().st_size
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    assert len(ss.open(forgery.root).step(NEWEST).verify()) == 2
    assert restore(forgery.root) == [OLDER] * 2


def test_an_older_step_under_a_newer_name_is_not_that_step(forgery: Forgery) -> None:
    shutil.copytree(forgery.root / f"step-{OLDER}", forgery.root / "step-9")
    run = ss.open(forgery.root)
    assert run.steps() == (OLDER, NEWEST)
    with pytest.raises(Corrupt, match=f"is of step {OLDER}"):
        run.step(9)
    assert restore(forgery.root) == [NEWEST] * 2


def test_an_older_manifest_does_not_fit_a_newer_step(forgery: Forgery) -> None:
    shutil.copy(forgery.root / f"step-{OLDER}" / "manifest.json", forgery.folder)
    assert restore(forgery.root) == [OLDER] * 2


def test_a_step_of_another_run_is_foreign(forgery: Forgery) -> None:
    forgery.change_manifest(lambda body: body.update(run_id="0" * 32))
    run = ss.open(forgery.root)
    assert run.steps() == (OLDER,)
    with pytest.raises(StepNotFound, match="belongs to run"):
        run.step(NEWEST)
    assert restore(forgery.root) == [OLDER] * 2


EXTRAS = [
    "evil.py", "__init__.py", "__main__.py", "sitecustomize.py", "conftest.py", "torch.py",
    "evil.pth", "parts/__init__.py", "parts/trainer/evil.so", "components/loader/trainer/2.json",
    "components/loader/trainer/0.1.safetensors", "__9_0.distcp", "config.json", ".env", "CON",
    "MANIFEST.json", "a\\b", "..\\..\\x", "parts/a\\b/c", "\x1b[2J", "a\nb", "parts/\x01/\x02",
    "\udcff\udcfe", "\udcff/x", ".hidden/.x", "a:b", "x" * 255, "trailing.",
]  # fmt: skip


@pytest.mark.parametrize("path", EXTRAS)
def test_an_unlisted_file_is_ignored_for_loading_and_reported(path: str, forgery: Forgery) -> None:
    expected = ss.open(forgery.root).step(NEWEST).tensor_names()
    forgery.write(path, b"import os; os._exit(77)\n")
    step = ss.open(forgery.root).step(NEWEST)
    findings = step.verify()
    assert [(f.severity, f.path) for f in findings] == [("extra", path)]
    assert step.tensor_names() == expected
    assert step.value("loader", OWNER)
    assert restore(forgery.root) == [NEWEST] * 2


def test_an_odd_or_deep_directory_harms_no_step(forgery: Forgery) -> None:
    for path in ("a\\b", "\udcff", "\x1b[2J", "/".join(["x"] * 600)):
        (forgery.folder / path).mkdir(parents=True)
    findings = ss.open(forgery.root).step(NEWEST).verify()
    assert [(f.severity, len(f.path)) for f in findings] == [("extra", 1025)]
    assert restore(forgery.root) == [NEWEST] * 2


def test_nothing_is_ever_decompressed(forgery: Forgery) -> None:
    """A record that claims deflated contents is read as the raw range that the index names."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(50 << 20))
    forgery.dcp_index(bomb.getvalue())
    forgery.file(f"components/loader/{OWNER}.safetensors", bomb.getvalue())
    with pytest.raises(Corrupt, match="header"):
        ss.open(forgery.root).step(NEWEST).value("loader", OWNER)
    source = Path(ss.__file__).parent
    texts = {path.relative_to(source).as_posix(): path.read_text() for path in source.rglob("*.py")}
    assert [name for name, text in texts.items() if _DECOMPRESSORS.search(text)] == [_DIRECTORY]
    used = re.findall(r"zipfile\.(\w+)(?:\([^\n]*\)\.(\w+))?", texts[_DIRECTORY])
    allowed = {("ZipFile", "infolist"), ("ZipInfo", ""), ("BadZipFile", ""), ("ZIP_STORED", "")}
    assert set(used) == allowed
