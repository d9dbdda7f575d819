"""What the tests of this wing share: facts, parts, roots, a indexer that knows no tensors."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepseal.layout import MANIFEST, Area, Manifest, StepRef, part_document_path, step_name
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._deadlines import Deadlines
from stepseal.protocol._draft import JobInfo, Origin, draft_manifest
from stepseal.steps._attempts import begin
from stepseal.steps._claims import claim
from stepseal.steps._publish import publish
from stepseal.steps._roots import initialise_root
from stepseal.storage import KeyNotFound, create_durable, make_dirs, walk_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.storage import Storage

DEADLINES = Deadlines(
    connect_s=10.0,
    capture_s=20.0,
    write_s=100.0,
    commit_s=30.0,
    check_s=40.0,
    apply_s=50.0,
    close_s=5.0,
    heartbeat_s=1.0,
    lost_s=4.0,
)
"""Each limit different, so that a test sees which one was used."""
TWO = ("trainer/0", "trainer/1")
THREE = (*TWO, "trainer/2")


def attempt_id(number: int) -> str:
    return f"{number:032x}"


def component(name: str = "model", **changes: Any) -> messages.ComponentReport:  # noqa: ANN401
    values: dict[str, Any] = {
        "kind": "tree",
        "sharing": "replicated",
        "fingerprint": "f" * 32,
    }
    return messages.ComponentReport(name, **(values | changes))


def captured(call: int = 1, step: int = 10, **changes: Any) -> messages.Captured:  # noqa: ANN401
    values: dict[str, Any] = {"components": [component()], "cut": {}, "metrics": {}, "tags": []}
    return messages.Captured(call, step, **(values | changes))


def part_report(participant: str, data: bytes = b"part") -> messages.PartReport:
    sha256 = hashlib.sha256(data).hexdigest()
    return messages.PartReport(part_document_path(participant), len(data), sha256)


def cause(message: str = "disk full", kind: str = "storage_unavailable") -> messages.Failure:
    return messages.Failure(kind, message)


def sent(
    todo: Sequence[actions.Action], kind: type[Any] = object
) -> list[tuple[str, messages.FromCoordinator]]:
    """Return the sends among actions, optionally of one message type.

    Without a type, what asks for safe points is left out: `test_triggers.py` looks at that.
    """
    points = () if kind is not object else (messages.AskSafePoint, messages.Target, messages.Lapsed)
    return [
        (a.to, a.message)
        for a in todo
        if isinstance(a, actions.Send)
        and isinstance(a.message, kind)
        and not isinstance(a.message, points)
    ]


def write_part(
    storage: Storage, staging: str, participant: str, data: bytes = b"part"
) -> messages.PartReport:
    facts = part_report(participant, data)
    make_dirs(storage, f"{staging}/{facts.path}".rpartition("/")[0], base=staging)
    create_durable(storage, f"{staging}/{facts.path}", data)
    storage.sync_dir(f"{staging}/{facts.path}".rpartition("/")[0])
    return facts


@dataclass
class FakeIndexer:
    """Inspects names and sizes of part documents alone; writes nothing of its own."""

    finished: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    error: Exception | None = None

    def write_index(self, storage: Storage, staging: str, draft: Manifest) -> Manifest:
        self.finished.append(staging)
        if self.error is not None:
            raise self.error
        return draft

    def inspect(
        self, storage: Storage, key: str, manifest: Manifest, *, exact: bool
    ) -> Sequence[str]:
        if self.problems:
            return list(self.problems)
        expected = {part.document.path: part.document.size_bytes for part in manifest.parts}
        found = {path: entry.size_bytes for path, entry in walk_files(storage, key)}
        found.pop(MANIFEST, None)
        missing = [
            f"{p}: missing or of another size" for p in expected if found.get(p) != expected[p]
        ]
        extra = [f"{p}: not expected" for p in found if p not in expected]
        return missing + (extra if exact else [])


@dataclass
class Root:
    """A root as one incarnation of a job sees it; commits whole steps on demand."""

    storage: Storage
    participants: tuple[str, ...] = TWO
    number: int = 0
    head: StepRef | None = None
    num_attempts: int = 0
    indexer: FakeIndexer = field(default_factory=FakeIndexer)
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.run_id = initialise_root(self.storage)

    def claim(self, parent: StepRef | None = None) -> int:
        self.head = parent
        self.number = claim(self.storage, parent, now_s=self.clock())
        return self.number

    def prepare(
        self,
        step: int,
        area: Area = Area.STEPS,
        **changes: Any,  # noqa: ANN401
    ) -> tuple[str, Manifest]:
        """Write all parts of a new attempt; return its staging folder and its manifest."""
        self.num_attempts += 1
        attempt = attempt_id(self.number * 1000 + self.num_attempts)
        make_dirs(self.storage, area.folder)
        staging = begin(self.storage, step, self.number, attempt, area)
        parts = {p: write_part(self.storage, staging.key, p) for p in self.participants}
        return staging.key, self.draft(step, attempt, staging.key, parts, area, **changes)

    def draft(
        self,
        step: int,
        attempt: str,
        staging: str,
        parts: dict[str, messages.PartReport],
        area: Area = Area.STEPS,
        **changes: Any,  # noqa: ANN401
    ) -> Manifest:
        reports = dict.fromkeys(self.participants, captured(step=step, **changes))
        action = actions.Publish(1, step, attempt, staging, reports, parts, 0.0, area=area)
        origin = Origin(self.run_id, self.number, self.head, "fsync")
        facts = JobInfo({"stepseal": "0"})
        return draft_manifest(action, origin, facts, now_s=self.clock())

    def publish(self, staging: str, manifest: Manifest, *, late: bool = False) -> str:
        return publish(
            self.storage, staging, manifest, indexer=self.indexer, deadline_passed=lambda: late
        )

    def commit(self, step: int) -> StepRef:
        """Commit one whole step."""
        if self.number == 0:
            self.claim()
        staging, manifest = self.prepare(step)
        self.head = StepRef(step, self.publish(staging, manifest), self.number)
        return self.head

    def publish_version(self, version: int) -> Manifest:
        """Commit one whole publication."""
        if self.number == 0:
            self.claim()
        staging, manifest = self.prepare(version, Area.PUBLISHED)
        self.publish(staging, manifest)
        return manifest

    def names(self, key: str = "") -> list[str]:
        return [entry.name for entry in self.storage.list_dir(key)]


def exists(storage: Storage, key: str) -> bool:
    try:
        storage.stat(key)
    except KeyNotFound:
        return False
    return True


def overwrite(storage: Storage, key: str, data: bytes) -> None:
    """Put other bytes in the place of a file, as damage does."""
    storage.remove_file(key)
    create_durable(storage, key, data)


def damage(storage: Storage, step: int) -> None:
    overwrite(storage, f"{step_name(step)}/{MANIFEST}", b"{}")
