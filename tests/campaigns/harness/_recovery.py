"""What must hold after a crash: reopen, verify, resume, save again; every deviation is reported."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.campaigns.harness._log import timelines_of
from tests.campaigns.harness._states import digest_of, stored_step

import stepseal as ss
from stepseal import errors
from stepseal.layout import MANIFEST, MAX_MANIFEST_BYTES, decode_manifest
from stepseal.session import Run
from stepseal.steps import PosixSteps
from stepseal.storage import KeyNotFound, LocalStorage, read_bytes
from stepseal.transfer import verify_step

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaigns.harness._lives import Life, Player
    from tests.campaigns.harness._log import Event, Log, Timeline

    from stepseal.storage import Storage

__all__ = [
    "Violation",
    "check_newest",
    "check_step",
    "recover",
    "resume_and_save",
    "superseded",
    "survey",
    "survey_storage",
]

Kind = Literal[
    "damaged",
    "leftovers",
    "values",
    "lost",
    "resume",
    "save-again",
    "not-swept",
    "workload",
    "hang",
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    kind: Kind
    """`damaged`: a visible step is not whole; `leftovers`: it holds files that it does not name;
    `values`: it is whole but not what was saved; `lost`: acknowledged and gone; `resume`: restore
    chose or delivered something else; the others as they say."""
    text: str


def recover(life: Life) -> list[Violation]:
    """Do what the next incarnation does, and check everything before and after.

    Args:
        life: the incarnation after all that were killed; its storage is not disturbed.
    """
    compared: set[str] = set()
    found = survey(life.root, life.log, compared, life.keep)
    if not any(violation.kind == "damaged" for violation in found):
        found += resume_and_save(life)
        found += survey(life.root, life.log, compared, life.keep)
        found += _not_swept(life.root)
    return list(dict.fromkeys(found))


def survey(root: Path, log: Log, compared: set[str], keep: int | None = None) -> list[Violation]:
    """Check all that a reader can see against what the job was told.

    Args:
        root: of the run.
        log: what it was told.
        compared: attempts whose values were compared earlier, so that to verify them is enough;
            those of this survey are added.
        keep: how many of the newest steps the job keeps; None: all.
    """
    try:
        storage = LocalStorage.open(root)
    except errors.RootNotFound:
        return _nothing_there(timelines_of(log.events()))
    with storage:
        return survey_storage(storage, log.events(), compared, keep)


def survey_storage(
    storage: Storage, events: list[Event], compared: set[str], keep: int | None = None
) -> list[Violation]:
    """Do the same for a root of any kind."""
    timelines = timelines_of(events)
    try:
        run = Run(PosixSteps(storage), "")
    except errors.RootNotFound:
        return _nothing_there(timelines)
    found: list[Violation] = []
    for entry in run.entries():
        if entry.state == "committed":
            found += check_step(run.step(entry.step), events, compared)
        else:
            found.append(Violation("damaged", f"{entry.name} is {entry.state}: {entry.problem}"))
    if found:
        return found
    found += _check_kept(run, storage, events, keep)
    return found + check_newest(run.latest(), timelines)


def _nothing_there(timelines: list[Timeline]) -> list[Violation]:
    lost = [Violation("lost", f"no root, but {t.newest} acknowledged") for t in timelines[:1]]
    return lost if all(t.acknowledged for t in timelines) else []


def check_step(step: ss.Step, events: list[Event], compared: set[str]) -> list[Violation]:
    """A visible step is whole, holds nothing else, and exactly what one save meant it to hold."""
    found = []
    for finding in step.verify():
        kind: Kind = "damaged" if finding.severity == "damage" else "leftovers"
        found.append(Violation(kind, f"step {step.step}: {finding.path}: {finding.message}"))
    attempt = step.manifest.attempt
    if found or attempt in compared:
        return found
    compared.add(attempt)
    life = step.manifest.cut.get("life")
    begun = {event.digest for event in events if (event.life, event.step) == (life, step.step)}
    values = stored_step(step)
    if digest_of(values) not in begun:
        return [Violation("values", f"step {step.step} of life {life}: never saved: {values}")]
    return []


def _check_kept(
    run: ss.Run, storage: Storage, events: list[Event], keep: int | None
) -> list[Violation]:
    """Whatever was acknowledged is in its place, or was put aside whole, or pruned by the rule."""
    kept = {(step, run.step(step).manifest.cut.get("life")) for step in run.steps()}
    kept |= superseded(storage)
    told = {(event.step, event.life) for event in events if event.kind == "acknowledged"}
    return [
        Violation("lost", f"step {step} of life {life} was acknowledged and is nowhere")
        for step, life in sorted(told - kept)
        if keep is None or sum(newer > step for newer in run.steps()) < keep
    ]


def superseded(storage: Storage) -> set[tuple[int, object]]:
    """Return step and life of what lies whole where superseded steps are kept or pass through."""
    found = set()
    for area in (".stepseal/superseded", ".stepseal/staging", ".stepseal/trash"):
        try:
            entries = storage.list_dir(area)
        except KeyNotFound:
            continue
        for entry in entries:
            key = f"{area}/{entry.name}"
            try:
                data = read_bytes(storage, f"{key}/{MANIFEST}", MAX_MANIFEST_BYTES)
                manifest = decode_manifest(data)
            except (KeyNotFound, errors.Corrupt):
                continue
            if not verify_step(storage, key, manifest):
                found.add((manifest.step, manifest.cut.get("life")))
    return found


def check_newest(latest: ss.Step | None, timelines: list[Timeline]) -> list[Violation]:
    """What a restore chooses is on a timeline of the job, and not behind what it was promised."""
    for timeline in timelines:
        if latest is None and timeline.newest is None:
            return []
        if latest is None or (timeline.newest is not None and latest.step < timeline.newest):
            continue
        if (latest.manifest.cut.get("life"), latest.step) in timeline.begun:
            return []
    chosen = None if latest is None else (latest.step, latest.manifest.cut)
    newest = " or ".join(str(timeline.newest) for timeline in timelines)
    return [Violation("lost", f"newest is {chosen}, but {newest} was acknowledged")]


def resume_and_save(life: Life) -> list[Violation]:
    """Restore as the next incarnation does, compare with what a reader chooses, and save twice."""
    found: list[Violation] = []
    wanted = None
    with contextlib.suppress(errors.RootNotFound):
        wanted = Run(PosixSteps(life.storage(0)), "").latest()

    def script(player: Player) -> None:
        restored = player.restore()
        found.extend(_check_resumed(player, restored, wanted))
        newest = 0 if restored is None else restored.step
        player.save(newest + 10, wait=False)  # the number of the step that was torn, if any was
        player.save(newest + 20)

    try:
        life.run(script, "async")
    except errors.CheckpointError as error:
        found.append(Violation("save-again", f"{type(error).__name__}: {error}"))
    return found


def _check_resumed(
    player: Player, restored: ss.Restored | None, wanted: ss.Step | None
) -> list[Violation]:
    if restored is None or wanted is None:
        if restored is None and wanted is None:
            return []
        return [Violation("resume", f"expected {wanted}, restored {restored}")]
    number = wanted.manifest.cut.get("life")
    assert isinstance(number, int)
    refused = [why for why in restored.skipped.values() if "outside the lineage" not in why]
    if restored.step != wanted.step or refused:
        text = f"expected step {wanted.step}, restored {restored.step}; {restored.skipped}"
        return [Violation("resume", text)]
    difference = player.replica.differs_from(number, wanted.step)
    return [Violation("resume", difference)] if difference else []


def _not_swept(root: Path) -> list[Violation]:
    areas = [root / ".stepseal" / name for name in ("staging", "trash")]
    left = [str(path.relative_to(root)) for area in areas for path in area.iterdir()]
    return [Violation("not-swept", f"after two commits: {', '.join(sorted(left))}")] if left else []
