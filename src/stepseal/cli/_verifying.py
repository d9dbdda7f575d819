"""`stepseal verify`: every byte of a step against its digest."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, say, size_text
from stepseal.cli._roots import OpenRoot, find_step, open_root, step_size_bytes
from stepseal.commit import Reading, list_steps
from stepseal.layout import MANIFEST
from stepseal.transfer import verify_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stepseal.commit import StepEntry
    from stepseal.layout import Manifest
    from stepseal.transfer import Finding

__all__ = ["print_report", "verify_root"]


def verify_root(path: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Verify the wanted steps, or all that are not foreign; return JSON-able findings."""
    root = open_root(path)
    if wanted:
        entries = [find_step(root, name) for name in wanted]
    else:
        entries = [e for e in list_steps(root.storage, root.run_id) if e.state != "foreign"]
    return {"root": root.path, "steps": [_verify(root, entry) for entry in entries]}


def _verify(root: OpenRoot, entry: StepEntry) -> dict[str, Any]:
    if entry.state == "newer":
        finding = {"severity": "unknown", "path": MANIFEST, "message": entry.problem}
        return {"step": entry.step, "state": "newer", "size_bytes": 0, "findings": [finding]}
    if entry.manifest is None or entry.state != "committed":
        finding = {"severity": "damage", "path": MANIFEST, "message": entry.problem}
        return {"step": entry.step, "state": "damaged", "size_bytes": 0, "findings": [finding]}
    total_bytes = step_size_bytes(root.storage, entry.name, entry.manifest)
    with _progress_bar(entry.step, total_bytes) as advance:
        found, done_bytes = _verify_leased(root, entry.name, entry.manifest, advance)
    damaged = any(finding.severity == "damage" for finding in found)
    return {
        "step": entry.step,
        "state": "damaged" if damaged else "whole",
        "size_bytes": done_bytes,
        "findings": [{"severity": f.severity, "path": f.path, "message": f.message} for f in found],
    }


def _verify_leased(
    root: OpenRoot, name: str, manifest: Manifest, advance: Callable[[int], None]
) -> tuple[tuple[Finding, ...], int]:
    """Return what was found, and how many bytes were read."""
    done_bytes = 0
    with Reading(root.storage, manifest) as reading:

        def tick(num_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += num_bytes
            reading.tick()
            advance(num_bytes)

        found = verify_step(root.storage, name, manifest, progress=tick)
        if found:
            reading.require_standing()
    return found, done_bytes


@contextmanager
def _progress_bar(step: int, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Yield what counts verified bytes, and shows them where stderr is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"verifying step {step}", total=total_bytes)
        yield lambda num_bytes: bar.advance(task, num_bytes)


def print_report(found: dict[str, Any]) -> None:
    """Print one line per step and one per finding."""
    for step in found["steps"]:
        size = f" ({size_text(step['size_bytes'])} checked)" if step["size_bytes"] else ""
        print_line(f"step {step['step']}: {step['state']}{size}")
        for finding in step["findings"]:
            print_line(f"  {finding['severity']}: {finding['path']}: {finding['message']}")
    if not found["steps"]:
        say(f"{found['root']}: no steps to verify")
