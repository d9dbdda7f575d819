"""Reading is not resuming: a step into live objects, without owning the run.

Invariants: nothing is claimed and nothing but a lease is written; all files are open before live
state is touched; in a process group all ranks load one step, or raise one kind of error.
"""

from __future__ import annotations

import errno
from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from stepseal.components import Registry, Topology, outside_inference_mode
from stepseal.errors import (
    Corrupt,
    InvalidInput,
    StateMismatch,
    StepNotFound,
    StorageUnavailable,
)
from stepseal.layout import Area, Sharing, check_step, holders_of, holds_own_keys, rule_of
from stepseal.protocol import Deadlines
from stepseal.session._checked import CheckedStep, check_step_fits, sharing_of
from stepseal.session._engines import engines_of
from stepseal.session._job import discover
from stepseal.session._policies import Choice
from stepseal.session._reports import LoadReport
from stepseal.session._run import open_run
from stepseal.session._saving import collection_paused
from stepseal.session._targets import Targets, listed
from stepseal.session._together import Together
from stepseal.steps import locate_root, open_store
from stepseal.storage import KeyNotFound

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from stepseal.components import Conversion
    from stepseal.layout import AnySharing, ComponentEntry, Manifest
    from stepseal.session._policies import Policy
    from stepseal.session._step import Step
    from stepseal.steps import PosixSteps, Reading

__all__ = ["load"]

_TRIES = 16
"""Newest steps in a row that may be pruned under the reader."""


def load(
    root: str | os.PathLike[str],
    /,
    *,
    step: int | Literal["latest"] = "latest",
    published: int | Literal["latest"] | None = None,
    convert: Mapping[str, Conversion] | None = None,
    **components: object,
) -> LoadReport:
    """Fill live objects from a committed step, or a publication, without owning the run.

    Claims nothing: it works on read-only roots, beside the job that writes them, and in any number
    of processes. In a process group every rank calls it alike, and rank 0 chooses the step. Strict
    like a restore: objects take what they were saved as, whole, or nothing is changed. A module on
    the meta device needs `to_empty(device=...)` first; the report names buffers that nobody saves.

    Args:
        root: directory of the run.
        step: number, or `latest`: the newest one that a restore would choose.
        published: version of a publication to load instead of a step, or `latest`.
        convert: name of a module to how its saved keys and dtypes become the live ones.
        components: name to object, as in `Checkpointer.add`, for example `model=model`. Give an
            optimizer together with its module. What the step holds besides is left out.

    Returns:
        The load report.

    Raises:
        InvalidInput: no component was named, or `step` or an object cannot be used.
        RootNotFound: there is no such root.
        StepNotFound: there is no such step, or it was pruned meanwhile; `latest` then starts over.
        StateMismatch: saved and live state differ; `.problems` lists all differences, nothing was
            changed.
        Corrupt: the step is damaged; `.tainted` says whether live state was changed.
        ParticipantFailed: ranks failed for different reasons; nothing was changed, or `.tainted`.
    """
    path = locate_root(root)
    number, area = _wanted(step, published)
    if not components:
        raise InvalidInput("load: no component was named: pass for example model=model.")
    topology, deadlines = discover("reader"), Deadlines()
    together = Together(topology, deadlines, f"load from {path}")
    touched = False
    for tries_left in reversed(range(_TRIES)):
        found = together.from_rank_0(lambda: _choose(path, number, area))
        chosen = (found["step"], found["attempt"])
        one = _Load(path, *chosen, topology, components, convert or {}, area)
        try:
            with outside_inference_mode():
                return one.run(together, deadlines)
        except StepNotFound as error:
            touched = touched or error.tainted
            error.tainted = touched
            if number != "latest" or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _wanted(
    step: int | Literal["latest"], published: int | Literal["latest"] | None
) -> tuple[int | Literal["latest"], Area]:
    if published is None:
        return (step if step == "latest" else check_step(step)), Area.STEPS
    if step != "latest":
        raise InvalidInput(f"load: expected step or published, found {step!r} and {published!r}")
    version = published if published == "latest" else check_step(published, "published")
    return version, Area.PUBLISHED


def _choose(path: str, number: int | Literal["latest"], area: Area) -> dict[str, Any]:
    run = open_run(path)
    found: Step | None
    if area is Area.PUBLISHED:
        version = max(run.published(), default=None) if number == "latest" else number
        found = None if version is None else run.publication(version)
    else:
        found = run.latest() if number == "latest" else run.step(number)
    if found is None and area is Area.PUBLISHED:
        raise StepNotFound(f"load: {path}: nothing is published there.", path=path)
    if found is None:
        raise StepNotFound(
            f"load: {path}: no sound step in the lineage. `stepseal ls` shows what is there.",
            path=path,
        )
    return {"step": found.step, "attempt": found.manifest.attempt}


@dataclass(frozen=True, slots=True)
class _Load:
    """One try to load one step on this rank."""

    root: str
    step: int
    attempt: str
    topology: Topology
    components: Mapping[str, object]
    conversions: Mapping[str, Conversion]
    area: Area = Area.STEPS

    def run(self, together: Together, deadlines: Deadlines) -> LoadReport:
        """Check, agree, fill, and agree again."""
        stack = ExitStack()
        try:  # closed without the error: each rank has judged its own by then
            error: Exception | None = None
            try:
                reading, checked = self._open(stack)
            except Exception as failed:
                error = failed
            together.agree(error, limit_s=deadlines.check_s, touched=False)
            if left := checked.decisions.left():
                left = together.left_by_all(left, limit_s=deadlines.check_s)
                self._refuse(checked.decisions.nobody_takes(left))
            try:
                _fill(reading, checked)
            except Exception as failed:
                error = failed
            together.agree(error, limit_s=deadlines.apply_s, touched=True)
        finally:
            stack.close()
        decided = checked.decisions.report
        report = {n: t if n in self.components else "not asked for" for n, t in decided.items()}
        path = f"{self.root}/{self.area.key(self.step)}"
        return LoadReport(step=self.step, path=path, report=report)

    def _open(self, stack: ExitStack) -> tuple[Reading, CheckedStep]:
        steps = open_store(self.root)
        entry = steps.entry(self.step, steps.run_id(), self.area)
        manifest = entry.manifest
        if manifest is None or entry.state != "committed" or manifest.attempt != self.attempt:
            raise StepNotFound(
                f"load: {self.area.noun} {self.step}: expected attempt {self.attempt} in "
                f"{entry.name}, found {'another one' if manifest else entry.problem}. Load again.",
                step=self.step,
                path=entry.name,
            )
        reading = stack.enter_context(steps.reading(manifest))

        def look(_: object) -> CheckedStep:
            with collection_paused():
                checked = self._check(steps, manifest, entry.manifest_sha256)
            stack.callback(checked.reader.release)
            _hold(checked, reading)
            return checked

        return reading, reading.look(look)

    def _check(self, steps: PosixSteps, manifest: Manifest, sha256: str) -> CheckedStep:
        """Plan how the live objects take the step; raise one error with all differences."""
        topology = self.topology
        entries = {entry.name: entry for entry in manifest.components}
        wanted = [entries[name] for name in self.components if name in entries]
        holders = {holders_of(manifest, entry) for entry in wanted}
        if len(holders) == 1 and topology.world_size == len(next(iter(holders))):
            # each reads its own payload
            topology = replace(topology, participants=next(iter(holders)))
        refused = {
            name: problem
            for name in self.components
            if (problem := _entry_problem(entries.get(name), manifest, topology))
        }
        problems = [f"component {name}: {problem}" for name, problem in refused.items()]
        registry = Registry()
        for name, state in self.components.items():
            if name not in refused:
                _add(registry, entries[name], sharing_of(entries[name], manifest), state, topology)
        policies: dict[str, Policy] = dict.fromkeys(registry.names(), "require")
        choice = Choice(policies, only=True, conversions=self.conversions)
        targets = Targets(registry.components(), choice, topology)
        targets.check_conversions()
        try:
            checked = check_step_fits(steps.storage, manifest, sha256, targets)
        except StateMismatch as error:
            problems += error.problems
        self._refuse(problems, f"{targets.way_on(problems)}. ")
        return checked

    def _refuse(self, problems: Sequence[str], way_on: str = "") -> None:
        if problems:
            what = f"{self.area.noun} {self.step}"
            raise StateMismatch(
                f"load: {self.root}: {what} does not fit: {listed(problems, '; ')}. {way_on}"
                "Nothing was changed.",
                step=self.step,
                problems=tuple(problems),
            )


def _entry_problem(
    entry: ComponentEntry | None, manifest: Manifest, topology: Topology
) -> str | None:
    if entry is None:
        names = ", ".join(sorted(one.name for one in manifest.components))
        where = f"{manifest.area.noun} {manifest.step}"
        return f"not in {where}, which has {names}: leave it out of the call"
    holders = holders_of(manifest, entry)
    before = len(holders)
    sharing = sharing_of(entry, manifest)
    if before != topology.world_size and not rule_of(sharing).any_world:
        reader = "publication" if manifest.area is Area.PUBLISHED else "step"
        each = {"PER_NODE": "node", "PER_GROUP": "set of ranks"}.get(sharing.name, "rank")
        return (
            f"saved per {each} by {before} participants, now {topology.world_size}: load it with "
            f"{before}, leave it out of the call, or read the state of one of them: "
            f"ss.open(root).{reader}({manifest.step}).value({entry.name!r}, "
            f"{holders[0]!r})"
        )
    return None


def _add(
    registry: Registry,
    entry: ComponentEntry,
    saved: AnySharing,
    state: object,
    topology: Topology,
) -> None:
    """Add a live object as what it was saved as: nobody declares that for a load."""
    sharing = saved if entry.kind == "tree" else None
    if holds_own_keys(saved) and topology.world_size > 1:
        sharing = Sharing.SHARDED
    kind: Literal["tensors", "tree"] | None = None
    if entry.kind == "tensors" and _has_tensors(state):
        kind = "tensors"
    elif sharing is not None and rule_of(sharing).any_world and isinstance(state, MutableMapping):
        kind = "tree"
    registry.add(entry.name, state, sharing=sharing, kind=kind, topology=topology)


def _has_tensors(state: object) -> bool:
    """Return whether an object can be stored as tensors."""
    return isinstance(state, MutableMapping) or all(
        callable(getattr(state, name, None)) for name in ("state_dict", "load_state_dict")
    )


def _hold(checked: CheckedStep, reading: Reading) -> None:
    """Open every file that is read later; where a lease holds the step, as many as may be open."""
    engines = engines_of(component for component, _ in checked.decisions.plans)
    if engines and not reading.is_leased:
        raise StorageUnavailable(
            f"load: component {engines[0].name}: an engine opens its files by their paths, and "
            "this root takes no lease that would keep them from a prune. Load from a root that "
            "can be written, or from a copy of it."
        )
    try:
        checked.reader.hold(checked.requests())
    except StorageUnavailable as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        checked.reader.release()
        if not reading.is_leased:
            raise StorageUnavailable(
                f"load: {error} The root takes no lease, so that all files must be open before "
                "anything is changed. Raise the limit (`ulimit -n`), or load with more ranks.",
                errno=error.errno,
                path=error.path,
            ) from error


def _fill(reading: Reading, checked: CheckedStep) -> None:
    """Change live state; damage of a step that was taken away meanwhile is no damage."""
    try:
        checked.apply(reading.tick)
    except (Corrupt, KeyNotFound):
        reading.require_standing()
        raise
