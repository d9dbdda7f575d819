"""`stepseal ls`: steps and publications of a root and their state, from manifests alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, print_table, say
from stepseal.cli._roots import measure_step, open_root
from stepseal.layout import Area, duration_text, size_text
from stepseal.steps import in_lineage

if TYPE_CHECKING:
    from stepseal.cli._roots import OpenRoot
    from stepseal.layout import Manifest
    from stepseal.steps import StepEntry, Unfinished

__all__ = ["list_root", "print_listing"]


def list_root(path: str) -> dict[str, Any]:
    """Return what a root holds, as JSON-able values."""
    root = open_root(path)
    limits = root.steps.lineage_limits()
    entries = root.steps.entries(root.run_id)
    published = root.steps.entries(root.run_id, Area.PUBLISHED)
    pinned = root.steps.pins.steps()
    return {
        "root": root.path,
        "run_id": root.run_id,
        "incarnation": max(limits, default=None),
        "steps": [_row(root, entry, limits, pinned) for entry in entries],
        "published": [_published_row(root, entry) for entry in published],
        "unfinished": [_unfinished_row(one) for one in root.steps.unfinished()],
        "foreign": list(root.steps.foreign()),
    }


def _row(
    root: OpenRoot, entry: StepEntry, limits: dict[int, int | None], pinned: frozenset[int]
) -> dict[str, Any]:
    row: dict[str, Any] = {"step": entry.step, "state": entry.state, "problem": entry.problem}
    row["pinned"] = entry.step in pinned
    row["pin"] = root.steps.pins.reason(entry.step) if row["pinned"] else None
    manifest = entry.manifest
    if entry.state != "committed" or manifest is None:
        return row
    row.update(
        _facts(root, entry, manifest),
        in_lineage=in_lineage(limits, manifest.incarnation, entry.step),
        kind=manifest.kind,
        resumable=manifest.resumable,
    )
    return row


def _facts(root: OpenRoot, entry: StepEntry, manifest: Manifest) -> dict[str, Any]:
    size = measure_step(root, entry, manifest)
    return {
        "state": size.state,
        "problem": size.problem,
        "created_at": manifest.created_at,
        "incarnation": manifest.incarnation,
        "num_participants": len(manifest.participants),
        "size_bytes": size.size_bytes,
        "metrics": dict(manifest.metrics),
        "tags": list(manifest.tags),
    }


def _published_row(root: OpenRoot, entry: StepEntry) -> dict[str, Any]:
    row: dict[str, Any] = {"version": entry.step, "state": entry.state, "problem": entry.problem}
    manifest = entry.manifest
    if entry.state == "committed" and manifest is not None:
        components = [component.name for component in manifest.components]
        row.update(_facts(root, entry, manifest), components=components)
    return row


def _unfinished_row(one: Unfinished) -> dict[str, Any]:
    row = dataclasses.asdict(one)
    number = row.pop("step")
    return {row.pop("area").noun: number, **row}


def print_listing(found: dict[str, Any]) -> None:
    """Print one line per step, and then one per publication."""
    rows = [_cells(row) for row in found["steps"]]
    headers = ("STATE", "CREATED (UTC)", "RANKS", "SIZE", "METRICS", "NOTE")
    if rows:
        print_table(("STEP", *headers), rows)
    else:
        say(f"{found['root']}: no steps yet")
    if found["published"]:
        print_line("")
        print_table(("VERSION", *headers), [_published_cells(row) for row in found["published"]])
    if found["unfinished"]:
        print_line("")
        headers = ("NOT COMMITTED", "STATE", "AGE", "SIZE SO FAR", "LAST WRITE", "NOTE")
        print_table(headers, [_unfinished_cells(row) for row in found["unfinished"]])
    for name in found["foreign"]:
        print_line(f"foreign, left alone: {name}")


def _unfinished_cells(row: dict[str, Any]) -> tuple[str, ...]:
    name = f"step {row['step']}" if "step" in row else f"version {row['version']}"
    notes = {
        "in flight": f"by a process of {row['host']}",
        "left over": "removed when the job starts again",
        "unclear": f"its process cannot be seen from here: {row['host'] or 'host not known'}",
    }
    age, idle = (_ago(row[key]) for key in ("age_s", "idle_s"))
    return (name, row["state"], age, size_text(row["size_bytes"]), idle, notes[row["state"]])


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds < 120 else duration_text(seconds)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    pin = [f"pinned: {row['pin']}" if row["pin"] else "pinned"] if row["pinned"] else []
    if "incarnation" not in row:  # nothing of it can be read
        note = ", ".join([row["problem"], *pin])
        return (str(row["step"]), row["state"], "-", "-", "-", "-", note)
    notes = [] if row["in_lineage"] else ["outside the lineage"]
    notes += pin
    notes += [] if row["resumable"] else [f"not resumable ({row['kind']})"]
    return (str(row["step"]), *_fact_cells(row, notes))


def _published_cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "incarnation" not in row:  # nothing of it can be read
        return (str(row["version"]), row["state"], "-", "-", "-", "-", row["problem"])
    return (str(row["version"]), *_fact_cells(row, [", ".join(row["components"])]))


def _fact_cells(row: dict[str, Any], notes: list[str]) -> tuple[str, ...]:
    metrics = " ".join(f"{name}={value:.4g}" for name, value in sorted(row["metrics"].items()))
    notes = [*notes, *(f"#{tag}" for tag in row["tags"])]
    notes += [row["problem"]] if row["problem"] else []
    return (
        row["state"],
        row["created_at"][:19].replace("T", " "),
        str(row["num_participants"]),
        "?" if row["size_bytes"] is None else size_text(row["size_bytes"]),
        metrics or "-",
        ", ".join(notes),
    )
