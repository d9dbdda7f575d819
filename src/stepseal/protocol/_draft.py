"""The manifest of an attempt, put together from what the participants reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from stepseal.layout import (
    FORMAT_VERSION,
    ComponentEntry,
    DocumentRef,
    Manifest,
    PartRef,
    StepRef,
    payload_owners,
    utc_text,
)
from stepseal.protocol._agreement import payload_reports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.layout import ComponentKind, Durability, SharingName
    from stepseal.protocol._actions import Publish

__all__ = ["JobInfo", "Origin", "draft_manifest"]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What is the same for every step of one incarnation; goes into each manifest."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Library name to version."""
    topology: Mapping[str, Any] = field(default_factory=dict)
    """World size and mesh axes."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an attempt comes from: whose it is, and what it descends from."""

    run_id: str
    incarnation: int
    parent: StepRef | None
    """The step before it in the lineage."""
    participants: tuple[str, ...]
    """In ordinal order."""
    durability: Durability
    """What its root allows to say."""


def draft_manifest(publish: Publish, origin: Origin, job: JobInfo, *, now_s: float) -> Manifest:
    """Return the manifest of an attempt, still without the coordinator's own files.

    Who owns which payload is put together from what each participant reported of its own. What is
    one for all (cut, metrics, tags, kinds of components) is taken from the first
    participant; that they agree was checked when they captured.

    Args:
        publish: what the participants reported.
        origin: whose attempt it is.
        job: what is the same for every step of the incarnation.
        now_s: Unix time.
    """
    first = publish.captured[origin.participants[0]]
    reports = payload_reports(publish.captured)
    components = tuple(
        ComponentEntry(
            name=found.name,
            kind=cast("ComponentKind", found.kind),  # checked when the manifest is encoded
            sharing=cast("SharingName", found.sharing),
            payloads=payload_owners(reports[found.name]),
            required=True,
            options=dict(found.options),
        )
        for found in sorted(first.components, key=lambda component: component.name)
    )
    parts = tuple(
        PartRef(p, DocumentRef(ref.path, ref.size_bytes, ref.sha256))
        for p in origin.participants
        for ref in (publish.parts[p],)
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        run_id=origin.run_id,
        step=publish.step,
        incarnation=origin.incarnation,
        attempt=publish.attempt,
        parent=origin.parent,
        kind="full",
        resumable=True,
        cut=dict(first.cut),
        created_at=utc_text(now_s),
        metrics={name: float(value) for name, value in first.metrics.items()},
        tags=tuple(first.tags),
        participants=origin.participants,
        topology=dict(job.topology),
        components=components,
        parts=parts,
        files=(),
        versions=dict(job.versions),
        durability=origin.durability,
    )
