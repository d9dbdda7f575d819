"""A committed step against live state: verified and planned first, then streamed in.

Invariants: checking touches nothing; no byte reaches a sink before its digest matched; the RNG
comes last, so that nothing that loads can disturb it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.components import SavedComponent, SavedTensor
from stepseal.layout import Sharing, payload_owner, step_name
from stepseal.session._targets import SavedStep, apply_all
from stepseal.transfer import ReadRequest, StepReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stepseal.components import Topology
    from stepseal.layout import ComponentEntry, Manifest, TensorSink
    from stepseal.session._targets import Decisions, Targets
    from stepseal.storage import Storage

__all__ = ["CheckedStep", "check_step_fits"]


@dataclass(frozen=True, slots=True)
class CheckedStep:
    """A step that fits: what is left is to stream its tensors and to apply the rest."""

    reader: StepReader
    decisions: Decisions

    def requests(self) -> list[ReadRequest]:
        """Return, for each tensor that is needed here, its stored boxes and its sink."""
        return self._requests(
            (component.name, key, sink)
            for component, plan in self.decisions.plans
            for key, sink in plan.sinks.items()
        )

    def scan(self) -> None:
        """Read what is cast to a smaller range, and let its scans look; change nothing.

        Raises:
            Corrupt: a digest did not match.
        """
        requests = self._requests(self.decisions.scans())
        self.reader.stream(requests, check_cancelled=lambda: None)

    def _requests(self, wanted: Iterable[tuple[str, str, TensorSink]]) -> list[ReadRequest]:
        return [
            ReadRequest(stored, sink)
            for component, key, sink in wanted
            for stored in self.reader.stored(component)[key]
        ]

    def apply(self, check_cancelled: Callable[[], None]) -> None:
        """Stream every tensor needed here, then finish each component; changes live state.

        Args:
            check_cancelled: called before every read and every component; raises to give up.

        Raises:
            Corrupt: a digest did not match; live state may hold a mix of old and new by now.
        """
        self.reader.stream(self.requests(), check_cancelled=check_cancelled)
        apply_all(self.decisions.plans, check_cancelled)


def check_step_fits(
    storage: Storage, manifest: Manifest, manifest_sha256: str, targets: Targets
) -> CheckedStep:
    """Verify indexes and trees, and plan how live state takes them; touch nothing.

    Args:
        storage: the root.
        manifest: of the step, verified.
        manifest_sha256: digest of its bytes.
        targets: live state.

    Raises:
        Corrupt: bytes do not match their digest.
        InvalidInput: a policy of a component that is neither live nor in the step.
        StateMismatch: saved and live state differ; `.problems` lists every difference.
    """
    reader = StepReader(storage, step_name(manifest.step), manifest)
    entries = {entry.name: entry for entry in manifest.components}
    saved = SavedStep(
        manifest.step,
        entries,
        num_participants=len(manifest.participants),
        seed=manifest_sha256[:32],
        open=lambda one: _saved_component(reader, manifest, entries[one.name], targets.topology),
    )
    checked = CheckedStep(reader, targets.decide(saved))
    checked.scan()
    targets.check_ranges(checked.decisions, manifest.step)
    return checked


def _saved_component(
    reader: StepReader, manifest: Manifest, entry: ComponentEntry, topology: Topology
) -> SavedComponent:
    tensors = {}
    if entry.kind == "tensors":
        for key, boxes in reader.stored(entry.name).items():
            first = boxes[0].tensor
            digests = frozenset((box.tensor.box, box.tensor.chunk_digests) for box in boxes)
            tensors[key] = SavedTensor(key, first.dtype, first.shape, digests)
    sharing = Sharing(entry.sharing)
    owner = payload_owner(sharing, entry.payloads, topology.me)
    tree = None
    if owner is not None and reader.has_tree(entry.name, owner):
        tree = reader.read_tree(entry.name, owner)
    return SavedComponent(
        entry.name, entry.kind, sharing, tensors, tree, len(manifest.participants)
    )
