"""Broken variants of the protocol, small patches of its real code: the simulator must see each.

Each is a mistake that a checkpoint library can make. Where a second safeguard would turn it into a
clean abort, the patch takes that away too and says so.
"""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.campaigns.simulator import _coordinator as _sim_coordinator
from tests.campaigns.simulator import _participant as _sim_participant
from tests.campaigns.simulator import _parts as _sim_parts
from tests.campaigns.simulator import _variants_actors as actors
from tests.campaigns.simulator import _variants_engines as engines
from tests.campaigns.simulator import _variants_keeping as keeping
from tests.campaigns.simulator import _variants_replicas as replicas
from tests.campaigns.simulator import _variants_triggers as triggers
from tests.campaigns.simulator._parts import Indexer, facts_of, payload_of, write_files
from tests.campaigns.simulator._world import Faults

from stepseal.errors import CheckpointError, CoordinatorLost
from stepseal.layout import LATEST, Manifest, parse_step_name, step_name
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol import _outcome
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._incarnation import Incarnation
from stepseal.protocol._restore_round import RestoreRound
from stepseal.protocol._save_round import SaveRound
from stepseal.steps import _attempts, _claims, _owned, _publish, _removal, _select
from stepseal.steps._roots import STAGING
from stepseal.storage import (
    KeyExists,
    KeyNotFound,
    Storage,
    create_durable,
    read_bytes,
    remove_tree,
    replace_durable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.layout import Area

__all__ = ["VARIANTS", "Variant", "broken"]

_USUAL = Faults()
_RACY = Faults(switch=0.3, second=0.8, pause=0.8)
_HARSH = Faults(refuse=0.03, unreadable=0.05)
_ROTTEN = Faults(rot=1.0, fail=0.05)
_OVERLAPPING = Faults(
    switch=0.3, stall=0.3, second=1.0, crash=0.1, pause=0.3, power=0.0, back=0.0
)  # fmt: skip
_SLOW = Faults(switch=0.3, slow=0.3, loss=0.0, crash=1.0, pause=0.0, power=0.0)
_BUSY = Faults(
    switch=0.3, slow=0.1, stall=0.4, readers=1.0,
    loss=0.0, fail=0.0, crash=0.0, pause=0.0, rot=0.0,
)  # fmt: skip
_BACKWARDS = Faults(back=1.0, loss=0.0, fail=0.0, crash=0.1, pause=0.1, power=0.0)
_ENGINES = Faults(engines=1.0)
_DIFFERING = Faults(differ=0.3)
_REPEATING = Faults(repeat=0.5, fail=0.1)


@dataclass(frozen=True)
class Variant:
    """A protocol to run instead of the real one, and the trouble in which it shows."""

    patches: Callable[[], list[tuple[object, str, object]]]
    faults: Faults = _USUAL


@contextlib.contextmanager
def broken(name: str) -> Iterator[Faults]:
    """Run the protocol as this variant inside the block."""
    variant = VARIANTS[name]
    with ExitStack() as stack:
        for owner, attribute, new in variant.patches():
            stack.enter_context(mock.patch.object(owner, attribute, new))
        yield variant.faults


def _trusting() -> list[tuple[object, str, object]]:
    """Take away the coordinator's own look at the files."""
    return [(Indexer, "inspect", lambda *_args, **_options: ())]


# -- saves -----------------------------------------------------------------------------------------


def _commit_early() -> list[tuple[object, str, object]]:
    """The first who prepared counts for everybody."""
    real = SaveRound.on_prepared

    def on_prepared(self: SaveRound, who: str, message: Any, now: float) -> list[Any]:  # noqa: ANN401
        todo = []
        for participant in (who, *self.participants):
            part = message.part if participant == who else facts_of(participant, b"".ljust(96))
            told = messages.Prepared(message.call, message.attempt, part, message.digests)
            todo += real(self, participant, told, now)
        return todo

    return [(SaveRound, "on_prepared", on_prepared), *_trusting()]


def _prepare_early() -> list[tuple[object, str, object]]:
    """A part is reported as soon as its document is written."""

    def write(self: _sim_participant.Process, order: messages.Write) -> None:
        data = payload_of(order.attempt, self.name)
        self.oracle.hold(order, self.name, self.replica)
        with contextlib.suppress(CheckpointError):
            for piece in write_files(self.disk, order.staging, self.name, data):
                if piece == "document":
                    self.report(order, facts_of(self.name, data))
            self.oracle.prepared.setdefault(order.attempt, set()).add(self.name)
        self.busy = False
        self.world.at(0.0, self.go_on, self.node)

    return [(_sim_participant.Process, "write", write), *_trusting()]


def _tell_early() -> list[tuple[object, str, object]]:
    """Everybody is told of success when the publication begins."""
    real = Coordinator.on_message

    def on_message(self: Coordinator, who: str, message: Any, *rest: Any) -> list[Any]:  # noqa: ANN401
        todo = real(self, who, message, *rest)
        told = [
            actions.Send(p, messages.Committed(a.call, a.attempt, a.step, "0" * 64))
            for a in todo
            if isinstance(a, actions.Publish)
            for p in self.participants
        ]
        return [*told, *todo]

    return [(Coordinator, "on_message", on_message)]


def _abort_unknown() -> list[tuple[object, str, object]]:
    """A publication of which nobody knows what became is told as aborted."""
    real = Incarnation.perform

    def perform(self: Incarnation, action: Any) -> Any:  # noqa: ANN401
        event = real(self, action)
        if isinstance(event, actions.PublishUnknown):
            return actions.IoFailed(event.call, event.cause)
        return event

    return [(Incarnation, "perform", perform)]


def _no_deadline() -> list[tuple[object, str, object]]:
    real = _publish.publish

    def publish(*args: Any, **options: Any) -> str:  # noqa: ANN401
        return real(*args, **(options | {"deadline_passed": lambda: False}))

    return [(_owned, "publish", publish)]


class _Unsynced:
    """A storage that takes directories for durable as they are."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the verb
        return getattr(self.inner, name)

    def sync_dir(self, key: str) -> None: ...


def _no_root_sync() -> list[tuple[object, str, object]]:
    real = _publish._commit

    def commit(storage: Any, *args: Any) -> None:  # noqa: ANN401
        real(_Unsynced(storage), *args)

    return [(_publish, "_commit", commit)]


def _replace_target() -> list[tuple[object, str, object]]:
    """What stands in the place of a step is removed for the new one: the last writer wins."""

    def commit(
        storage: Storage, staging: str, manifest: Manifest, last_look: Callable[[], None]
    ) -> None:
        last_look()
        target = step_name(manifest.step)
        try:
            storage.rename(staging, target)
        except KeyExists:
            remove_tree(storage, target)
            storage.rename(staging, target)
        storage.sync_dir("")

    return [(_publish, "_commit", commit)]


def _fail_unheard() -> list[tuple[object, str, object]]:
    """Who prepared and lost the coordinator takes the save for failed."""

    def lost(*_args: object) -> None:
        raise CoordinatorLost("taken for failed")

    return [(_outcome, "_from_storage", lost)]


def _any_prepared() -> list[tuple[object, str, object]]:
    """A report counts for whatever save is being written, not for its own attempt."""
    real = Coordinator.on_message

    def on_message(self: Coordinator, who: str, message: Any, *rest: Any) -> list[Any]:  # noqa: ANN401
        if isinstance(message, messages.Prepared):
            for save in self._rounds.values():
                if isinstance(save, SaveRound) and save.phase == "write":
                    digests = {"model": {"": f"step {save.step}"}}  # else they would not fit
                    message = messages.Prepared(save.call, save.attempt, message.part, digests)
        return real(self, who, message, *rest)

    return [(Coordinator, "on_message", on_message), *_trusting()]


def _share_names() -> list[tuple[object, str, object]]:
    """Every attempt of a step uses one folder, and keeps the files that it finds there."""

    def begin(
        storage: Storage, step: int, _incarnation: int, _attempt: str, _area: Area
    ) -> _attempts.AttemptFolder:
        key = f"{STAGING}/{step_name(step)}"
        with contextlib.suppress(KeyExists):
            storage.make_dir(key)
        storage.sync_dir(STAGING)
        keep(storage, f"{key}/{_attempts.NONCE}", b"n")
        return _attempts.AttemptFolder(key, "n")

    def keep(storage: Storage, key: str, data: bytes) -> None:
        with contextlib.suppress(KeyExists):
            create_durable(storage, key, data)

    return [
        (_owned, "begin", begin),
        (_sim_parts, "create_durable", keep),
        (_owned, "discard", lambda *_: None),
        (_sim_coordinator, "discard", lambda *_: None),
    ]


def _discard_live() -> list[tuple[object, str, object]]:
    """The loss of a participant that had prepared removes what all of them wrote."""
    real = Coordinator.on_lost

    def on_lost(self: Coordinator, *arguments: Any) -> list[Any]:  # noqa: ANN401
        todo = real(self, *arguments)
        for save in self._rounds.values():
            if isinstance(save, SaveRound) and save._staging is not None:
                todo.append(actions.Discard(save._staging))
        return todo

    return [(Coordinator, "on_lost", on_lost)]


# -- incarnations and restore ----------------------------------------------------------------------


def _no_incarnation_check() -> list[tuple[object, str, object]]:
    """Nobody asks whether a newer start owns the root, and its sweep does not stop the old one."""
    return [
        (_publish, "check_current", lambda *_: None),
        (_removal, "sweep", lambda *_: ()),
    ]


def _shared_claim() -> list[tuple[object, str, object]]:
    """A number is free if it was not seen: looked up first, then written."""

    def put(storage: Storage, key: str, data: bytes) -> bool:
        try:
            storage.stat(key)
        except KeyNotFound:
            replace_durable(storage, key, data)
            return True
        return False

    return [(_claims, "put_if_absent", put)]


def _no_room() -> list[tuple[object, str, object]]:
    """What older starts staged is swept after the claim, and never before."""
    return [(_owned, "retry_after_sweep", lambda _storage, write: write())]


def _no_lineage() -> list[tuple[object, str, object]]:
    return [(_select, "in_lineage", lambda *_: True)]


def _follow_pointer() -> list[tuple[object, str, object]]:
    """The step to resume is the one that `latest` names."""
    real = _select.select

    def select(storage: Storage, run_id: str, **options: Any) -> Any:  # noqa: ANN401
        try:
            step = parse_step_name(read_bytes(storage, LATEST, 100).decode().strip())
        except KeyNotFound:
            step = None
        if options["step"] is None and step is not None:
            options["step"] = step
        return real(storage, run_id, **options)

    return [(_owned, "select", select)]


def _no_taint() -> list[tuple[object, str, object]]:
    real = RestoreRound._fail

    def fail(self: RestoreRound, *args: Any) -> Any:  # noqa: ANN401
        self._tainted = False
        return real(self, *args)

    return [(RestoreRound, "_fail", fail)]


def _missing_vote() -> list[tuple[object, str, object]]:
    """All votes but one are enough."""
    real = RestoreRound._count

    def count(self: RestoreRound, now: float) -> list[Any]:
        if len(self._voted | self._rejected.keys()) == len(self.participants) - 1:
            self._voted |= set(self.participants) - self._rejected.keys()
        return real(self, now)

    return [(RestoreRound, "_count", count)]


def _stale_votes() -> list[tuple[object, str, object]]:
    """A vote counts whatever round it was given in."""
    real = RestoreRound.on_vote

    def on_vote(self: RestoreRound, who: str, message: Any, now: float) -> list[Any]:  # noqa: ANN401
        return real(self, who, type(message)(message.call, self._round), now)

    return [(RestoreRound, "on_vote", on_vote)]


def _unverified() -> list[tuple[object, str, object]]:
    real = _sim_parts.read_part

    def read(storage: Storage, step: int, manifest: Manifest, index: int) -> bytes:
        return real(storage, step, manifest, index, verify=False)

    return [(_sim_participant, "read_part", read)]


VARIANTS = {
    "commit-early": Variant(_commit_early),
    "prepare-early": Variant(_prepare_early),
    "tell-early": Variant(_tell_early),
    "abort-though-unknown": Variant(_abort_unknown, _HARSH),
    "replicas-not-compared": Variant(replicas.not_compared, _DIFFERING),
    "missing-digest-is-equal": Variant(replicas.missing_is_equal, _DIFFERING),
    "lowest-always-passes": Variant(replicas.lowest_passes, _DIFFERING),
    "deadline-ignored": Variant(_no_deadline, Faults(slow=0.2)),
    "acknowledged-before-sync": Variant(_no_root_sync),
    "rename-replaces": Variant(_replace_target, _RACY),
    "failed-though-prepared": Variant(_fail_unheard),
    "late-prepared-accepted": Variant(_any_prepared, _REPEATING),
    "staging-shared": Variant(_share_names),
    "live-attempt-discarded": Variant(_discard_live, _SLOW),
    "sweep-ignores-incarnation": Variant(keeping.sweep_all, _RACY),
    "inventory-early": Variant(engines.inventory_early, _ENGINES),
    "inventory-unordered": Variant(engines.no_inventory_round, _ENGINES),
    "engine-files-unsynced": Variant(engines.files_unsynced, _ENGINES),
    "no-incarnation-check": Variant(_no_incarnation_check, _OVERLAPPING),
    "claim-not-exclusive": Variant(_shared_claim, _RACY),
    "room-not-made": Variant(_no_room, Faults(full=1.0)),
    "lineage-ignored": Variant(_no_lineage, _RACY),
    "pointer-followed": Variant(_follow_pointer),
    "half-restore-untainted": Variant(_no_taint, _ROTTEN),
    "missing-vote-accepted": Variant(_missing_vote),
    "stale-vote-accepted": Variant(_stale_votes, _REPEATING),
    "restore-unverified": Variant(_unverified, _ROTTEN),
    "pruned-without-second-look": Variant(keeping.no_second_look, _BUSY),
    "guards-not-read-again": Variant(keeping.early_guards, _BUSY),
    "pruned-by-a-stale-job": Variant(keeping.stale_prune, _RACY),
    "leases-ignored": Variant(keeping.no_leases, _BUSY),
    "pins-ignored": Variant(keeping.no_pins, _BUSY),
    "pruned-in-place": Variant(keeping.prune_in_place),
    "grace-ignored": Variant(keeping.no_grace, _BACKWARDS),
    "grace-from-the-save": Variant(keeping.grace_from_save, _BACKWARDS),
    **{name: Variant(patches, Faults(triggers=1.0)) for name, patches in triggers.BROKEN.items()},
    **{name: Variant(patches, actors.faults_of(name)) for name, patches in actors.BROKEN.items()},
}
