"""Builds the manifest of an attempt from the participants' reports."""

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
    sets_option,
    utc_text,
)
from stepseal.protocol._agreement import payload_reports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.layout import ComponentKind, Durability, PayloadReport, SharingName
    from stepseal.protocol._actions import Publish
    from stepseal.protocol._messages import ComponentReport

__all__ = ["JobInfo", "Origin", "draft_manifest"]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """Facts that are the same for every step of one incarnation; part of each manifest."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Library name to version."""
    topology: Mapping[str, Any] = field(default_factory=dict)
    """World size and mesh axes."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an attempt comes from: run, incarnation, participants and parent."""

    run_id: str
    incarnation: int
    parent: StepRef | None
    """The step before it in the lineage."""
    participants: tuple[str, ...]
    """In ordinal order."""
    durability: Durability
    """The durability that the root offers."""


def draft_manifest(publish: Publish, origin: Origin, job: JobInfo, *, now_s: float) -> Manifest:
    """Return the manifest of an attempt, without the coordinator's own files.

    The owners of payloads come from the reports of all participants. Facts that are equal on all
    participants (cut, metrics, tags, kinds of components) come from the first one; their equality
    was checked after the capture.

    Args:
        publish: the reports of the participants.
        origin: run, incarnation, participants and parent of the attempt.
        job: facts that are the same for every step of the incarnation.
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
            required=found.required,
            options=_options(found, reports[found.name]),
        )
        for found in sorted(first.components, key=lambda component: component.name)
        if found.name not in publish.left_out
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
        left_out=dict(publish.left_out),
        parts=parts,
        files=(),
        versions=dict(job.versions),
        durability=origin.durability,
    )


def _options(
    first: ComponentReport, reports: Mapping[str, PayloadReport | None]
) -> dict[str, object]:
    if not first.sets:
        return dict(first.options)
    owned = {p: report.coordinate for p, report in reports.items() if report and report.writes}
    return {**first.options, **sets_option(first.axes, owned)}
