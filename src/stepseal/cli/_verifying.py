"""`stepseal verify`: every byte of a step against its digest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, size_text, warn
from stepseal.cli._roots import OpenRoot, find_step, measure_step, open_root
from stepseal.commit import Reading, list_steps
from stepseal.errors import StepNotFound
from stepseal.layout import MANIFEST
from stepseal.transfer import has_damage, verify_step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from stepseal.commit import StepEntry
    from stepseal.layout import Manifest
    from stepseal.transfer import Finding

__all__ = ["Progress", "print_report", "verify_root"]


def verify_root(path: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Verify the wanted steps, or all that are not foreign; return JSON-able findings."""
    root = open_root(path)
    if wanted:
        chosen = [find_step(root, name) for name in wanted]
        steps = [_verify(root, entry) for entry in chosen]
    else:
        entries = [e for e in list_steps(root.storage, root.run_id) if e.state != "foreign"]
        steps = [found for entry in entries if (found := _verify_if_there(root, entry))]
    return {"root": root.path, "steps": steps}


def _verify_if_there(root: OpenRoot, entry: StepEntry) -> dict[str, Any] | None:
    try:
        return _verify(root, entry)
    except StepNotFound as error:  # pruned or superseded since it was listed
        warn(f"left out: {error}")
        return None


def _verify(root: OpenRoot, entry: StepEntry) -> dict[str, Any]:
    if entry.state == "newer":
        finding = {"severity": "unknown", "path": MANIFEST, "message": entry.problem}
        return {"step": entry.step, "state": "newer", "size_bytes": 0, "findings": [finding]}
    if entry.manifest is None or entry.state != "committed":
        finding = {"severity": "damage", "path": MANIFEST, "message": entry.problem}
        return {"step": entry.step, "state": "damaged", "size_bytes": 0, "findings": [finding]}
    size = measure_step(root, entry, entry.manifest)  # what is wrong with it is found again below
    with Progress(entry.step, size.size_bytes) as bar:
        found = _verify_leased(root, entry.name, entry.manifest, bar.advance)
    return {
        "step": entry.step,
        "state": "damaged" if has_damage(found) else "whole",
        "size_bytes": bar.done_bytes,
        "findings": [{"severity": f.severity, "path": f.path, "message": f.message} for f in found],
    }


def _verify_leased(
    root: OpenRoot, name: str, manifest: Manifest, progress: Callable[[int], None]
) -> tuple[Finding, ...]:
    def look(advance: Callable[[int], None]) -> tuple[Finding, ...]:
        return verify_step(root.storage, name, manifest, progress=advance)

    with Reading(root.storage, manifest) as reading:
        return reading.look(look, is_damaged=has_damage, progress=progress)


class Progress:
    """A line on stderr while a step is verified; silent when stderr is no terminal."""

    def __init__(self, step: int, total_bytes: int | None) -> None:
        self.done_bytes = 0
        self._step = step
        self._total_bytes = total_bytes
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")

    def advance(self, num_bytes: int) -> None:
        """Count verified bytes."""
        self.done_bytes += num_bytes
        if self._shown:
            total = "" if self._total_bytes is None else f" of {size_text(self._total_bytes)}"
            sys.stderr.write(
                f"\r\x1b[Kverifying step {self._step}: {size_text(self.done_bytes)}{total}"
            )


def print_report(found: dict[str, Any]) -> None:
    """Print one line per step and one per finding."""
    for step in found["steps"]:
        size = f" ({size_text(step['size_bytes'])} checked)" if step["size_bytes"] else ""
        print_line(f"step {step['step']}: {step['state']}{size}")
        for finding in step["findings"]:
            print_line(f"  {finding['severity']}: {finding['path']}: {finding['message']}")
    if not found["steps"]:
        sys.stderr.write(f"stepseal: {found['root']}: no steps to verify\n")
