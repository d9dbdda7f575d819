"""One participant's share of a restore from a foreign DCP folder: as strict, but without digests.

Invariants: nothing live changes before `Apply`; nothing is unpickled; all participants see the same
`.metadata`. What the payload holds is taken as it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.components import (
    SavedComponent,
    SavedTensor,
    Sharing,
    byte_view,
    foreign_components,
    tree_of,
)
from stepseal.errors import Corrupt, StateMismatch
from stepseal.layout import intersect, step_name
from stepseal.session._dcp_folder import DcpFolder, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from stepseal.components import Component, ForeignComponent, ForeignTensor, RestorePlan
    from stepseal.layout import Box, TensorSink
    from stepseal.protocol import Candidate
    from stepseal.session._targets import Targets
    from stepseal.storage import Storage

__all__ = ["CheckedFolder", "check_folder"]

_log = logging.getLogger("stepseal")


@dataclass(frozen=True, slots=True)
class CheckedFolder:
    """A foreign folder that fits: what is left is to copy its tensors and to apply the rest."""

    folder: DcpFolder
    plans: tuple[tuple[Component, ForeignComponent, RestorePlan], ...]

    def reads(self) -> Iterator[tuple[ForeignTensor, set[Box], TensorSink]]:
        """Yield each tensor that is needed here, with the boxes to read and their sink."""
        for _, foreign, plan in self.plans:
            for key, sink in plan.sinks.items():
                tensor = foreign.tensors[key]
                near = {b.box for b in tensor.boxes if intersect(b.box, sink.wanted) is not None}
                yield tensor, near, sink

    def report(self) -> dict[str, str]:
        """Return, per component, what was taken."""
        return {
            component.name: f"restored, unverified ({component.kind}, {len(plan.sinks)} tensors)"
            for component, _, plan in self.plans
        }

    def apply(self, check_cancelled: Callable[[], None]) -> None:
        """Copy every tensor needed here, then finish each component; changes live state.

        Args:
            check_cancelled: called before every read and every component; raises to give up.

        Raises:
            UnsupportedState, Corrupt: a record is refused; live state may hold a mix by now.
        """
        for tensor, near, sink in self.reads():
            for box, piece in self.folder.boxes(tensor, near):
                check_cancelled()
                sink.write(box, 0, byte_view(piece))
        for _, _, plan in self.plans:
            check_cancelled()
            plan.apply()


def check_folder(storage: Storage, candidate: Candidate, targets: Targets) -> CheckedFolder:
    """Check all of a folder but the elements, and plan how live state takes it; touch nothing.

    Raises:
        UnsupportedState: the folder names something that is not taken from foreign checkpoints.
        Corrupt: the folder is not whole, or not the one that the coordinator chose.
        StateMismatch: saved and live state differ; `.problems` lists every difference.
    """
    folder = _open(storage, candidate)
    found = foreign_components(folder.index)
    problems = _name_problems(found, targets)
    plans = []
    for component in targets.components:
        if component.name not in found:
            continue
        try:
            saved = _saved(folder, found, component)
            plan = component.plan(saved, targets.topology)
            plans.append((component, found[component.name], plan))
        except StateMismatch as error:
            problems += [f"component {component.name}: {p}" for p in error.problems or (error,)]
    if problems:
        raise StateMismatch(
            f"foreign and live state differ: {'; '.join(problems[:10])}"
            f"{f' and {len(problems) - 10} more' if len(problems) > 10 else ''}",
            step=candidate.step,
            participant=targets.topology.me,
            problems=tuple(problems),
        )
    checked = CheckedFolder(folder, tuple(plans))
    for tensor, near, _ in checked.reads():
        folder.check(tensor, near)
    if targets.topology.rank == 0:
        _log.warning(
            "stepseal: restoring unverified: %s was not written by stepseal, and no digest covers "
            "its bytes",
            step_name(candidate.step),
        )
    return checked


def _open(storage: Storage, candidate: Candidate) -> DcpFolder:
    """Return the folder that the coordinator chose, and no other."""
    name = step_name(candidate.step)
    folder = DcpFolder(storage, name)
    if folder.sha256 != candidate.manifest_sha256:
        raise Corrupt(
            f"restore of step {candidate.step}: {name}: expected the .metadata with SHA-256 "
            f"{candidate.manifest_sha256}, found {folder.sha256}: it changed, or this participant "
            "sees another root.",
            step=candidate.step,
            path=name,
        )
    return folder


def _name_problems(found: Mapping[str, ForeignComponent], targets: Targets) -> list[str]:
    live = {component.name for component in targets.components}
    problems = [
        f"component {name}: added here, but not in the folder; restore(skip=[{name!r}]) leaves it "
        "as it is"
        for name in sorted(live - found.keys())
    ]
    problems += [
        f"component {name}: in the folder, but not added here; restore(skip=[{name!r}]) leaves it "
        "out"
        for name in sorted(found.keys() - live - targets.skip)
    ]
    problems += [
        f"skip: component {name}: neither added here nor in the folder"
        for name in sorted(targets.skip - targets.known - found.keys())
    ]
    return problems


def _saved(
    folder: DcpFolder, found: Mapping[str, ForeignComponent], component: Component
) -> SavedComponent:
    """Return a foreign component as a step would have held it for this live one."""
    foreign, name = found[component.name], component.name
    values = folder.values(foreign)
    tensors: dict[str, SavedTensor] = {}
    value: object
    if component.kind == "tree":
        for key, tensor in foreign.tensors.items():
            values[key] = folder.tensor(tensor)
        value = foreign.nested({key: values[key] for key in foreign.paths})
    else:
        tensors = {
            key: SavedTensor(key, one.dtype, one.shape) for key, one in foreign.tensors.items()
        }
        value = value_of(found, name, values)
    tree = None if value is None else tree_of(value, name)
    return SavedComponent(name, component.kind, Sharing.GLOBAL, tensors, tree, 1)
