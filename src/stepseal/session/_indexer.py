"""The coordinator's own share of a step: the index for stock DCP readers, and inspection."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from stepseal.components import torch_in_use
from stepseal.errors import StateMismatch
from stepseal.layout import (
    DCP_INDEX,
    FileEntry,
    chunk_digests,
    hex_digests,
    replica_problems,
)
from stepseal.session._targets import listed
from stepseal.storage import create_durable
from stepseal.transfer import StepReader, check_coverage, check_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import Storage

__all__ = ["DcpIndexer"]

_STILL_WRITES = (
    "an engine still writes after its `save` returned: let `save` return only when all files are "
    "complete"
)


class DcpIndexer:
    """Implements `commit.Indexer` for steps whose tensors are DCP payload.

    Args:
        max_index_items: above this number of stored boxes no DCP index is written.
    """

    def __init__(self, max_index_items: int = 1_000_000) -> None:
        self._max_index_items = max_index_items
        self._read: tuple[str, StepReader] | None = None
        if torch_in_use():  # now rather than in the first commit
            from stepseal.components import build_dcp_index  # noqa: F401

    def write_index(self, storage: Storage, staging: str, draft: Manifest) -> Manifest:
        """Write `.metadata` from all part indexes and return the manifest that lists it.

        Raises:
            StateMismatch: participants stored one entry differently; `.problems` lists all.
        """
        reader = StepReader(storage, staging, draft)
        self._read = (staging, reader)
        indexes = [reader.index(participant) for participant in draft.participants]
        by_name = dict(zip(draft.participants, indexes, strict=True))
        if problems := replica_problems(by_name):
            raise StateMismatch(
                f"save of step {draft.step}: ranks hold different state under one name: "
                f"{listed(problems, '; ')}. Nothing was committed. Name state as in the whole "
                "model, and make what several ranks hold equal before the save.",
                step=draft.step,
                problems=tuple(problems),
            )
        num_items = sum(len(index.tensors) + len(index.bytes_items) for index in indexes)
        if num_items == 0 or num_items > self._max_index_items:
            return draft
        from stepseal.components import build_dcp_index

        data = build_dcp_index(indexes)
        create_durable(storage, f"{staging}/{DCP_INDEX}", data)
        entry = FileEntry(DCP_INDEX, len(data), "dcp-index", hex_digests(chunk_digests(data)))
        return dataclasses.replace(draft, files=(entry,))

    def inspect(
        self, storage: Storage, key: str, manifest: Manifest, *, exact: bool
    ) -> Sequence[str]:
        """Return what is wrong, one line each; empty when all is well.

        With `exact`, the coverage of every tensor is checked as well, and files that nobody lists
        are wrong; without, only what a restore needs is looked at.
        """
        findings = check_files(storage, key, manifest)
        if exact:
            read, self._read = self._read, None
            reader = read[1] if read is not None and read[0] == key else None
            findings += check_coverage(storage, key, manifest, reader=reader)
        problems = [
            f"{finding.path if finding.path.isprintable() else ascii(finding.path)}: "
            f"{finding.message}"
            for finding in findings
            if exact or finding.severity == "damage"
        ]
        if exact and any(problem.startswith("external/") for problem in problems):
            problems.insert(0, _STILL_WRITES)
        return problems
