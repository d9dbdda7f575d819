"""One participant's share of a restore from a foreign DCP folder: as strict, but without digests.

Invariants: nothing live changes before `Apply`; nothing is unpickled; all participants see the same
`.metadata`. What the payload holds is taken as it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.components import byte_view
from stepseal.errors import Corrupt
from stepseal.layout import step_name
from stepseal.session._targets import SavedStep, apply_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from stepseal.foreign import DcpFolder, ForeignTensor
    from stepseal.layout import TensorSink
    from stepseal.protocol import Candidate
    from stepseal.session._targets import Decisions, Targets
    from stepseal.storage import Storage

__all__ = ["CheckedFolder", "check_folder"]

_log = logging.getLogger("stepseal")


@dataclass(frozen=True, slots=True)
class CheckedFolder:
    """A foreign folder that fits: what is left is to copy its tensors and to apply the rest."""

    folder: DcpFolder
    decisions: Decisions

    def reads(self) -> Iterator[tuple[ForeignTensor, TensorSink]]:
        """Yield each tensor that is needed here, with its sink."""
        for component, plan in self.decisions.plans:
            for key, sink in plan.sinks.items():
                yield self.folder.components[component.name].tensors[key], sink

    def apply(
        self,
        check_cancelled: Callable[[], None],
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Copy every tensor needed here, then finish each component; changes live state.

        Args:
            check_cancelled: called before every read and every component; raises to give up.
            on_bytes: called with the number of bytes after each read.

        Raises:
            UnsupportedState, Corrupt: a record is refused; live state may hold a mix by now.
        """
        self._fill(self.reads(), check_cancelled, on_bytes)
        apply_all(self.decisions.plans, check_cancelled)

    def scan(self) -> None:
        """Read what is cast to a smaller range, and let its scans look; change nothing."""
        scans = self.decisions.scans()
        components = self.folder.components
        wanted = ((components[name].tensors[key], scan) for name, key, scan in scans)
        self._fill(wanted, lambda: None)

    def _fill(
        self,
        wanted: Iterable[tuple[ForeignTensor, TensorSink]],
        check_cancelled: Callable[[], None],
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        for tensor, sink in wanted:
            for box, piece in self.folder.boxes(tensor, sink.wanted):
                check_cancelled()
                data = byte_view(piece)
                sink.write(box, 0, data)
                on_bytes(data.nbytes)


def check_folder(storage: Storage, candidate: Candidate, targets: Targets) -> CheckedFolder:
    """Check all of a folder but the elements, and plan how live state takes it; touch nothing.

    Raises:
        UnsupportedState: the folder names something that is not taken from foreign checkpoints.
        Corrupt: the folder is not whole, or not the one that the coordinator chose.
        StateMismatch: saved and live state differ; `.problems` lists every difference.
    """
    from stepseal.foreign import DcpFolder

    step, name = candidate.step, step_name(candidate.step)
    folder = DcpFolder(storage, name)
    if folder.sha256 != candidate.manifest_sha256:
        raise Corrupt(
            f"restore of step {step}: {name}: expected the .metadata with SHA-256 "
            f"{candidate.manifest_sha256}, found {folder.sha256}: it changed, or this participant "
            "sees another root.",
            step=step,
            path=name,
        )
    saved = SavedStep(
        step,
        folder.components,
        nums_holders={},
        expected_here=folder.components,
        seed=folder.sha256,
        open=lambda one: folder.saved(one.name, one.kind),
        note=", unverified",
    )
    checked = CheckedFolder(folder, targets.decide(saved))
    for tensor, sink in checked.reads():
        folder.check(tensor, sink.wanted)
    checked.scan()
    targets.check_ranges(checked.decisions, step)
    if targets.topology.rank == 0:
        _log.warning(
            "stepseal: restoring unverified: %s was not written by stepseal, and no digest covers "
            "its bytes",
            name,
        )
    return checked
