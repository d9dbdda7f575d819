"""The manifest of an attempt, put together from what the participants reported."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from stepseal.layout import (
    FORMAT_VERSION,
    ComponentEntry,
    DocumentRef,
    Lineage,
    Manifest,
    PartRef,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.commit._actions import Publish
    from stepseal.layout import ComponentKind, Durability, SharingName

__all__ = ["JobFacts", "draft_manifest"]


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What is the same for every step of one incarnation; goes into each manifest."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Library name to version."""
    topology: Mapping[str, Any] = field(default_factory=dict)
    """World size and mesh axes."""


def draft_manifest(
    publish: Publish,
    *,
    participants: tuple[str, ...],
    run_id: str,
    incarnation: int,
    parent: Lineage | None,
    durability: Durability,
    facts: JobFacts,
) -> Manifest:
    """Return the manifest of an attempt, still without the coordinator's own files.

    What is one for all (cut, metrics, tags, kinds of components) is taken from the first
    participant; that they agree was checked when they captured.
    """
    first = publish.captured[participants[0]]
    components = tuple(
        ComponentEntry(
            name=found.name,
            kind=cast("ComponentKind", found.kind),  # checked when the manifest is encoded
            sharing=cast("SharingName", found.sharing),
            payloads=dict(found.payloads),
            required=True,
            options={},
        )
        for found in sorted(first.components, key=lambda component: component.name)
    )
    parts = tuple(
        PartRef(p, DocumentRef(ref.path, ref.size_bytes, ref.sha256))
        for p in participants
        for ref in (publish.parts[p],)
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        run_id=run_id,
        step=publish.step,
        incarnation=incarnation,
        attempt=publish.attempt,
        parent=parent,
        kind="full",
        resumable=True,
        cut=dict(first.cut),
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
        metrics={name: float(value) for name, value in first.metrics.items()},
        tags=tuple(first.tags),
        participants=participants,
        topology=dict(facts.topology),
        components=components,
        parts=parts,
        files=(),
        versions=dict(facts.versions),
        durability=durability,
    )
