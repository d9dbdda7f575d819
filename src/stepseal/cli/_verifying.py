"""`stepseal verify`: every byte of a step against its digest."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, say, size_text, warn
from stepseal.cli._roots import OpenRoot, find_step, measure_step, open_root_or_step
from stepseal.errors import StepNotFound
from stepseal.layout import MANIFEST
from stepseal.transfer import has_damage, verify_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stepseal.layout import Manifest
    from stepseal.steps import StepEntry
    from stepseal.transfer import Finding

__all__ = ["print_report", "progress_bar", "verify_root"]


def verify_root(path: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Verify the wanted steps, or all that are not foreign; return JSON-able findings.

    Args:
        path: of a root, or of the folder of a step, which is then verified alone.
        wanted: numbers, folders or `latest`.
    """
    root = open_root_or_step(path)
    if not wanted and root.only is not None:
        wanted = [root.only]
    if wanted:
        chosen = [find_step(root, name) for name in wanted]
        steps = [_verify(root, entry) for entry in chosen]
    else:
        entries = [e for e in root.steps.entries(root.run_id) if e.state != "foreign"]
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
    size = measure_step(root, entry, entry.manifest)  # a problem here is found again below
    with progress_bar(entry.step, size.size_bytes) as advance:
        found, done_bytes = _verify_leased(root, root.key(entry), entry.manifest, advance)
    return {
        "step": entry.step,
        "state": "damaged" if has_damage(found) else "whole",
        "size_bytes": done_bytes,
        "findings": [{"severity": f.severity, "path": f.path, "message": f.message} for f in found],
    }


def _verify_leased(
    root: OpenRoot, key: str, manifest: Manifest, advance: Callable[[int], None]
) -> tuple[tuple[Finding, ...], int]:
    """Return the findings, and the number of bytes read."""
    done_bytes = 0

    def count(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        advance(num_bytes)

    def look(progress: Callable[[int], None]) -> tuple[Finding, ...]:
        return verify_step(root.steps.storage, key, manifest, progress=progress)

    with root.steps.reading(manifest) as reading:
        found = reading.look(look, is_damaged=has_damage, progress=count)
    return found, done_bytes


@contextmanager
def progress_bar(step: int, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts verified bytes; show a bar if stderr is a terminal."""
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
