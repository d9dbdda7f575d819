"""The manifest: the document that commits a step. A step exists only if its manifest does.

A manifest is small: it lists participants, components and parts, never tensors. Its values are
immutable. Decoding checks everything that can be checked without another file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, TypeAlias

import msgspec

from stepseal.layout._areas import Area, StepKind
from stepseal.layout._digests import CHUNK_BYTES, sha256_hex
from stepseal.layout._names import (
    MANIFEST,
    component_problem,
    part_document_path,
    participant_problem,
    path_set_problems,
    role_of,
)
from stepseal.layout._saved_sets import sets_problems
from stepseal.layout._sealed import (
    FORMAT_VERSION,
    DocumentRef,
    FileEntry,
    FormatVersion,
    Hex32,
    Hex64,
    Size,
    StepNumber,
    decode_sealed,
    encode_sealed,
    file_problem,
)
from stepseal.layout._times import time_problem
from stepseal.layout._validate import Problems, show, show_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

from stepseal.layout._digests import Buffer

__all__ = [
    "MAX_MANIFEST_BYTES",
    "MAX_PARTICIPANTS",
    "ComponentEntry",
    "ComponentKind",
    "Durability",
    "StepRef",
    "Manifest",
    "Metrics",
    "PartRef",
    "SharingName",
    "decode_manifest",
    "encode_manifest",
    "holders_of",
    "manifest_digest",
]

MAX_MANIFEST_BYTES = 64 << 20
"""Largest manifest."""
MAX_PARTICIPANTS = 70_000
"""Most participants of a step; with many components fewer fit, see docs/format.md."""

ComponentKind: TypeAlias = Literal["tensors", "tree", "external"]
"""Where a component's state is stored: in payload files, `components/` or `external/`."""
SharingName: TypeAlias = Literal[
    "global", "replicated", "sharded", "per_rank", "per_group", "per_node"
]
"""How a component's state relates across participants."""
Durability: TypeAlias = Literal["fsync", "best-effort"]
"""Whether the file system honoured every sync."""

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
if TYPE_CHECKING:
    _Metric: TypeAlias = float
    _Scalar: TypeAlias = object
else:  # what a document may hold there; JSON has no other word for NaN and infinities
    _Metric = float | Literal["nan", "inf", "-inf"]
    _Scalar = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class StepRef:
    """The step that another one descends from."""

    step: StepNumber
    manifest_sha256: Hex64
    """`manifest_digest` of that step."""
    incarnation: Size
    """Incarnation that wrote it."""


@dataclass(frozen=True, slots=True)
class PartRef:
    """Where a participant's part document lies."""

    participant: str
    document: DocumentRef


@dataclass(frozen=True, slots=True)
class ComponentEntry:
    """How one component was saved."""

    name: str
    kind: ComponentKind
    sharing: SharingName
    payloads: dict[str, str]
    """Participant to the participant that owns its payload."""
    required: bool
    """Whether the step could only be committed together with this component."""
    options: dict[str, object]
    """More data that the component's kind needs for reading; JSON."""
    role: str = ""
    """Role of the participants that hold it; empty if all of the step do."""


class Metrics(dict[str, float]):
    """Metrics of a commit; nobody changes them any more."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            "metrics of a commit cannot be changed: give them to save(metrics=...), or copy them: "
            "dict(step.metrics)"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type[Metrics], tuple[dict[str, float]]]:
        """Copy and pickle as a whole, not item by item."""
        return type(self), (dict(self),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The contents of a manifest."""

    format_version: FormatVersion = FORMAT_VERSION
    run_id: Hex32
    step: StepNumber
    """Number of the step, or version of the publication."""
    incarnation: Size
    attempt: Hex32
    """Random id of the save call that wrote the step."""
    parent: StepRef | None
    """The step that this one descends from; None for the first of a run."""
    kind: StepKind
    resumable: bool
    """Whether `restore` may select the step; never true for weights."""
    cut: dict[str, _Scalar]
    """Point in the job's history at which all components were captured."""
    created_at: str
    """UTC, ISO 8601, by the coordinator's clock."""
    metrics: dict[str, _Metric]
    """Finite or not; NaN and infinities are stored as `nan`, `inf` and `-inf`."""
    tags: tuple[_Text, ...]
    participants: tuple[str, ...]
    """The position of a participant gives the number of its payload files."""
    topology: dict[str, object]
    """World size, mesh axes and sizes; JSON."""
    components: tuple[ComponentEntry, ...]
    parts: tuple[PartRef, ...]
    """Exactly one per participant."""
    files: tuple[FileEntry, ...]
    """Files that belong to no part, written by the coordinator."""
    versions: dict[str, str]
    """Library name to version."""
    durability: Durability
    left_out: dict[str, _Reason] = field(default_factory=dict)
    """Component that was not saved, as it was not required, to the reason."""
    digest_algorithm: Literal["xxh3-128"] = "xxh3-128"
    chunk_bytes: Annotated[int, msgspec.Meta(ge=CHUNK_BYTES, le=CHUNK_BYTES)] = CHUNK_BYTES

    @property
    def area(self) -> Area:
        """Where it belongs: among the steps, or among the publications."""
        return Area.of(self.kind)

    @property
    def key(self) -> str:
        """Key of its folder in a root, such as `step-200` or `published/v-7`."""
        return self.area.key(self.step)


def holders_of(manifest: Manifest, entry: ComponentEntry) -> tuple[str, ...]:
    """Return the participants that hold a component, in ordinal order."""
    if not entry.role:
        return manifest.participants
    return tuple(one for one in manifest.participants if role_of(one) == entry.role)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`; `decode_manifest` accepts them.

    Raises:
        InvalidInput: a reader would refuse the manifest; `.problems` lists every reason with its
            path.
    """
    stored = replace(manifest, metrics={k: _metric(v) for k, v in manifest.metrics.items()})
    return encode_sealed(stored, _check, what=MANIFEST, max_bytes=MAX_MANIFEST_BYTES)


def decode_manifest(data: Buffer) -> Manifest:
    """Return the checked manifest of a file; safe on hostile bytes.

    Args:
        data: all bytes of the file.

    Raises:
        IncompatibleFormat: a newer release wrote it.
        Corrupt: anything else is wrong; `.problems` lists every finding with its path.
    """
    stored = decode_sealed(Manifest, data, _check, what=MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
    return replace(stored, metrics=Metrics((k, float(v)) for k, v in stored.metrics.items()))


def manifest_digest(data: Buffer) -> str:
    """Return the SHA-256 of a manifest file in hex; it identifies exactly one commit."""
    return sha256_hex(data)


def _metric(value: float) -> _Metric:
    """Return a metric in a form that JSON can hold; all integer types become floats."""
    number = float(value)
    return number if math.isfinite(number) else str(number)  # type: ignore[return-value]


def _check(manifest: Manifest, problems: Problems) -> None:
    """Report contradictions between the fields of a manifest; each field is valid by itself."""
    problems.extend("created_at", filter(None, [time_problem(manifest.created_at)]))
    problems.extend("participants", filter(None, map(participant_problem, manifest.participants)))
    problems.extend(
        "components", filter(None, (component_problem(e.name) for e in manifest.components))
    )
    if manifest.kind == "weights" and manifest.resumable:
        problems.add("resumable", "expected false for a step of weights")
    if not 1 <= len(manifest.participants) <= MAX_PARTICIPANTS:
        problems.add("participants", f"expected 1 to {MAX_PARTICIPANTS}")
    problems.extend("participants", _twice(manifest.participants))
    problems.extend("tags", _twice(manifest.tags))
    names = [*(entry.name for entry in manifest.components), *manifest.left_out]
    problems.extend("components", _twice(names))
    problems.extend("left_out", filter(None, map(component_problem, manifest.left_out)))
    problems.extend("files", path_set_problems(entry.path for entry in manifest.files))
    for number, entry in enumerate(manifest.files):
        if entry.role not in ("dcp-index", "external"):
            problems.add(f"files[{number}].role", f"a {entry.role} file belongs to a part")
        elif problem := file_problem(entry):
            problems.add(f"files[{number}]", problem)
    _check_components(manifest, problems)
    _check_parts(manifest, frozenset(manifest.participants), problems)


def _check_components(manifest: Manifest, problems: Problems) -> None:
    everybody = set(manifest.participants)
    roles: dict[str, set[str]] = {}
    for participant in manifest.participants:
        roles.setdefault(role_of(participant), set()).add(participant)
    for number, entry in enumerate(manifest.components):
        holders = roles.get(entry.role, set()) if entry.role else everybody
        if not holders:
            path = f"components[{number}].role"
            problems.add(path, f"expected a role of this step, found {show(entry.role)}")
            continue
        whom = f"a participant of {entry.role}" if entry.role else "a participant of this step"
        for holder, owner in entry.payloads.items():
            path = f"components[{number}].payloads.{show_key(holder)}"
            if holder not in holders:
                problems.add(path, f"expected {whom} as key")
            if owner not in holders:
                problems.add(path, f"expected {whom}, found {show(owner)}")
        found = sets_problems(entry.sharing, entry.payloads, entry.options, holders)
        problems.extend(f"components[{number}]", found)


def _check_parts(manifest: Manifest, participants: frozenset[str], problems: Problems) -> None:
    seen: set[str] = set()
    for number, part in enumerate(manifest.parts):
        path = f"parts[{number}]"
        if part.participant not in participants:
            problems.add(path, f"{part.participant} is not a participant of this step")
        if part.participant in seen:
            problems.add(path, f"{part.participant} has more than one part")
        seen.add(part.participant)
        expected = part_document_path(part.participant)
        if part.document.path != expected:
            problems.add(
                f"{path}.document.path", f"expected {expected}, found {show(part.document.path)}"
            )
    for participant in manifest.participants:
        if participant not in seen:
            problems.add("parts", f"expected one part per participant, {participant} has none")


def _twice(names: Iterable[str]) -> Iterator[str]:
    """Return every name that occurs twice, ignoring case."""
    seen: dict[str, str] = {}
    for name in names:
        folded = name.casefold()
        if folded in seen:
            yield f"{show(name)} and {show(seen[folded])} are the same name"
        seen.setdefault(folded, name)
