"""Readers that leave out one check: what the corruption campaign must catch.

Where a second safeguard would notice the same damage, the patch takes that away, too, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaigns.harness._small_job import NEWEST, STEPS
from tests.campaigns.kill._variants import replace

from stepseal.cli import _verifying
from stepseal.errors import CheckpointError
from stepseal.layout import _sealed, decode_document, decode_manifest, decode_part, manifest_digest
from stepseal.session._indexer import DcpIndexer
from stepseal.steps import StepEntry, _catalog
from stepseal.transfer import verify_step
from stepseal.transfer._files import CommittedFiles
from stepseal.transfer._read import StepReader
from stepseal.transfer._stream import Streamer

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout import DocumentRef, Part
    from stepseal.storage import ReadHandle

__all__ = ["VARIANTS", "Reader"]

_BEFORE = f"step-{STEPS[-2]}"
_PART = (
    *(f"components/{name}/trainer/0.json" for name in ("loader", "optimizer", "lr_scheduler")),
    "components/loader/trainer/0.safetensors", "components/counters/trainer/0.json",
    "parts/trainer/0.safetensors", "parts/trainer/0.json", "__0_0.distcp",
)  # fmt: skip
"""All that the first participant wrote."""
_WRONG = "wrong value in live state"
_NOT_PASSED_OVER = "expected step 20 restored, found 30"


@dataclass(frozen=True)
class Reader:
    """A broken reader."""

    patch: Callable[[], None]
    """Break this process."""
    caught_as: str = _WRONG
    """How the violation begins that must be reported."""
    known: str = ""
    """A damage that shows it on every machine; the fast size tries no other."""


def _no_chunk_digests() -> None:
    """Tensors are delivered as they are read."""

    def deliver(_: object, piece: Any, data: memoryview) -> None:  # noqa: ANN401 - private
        piece.sink.write(piece.stored.tensor.box, 0, data)  # all tensors here are one chunk

    replace(Streamer, "_deliver", deliver)


def _no_tree_digests() -> None:
    replace(CommittedFiles, "digest_problem", staticmethod(lambda *_: None))


def _no_seal() -> None:
    """The manifest's own SHA-256 is not compared."""

    def unseal(data: bytes, **options: Any) -> object:  # noqa: ANN401 - as patched
        document = decode_document(data, what=options["what"])
        assert isinstance(document, dict)
        return document["body"]

    replace(_sealed, "unseal", unseal)


def _no_part_digest() -> None:
    """The manifest does not say which part documents are its own.

    Nor is compared of which step a document says it is: the second thing that tells them apart.
    """
    _unpin(".json")

    def part(self: StepReader, participant: str) -> Part:
        ref = self._references[participant]
        return decode_part(self._files.read_document(ref, 0, participant=participant))

    replace(StepReader, "_read_part", part)


def _no_index_digest() -> None:
    """A part document does not say which index is its own."""
    _unpin(".safetensors")


def _unpin(suffix: str) -> None:
    """Read documents of one kind without comparing their digest."""
    checked = CommittedFiles.read_document

    def read(self: CommittedFiles, ref: DocumentRef, most: int, *, participant: str) -> memoryview:
        if not ref.path.endswith(suffix):
            return checked(self, ref, most, participant=participant)
        with self.open(ref.path, ref.size_bytes, participant=participant) as handle:
            data = bytearray(ref.size_bytes)
            handle.read_into(data, 0)
        return memoryview(data)

    replace(CommittedFiles, "read_document", read)


def _judge(*, check_step: bool, check_run: bool) -> Callable[..., StepEntry]:
    def judge(step: int, data: bytes, run_id: str | None, *_: object) -> StepEntry:
        try:
            manifest = decode_manifest(data)
        except CheckpointError as error:
            return StepEntry(step, "damaged", str(error))
        if check_step and manifest.step != step:
            return StepEntry(step, "damaged", f"manifest.json is of step {manifest.step}")
        if check_run and manifest.run_id != run_id:
            return StepEntry(step, "foreign", f"belongs to run {manifest.run_id}", manifest)
        return StepEntry(step, "committed", "", manifest, manifest_digest(data))

    return judge


def _no_step_number() -> None:
    replace(_catalog, "_judge", _judge(check_step=False, check_run=True))


def _no_run_id() -> None:
    replace(_catalog, "_judge", _judge(check_step=True, check_run=False))


def _no_sizes() -> None:
    """A file may be longer than listed."""

    def unchecked(self: CommittedFiles, path: str, *_: object, **__: object) -> ReadHandle:
        return self._storage.open_read(self.key(path))

    replace(CommittedFiles, "open", unchecked)
    replace(DcpIndexer, "inspect", lambda *_args, **_options: ())


def _first_finding_only() -> None:
    """`verify` stops at the first file that is damaged."""
    replace(_verifying, "verify_step", lambda *args, **options: verify_step(*args, **options)[:1])


VARIANTS = {
    "no-chunk-digests": Reader(_no_chunk_digests),
    "no-tree-digests": Reader(
        _no_tree_digests, known=f'alter {NEWEST}/components/loader/trainer/1.json "rank" "bank"'
    ),
    "no-manifest-seal": Reader(
        _no_seal,
        caught_as=_NOT_PASSED_OVER,
        known=f'alter {NEWEST}/manifest.json "python" "pythom"',
    ),
    "no-part-digest": Reader(
        _no_part_digest,
        known="; ".join(f"exchange {_BEFORE}/{path} {NEWEST}/{path}" for path in _PART),
    ),
    "no-index-digest": Reader(
        _no_index_digest,
        known="; ".join(
            f"copy ../other/{NEWEST}/{path} {NEWEST}/{path}"
            for path in ("parts/trainer/0.safetensors", "__0_0.distcp")
        ),
    ),
    "no-step-number": Reader(_no_step_number, known=f"copy {_BEFORE} {NEWEST}"),
    "no-run-id": Reader(_no_run_id, known=f"copy ../other/{NEWEST} {NEWEST}"),
    "no-sizes": Reader(_no_sizes, caught_as=_NOT_PASSED_OVER),
    "first-finding-only": Reader(
        _first_finding_only,
        caught_as="verify of step 30 ends with 3 and does not name",
        known=f"exchange {NEWEST}/components/loader/trainer/1.json"
        f" {NEWEST}/components/loader/trainer/0.json",
    ),
}
