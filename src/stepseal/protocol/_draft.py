"""Builds the manifest of an attempt from the participants' reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from stepseal.layout import (
    FORMAT_VERSION,
    Area,
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
from stepseal.protocol._cut import by_role, merged_cut

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
    """Facts about the job besides its number of participants."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an attempt comes from: run, incarnation and parent."""

    run_id: str
    incarnation: int
    parent: StepRef | None
    """The step before it in the lineage."""
    durability: Durability
    """The durability that the root offers."""


def draft_manifest(publish: Publish, origin: Origin, job: JobInfo, *, now_s: float) -> Manifest:
    """Return the manifest of an attempt, without the coordinator's own files.

    The owners of payloads come from the reports of all participants. Facts that are equal on all
    participants of a role (cut, kinds of components) come from its first one; their equality was
    checked after the capture. Metrics and tags come from whoever made the call: the controller, or
    the first participant.

    Args:
        publish: the reports of the participants, in ordinal order.
        origin: run, incarnation and parent of the attempt.
        job: facts that are the same for every step of the incarnation.
        now_s: Unix time.
    """
    participants = tuple(publish.captured)
    first = publish.captured[participants[0]]
    notes = first if publish.opening is None else publish.opening
    reports = payload_reports(publish.captured)
    held = [
        (role, found)
        for role, names in by_role(participants).items()
        for found in publish.captured[names[0]].components
    ]
    components = tuple(
        ComponentEntry(
            name=found.name,
            kind=cast("ComponentKind", found.kind),  # checked when the manifest is encoded
            sharing=cast("SharingName", found.sharing),
            payloads=payload_owners(reports[found.name]),
            required=found.required,
            options=_options(found, reports[found.name]),
            role=role,
        )
        for role, found in sorted(held, key=lambda one: one[1].name)
        if found.name not in publish.left_out
    )
    parts = tuple(
        PartRef(p, DocumentRef(ref.path, ref.size_bytes, ref.sha256))
        for p in participants
        for ref in (publish.parts[p],)
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        run_id=origin.run_id,
        step=publish.step,
        incarnation=origin.incarnation,
        attempt=publish.attempt,
        parent=origin.parent,
        kind=publish.area.kind,
        resumable=publish.area is Area.STEPS,
        cut={**merged_cut(publish.captured, publish.opening)},
        created_at=utc_text(now_s),
        metrics={name: float(value) for name, value in notes.metrics.items()},
        tags=tuple(notes.tags),
        participants=participants,
        topology={"world_size": len(participants), **job.topology},
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
