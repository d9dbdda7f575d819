"""`stepseal verify`: every byte of a step or publication against its digest."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, say, warn
from stepseal.cli._roots import OpenRoot, find_step, measure_step, open_root_or_step
from stepseal.errors import StepNotFound
from stepseal.layout import MANIFEST, Area, size_text
from stepseal.transfer import has_damage, verify_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stepseal.layout import Manifest
    from stepseal.steps import StepEntry
    from stepseal.transfer import Finding

__all__ = ["print_report", "progress_bar", "verify_root"]


def verify_root(path: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Verify what is wanted, or all that is not foreign; return JSON-able findings.

    Args:
        path: of a root, or of the folder of a step or publication, which is then verified alone.
        wanted: numbers of steps, folders or `latest`; none for all steps and publications.
    """
    root = open_root_or_step(path)
    if not wanted and root.only is not None:
        wanted = [root.only]
    if wanted:
        chosen = [find_step(root, name) for name in wanted]
        done = [_verify(root, entry) for entry in chosen]
    else:
        entries = [e for area in Area for e in root.steps.entries(root.run_id, area)]
        sought = [entry for entry in entries if entry.state != "foreign"]
        done = [found for entry in sought if (found := _verify_if_there(root, entry))]
    steps = [found for found in done if "step" in found]
    published = [found for found in done if "version" in found]
    return {"root": root.path, "steps": steps, "published": published}


def _verify_if_there(root: OpenRoot, entry: StepEntry) -> dict[str, Any] | None:
    try:
        return _verify(root, entry)
    except StepNotFound as error:  # pruned or superseded since it was listed
        warn(f"left out: {error}")
        return None


def _verify(root: OpenRoot, entry: StepEntry) -> dict[str, Any]:
    number = {entry.area.noun: entry.step}
    if entry.state == "newer":
        finding = {"severity": "unknown", "path": MANIFEST, "message": entry.problem}
        return {**number, "state": "newer", "size_bytes": 0, "findings": [finding]}
    if entry.manifest is None or entry.state != "committed":
        finding = {"severity": "damage", "path": MANIFEST, "message": entry.problem}
        return {**number, "state": "damaged", "size_bytes": 0, "findings": [finding]}
    size = measure_step(root, entry, entry.manifest)  # a problem here is found again below
    with progress_bar(f"{entry.area.noun} {entry.step}", size.size_bytes) as advance:
        found, done_bytes = _verify_leased(root, root.key(entry), entry.manifest, advance)
    return {
        **number,
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
def progress_bar(what: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
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
        task = bar.add_task(f"verifying {what}", total=total_bytes)
        yield lambda num_bytes: bar.advance(task, num_bytes)


def print_report(found: dict[str, Any]) -> None:
    """Print one line per step or publication, and one per finding."""
    for one in [*found["steps"], *found["published"]]:
        size = f" ({size_text(one['size_bytes'])} checked)" if one["size_bytes"] else ""
        what = f"step {one['step']}" if "step" in one else f"version {one['version']}"
        print_line(f"{what}: {one['state']}{size}")
        for finding in one["findings"]:
            print_line(f"  {finding['severity']}: {finding['path']}: {finding['message']}")
    if not found["steps"] and not found["published"]:
        say(f"{found['root']}: no steps to verify")
