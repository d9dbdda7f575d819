"""A committed step against live state: verified and planned first, then streamed in.

Invariants: checking touches nothing; no byte reaches a sink before its digest matched; the RNG
comes last, so that nothing that loads can disturb it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.components import (
    Placement,
    SavedComponent,
    SavedPayloads,
    SavedTensor,
    readers_of,
)
from stepseal.errors import StateMismatch
from stepseal.layout import (
    Division,
    Sharing,
    holders_of,
    holds_own_keys,
    payload_owner,
    payload_report,
    role_of,
    saved_sharing,
)
from stepseal.session._engines import engines_of, saved_engine, verify_engines
from stepseal.session._saving import collection_paused
from stepseal.session._targets import SavedStep, apply_all
from stepseal.transfer import ReadRequest, StepReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stepseal.components import Component, Topology
    from stepseal.layout import AnySharing, ComponentEntry, Manifest, TensorSink
    from stepseal.session._targets import Decisions, Targets
    from stepseal.storage import Storage

__all__ = ["CheckedStep", "check_step_fits", "sharing_of"]


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
        if requests:
            self.reader.stream(requests, check_cancelled=lambda: None)

    def _requests(self, wanted: Iterable[tuple[str, str, TensorSink]]) -> list[ReadRequest]:
        return [
            ReadRequest(stored, sink)
            for component, key, sink in wanted
            for stored in self.reader.stored(component)[key]
        ]

    def apply(
        self,
        check_cancelled: Callable[[], None],
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Stream every tensor needed here, then finish each component; changes live state.

        Args:
            check_cancelled: called before every read and every component; raises to give up.
            on_bytes: called with the number of bytes after each read, by several threads.

        Raises:
            Corrupt: a digest did not match; live state may hold a mix of old and new by now.
        """
        requests = self.requests()
        on_bytes(self.reader.tree_bytes)
        self.reader.stream(requests, check_cancelled=check_cancelled, on_bytes=on_bytes)
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
    reader = StepReader(storage, manifest.key, manifest)
    entries = {entry.name: entry for entry in manifest.components}
    sharings = {name: sharing_of(entry, manifest) for name, entry in entries.items()}

    def find(one: Component) -> SavedComponent:
        saved, entry = sharings[one.name], entries[one.name]
        if "external" in (one.kind, entry.kind):
            return saved_engine(storage, manifest, entry, saved, one)
        mine = _coordinate(one, targets.topology) if isinstance(saved, Division) else None
        return _saved_component(reader, manifest, entry, saved, targets.topology.me, mine)

    def all_payloads(name: str) -> SavedPayloads | None:
        return _saved_payloads(reader, manifest, entries[name], sharings[name])

    saved = SavedStep(
        manifest.step,
        entries,
        nums_holders={name: len(holders_of(manifest, one)) for name, one in entries.items()},
        expected_here=_expected_here(manifest, targets),
        seed=manifest_sha256[:32],
        open=find,
        sharings=sharings,
        payloads=all_payloads,
        left_out=manifest.left_out,
    )
    with collection_paused():
        checked = CheckedStep(reader, targets.decide(saved))
    live = (component for component, _ in checked.decisions.plans)
    verify_engines(engines_of(live), storage, manifest, reader, targets.topology)
    checked.scan()
    targets.check_ranges(checked.decisions, manifest.step)
    return checked


def sharing_of(entry: ComponentEntry, manifest: Manifest) -> AnySharing:
    """Return the sharing that a component was saved with, with its sets where it has some."""
    holders = holders_of(manifest, entry)
    return saved_sharing(entry.sharing, entry.payloads, entry.options, holders)


def _expected_here(manifest: Manifest, targets: Targets) -> frozenset[str]:
    """Return the components that this participant should hold: all but those of other roles.

    Where the job has other roles, its coordinator checks that somebody holds each component.
    """
    mine = {role_of(targets.topology.me), ""}
    return frozenset(
        one.name for one in manifest.components if one.role in mine or not targets.has_other_roles
    )


def _coordinate(component: Component, topology: Topology) -> str | None:
    """Return the coordinate of the payload that this participant reads, where sets share them."""
    live = component.sharing(topology)
    if not isinstance(live, Division):
        return None
    return payload_report(live, topology.rank, topology.participants).coordinate


def _saved_payloads(
    reader: StepReader, manifest: Manifest, entry: ComponentEntry, sharing: AnySharing
) -> SavedPayloads | None:
    """Return all payloads of a component; None if it is not of kind `tree`.

    Raises:
        StateMismatch: a participant of the save has no payload.
    """
    if entry.kind != "tree":
        return None
    holders = holders_of(manifest, entry)
    readers = readers_of(sharing, holders)
    owners = [entry.payloads.get(first, "") for first in readers.values()]
    missing = [
        first
        for first, owner in zip(readers.values(), owners, strict=True)
        if not owner or not reader.has_tree(entry.name, owner)
    ]
    if missing:
        text = f"expected a payload of each participant of the save, found none of {missing[0]}"
        raise StateMismatch(f"component {entry.name}: {text}.", problems=(text,))
    placement = Placement(
        sharing=Sharing(sharing.value),
        world_size=len(holders),
        coordinates=tuple(readers),
    )
    reads = [functools.partial(reader.read_tree, entry.name, owner) for owner in owners]
    return SavedPayloads(placement, reads)


def _saved_component(
    reader: StepReader,
    manifest: Manifest,
    entry: ComponentEntry,
    sharing: AnySharing,
    me: str,
    coordinate: str | None,
) -> SavedComponent:
    tensors = {}
    if entry.kind == "tensors":
        for key, boxes in reader.stored(entry.name).items():
            first = boxes[0].tensor
            digests = frozenset((box.tensor.box, box.tensor.chunk_digests) for box in boxes)
            tensors[key] = SavedTensor(key, first.dtype, first.shape, digests)
    holders = holders_of(manifest, entry)
    if holds_own_keys(sharing):  # any rank may take what any set saved
        owners = sorted(set(entry.payloads.values()), key=holders.index)
        parts = tuple(reader.read_tree(entry.name, owner) for owner in owners)
        num = len(holders)
        return SavedComponent(entry.name, entry.kind, sharing, tensors, None, num, parts)
    owner = payload_owner(sharing, entry.payloads, me, coordinate=coordinate, participants=holders)
    tree = None
    if owner is not None and reader.has_tree(entry.name, owner):
        tree = reader.read_tree(entry.name, owner)
    return SavedComponent(entry.name, entry.kind, sharing, tensors, tree, len(holders))
