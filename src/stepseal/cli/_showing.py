"""`stepseal show`: the manifest of a step or publication for people, and its tensors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, print_table
from stepseal.cli._roots import find_step, measure_step, open_root_or_step
from stepseal.errors import Corrupt
from stepseal.layout import Area, dcp_fqn, size_text
from stepseal.transfer import StepReader

if TYPE_CHECKING:
    from stepseal.layout import Manifest

__all__ = ["describe_step", "print_step"]


def describe_step(path: str, wanted: str | None, *, tensors: bool) -> dict[str, Any]:
    """Return what a step holds, as JSON-able values.

    Args:
        path: of a root, or of the folder of a step or publication.
        wanted: number, folder or `latest`; None takes the step of the folder, else `latest`.
        tensors: list every tensor, too.

    Raises:
        StepNotFound: the step does not exist, or the folder is foreign.
        Corrupt: its manifest or an index is damaged.
    """
    root = open_root_or_step(path)
    entry = find_step(root, (root.only or "latest") if wanted is None else wanted)
    if entry.manifest is None or entry.state == "damaged":
        raise Corrupt(f"{entry.name}: {entry.problem}", step=entry.step, path=entry.name)
    manifest = entry.manifest
    found: dict[str, Any] = dataclasses.asdict(manifest)
    found["manifest_sha256"] = entry.manifest_sha256
    size = measure_step(root, entry, manifest)
    found.update(size_bytes=size.size_bytes, state=size.state, problem=size.problem)
    if tensors:
        found["tensors"] = _tensors(
            StepReader(root.steps.storage, root.key(entry), manifest), manifest
        )
    return found


def _tensors(reader: StepReader, manifest: Manifest) -> list[dict[str, Any]]:
    rows = []
    for component in manifest.components:
        if component.kind != "tensors":
            continue
        for key, boxes in sorted(reader.stored(component.name).items()):
            first = boxes[0].tensor
            rows.append(
                {
                    "name": dcp_fqn(component.name, key),
                    "component": component.name,
                    "dtype": first.dtype,
                    "shape": list(first.shape),
                    "size_bytes": sum(box.tensor.data_size for box in boxes),
                    "boxes": [
                        {
                            "participant": box.participant,
                            "offsets": list(box.tensor.box.offsets),
                            "sizes": list(box.tensor.box.sizes),
                        }
                        for box in boxes
                    ],
                }
            )
    return rows


def print_step(found: dict[str, Any]) -> None:
    """Print a step for people."""
    parent = found["parent"]
    facts = [
        (Area.of(found["kind"]).noun, str(found["step"])),
        ("state", f"{found['state']}{': ' if found['problem'] else ''}{found['problem']}"),
        ("created (UTC)", found["created_at"][:19].replace("T", " ")),
        ("kind", f"{found['kind']}{', resumable' if found['resumable'] else ', not resumable'}"),
        ("incarnation", str(found["incarnation"])),
        ("descends from", "nothing (fresh start)" if parent is None else f"step {parent['step']}"),
        ("participants", f"{len(found['participants'])}: {', '.join(found['participants'][:8])}"),
        ("size", "?" if found["size_bytes"] is None else size_text(found["size_bytes"])),
        ("durability", found["durability"]),
        ("digests", f"{found['digest_algorithm']} per {size_text(found['chunk_bytes'])}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(found["versions"].items()))),
    ]
    facts += [(f"metric {name}", f"{value:g}") for name, value in sorted(found["metrics"].items())]
    facts += [(f"cut {name}", str(value)) for name, value in sorted(found["cut"].items())]
    facts += [
        ("begun anew", f"{c['name']}, at step {c['options']['fresh'].get('step')}")
        for c in found["components"]
        if isinstance(c["options"].get("fresh"), dict)
    ]
    facts += [("left out", f"{name}: {why}") for name, why in sorted(found["left_out"].items())]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print_line(f"{name.ljust(width)}  {value}")
    print_line("")
    rows = [
        (c["name"], c["kind"], c["sharing"], str(len(set(c["payloads"].values())) or "-"))
        for c in found["components"]
    ]
    print_table(("COMPONENT", "KIND", "SHARING", "PAYLOADS"), rows)
    if "tensors" in found:
        print_line("")
        table = [
            (
                t["name"],
                t["dtype"],
                "x".join(map(str, t["shape"])) or "scalar",
                size_text(t["size_bytes"]),
                str(len(t["boxes"])),
            )
            for t in found["tensors"]
        ]
        print_table(("TENSOR", "DTYPE", "SHAPE", "SIZE", "BOXES"), table)
