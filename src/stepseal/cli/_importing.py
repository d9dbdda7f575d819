"""`stepseal import`: stores a foreign checkpoint as a step; the only command that loads torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from stepseal.cli._output import print_line
from stepseal.storage import Access

__all__ = ["import_folder", "print_imported"]


def import_folder(
    kind: str, source: str, root: str, *, step: int, skip_bytes: bool, allow_shared: bool
) -> dict[str, Any]:
    """Import a folder of the given kind; return JSON-able facts."""
    from stepseal.session import import_dcp

    assert kind == "dcp", "the only choice"
    access = Access(allow_shared=allow_shared)
    return asdict(import_dcp(source, root, step=step, skip_bytes=skip_bytes, access=access))


def print_imported(found: dict[str, Any]) -> None:
    """Print the step that was created, and the values that were left out."""
    print_line(f"step {found['step']}: {found['path']}")
    for name, text in sorted(found["components"].items()):
        print_line(f"  {name}: {text}")
    for fqn, why in sorted(found["skipped"].items()):
        print_line(f"  left out: {fqn}: {why}")
