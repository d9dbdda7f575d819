"""The coordinator as a thread: feeds the protocol with messages and time, and performs what it asks
on storage.

Invariants: one driver per incarnation; a failure of any action goes back into the protocol, so that
every participant hears of it; removing leftovers and moving `latest` never fail a save.
"""

from __future__ import annotations

import functools
import logging
import queue
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.commit import _actions as actions
from stepseal.commit import _messages as messages
from stepseal.commit._catalog import list_steps
from stepseal.commit._claims import claim
from stepseal.commit._coordinator import Coordinator
from stepseal.commit._draft import JobFacts, draft_manifest
from stepseal.commit._publish import Finisher, PublishUnconfirmed, begin, discard, publish, sweep
from stepseal.commit._resume import select
from stepseal.commit._roots import initialise_root
from stepseal.errors import CheckpointError, InternalError, NotRestored, StorageUnavailable
from stepseal.layout import LATEST, Lineage, step_name
from stepseal.storage import replace_durable

if TYPE_CHECKING:
    from stepseal.commit._deadlines import Deadlines
    from stepseal.commit._links import Hub
    from stepseal.storage import Storage

__all__ = ["CoordinatorDriver"]

_log = logging.getLogger("stepseal")
_IDLE_S = 0.25


@dataclass(slots=True)
class _Incarnation:
    """What the coordinator knows of its own life."""

    run_id: str
    number: int | None = None
    head: Lineage | None = None
    """Step that the next one names as its parent."""
    swept: bool = False


class CoordinatorDriver:
    """Runs one `Coordinator` on a thread of its own.

    Args:
        storage: the root, existing and writable.
        participants: everyone, in ordinal order.
        hub: lines to them; started here.
        deadlines: limits per phase.
        finisher: writes the index and inspects files.
        facts: what goes into each manifest.

    Raises:
        IncompatibleFormat, Corrupt, StorageUnavailable: from initialising the root.
    """

    def __init__(
        self,
        storage: Storage,
        participants: tuple[str, ...],
        *,
        hub: Hub,
        deadlines: Deadlines,
        finisher: Finisher,
        facts: JobFacts,
    ) -> None:
        self._storage = storage
        self._participants = participants
        self._deadlines = deadlines
        self._hub = hub
        self._finisher = finisher
        self._facts = facts
        self._life = _Incarnation(initialise_root(storage))
        self._protocol = Coordinator(participants, deadlines, lambda: secrets.token_hex(16))
        self._inbox: queue.SimpleQueue[tuple[str, messages.FromParticipant | messages.Cause]]
        self._inbox = queue.SimpleQueue()
        self._stop = threading.Event()
        self._left = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, name="stepseal-coordinator", daemon=True
        )
        hub.start(lambda participant, message: self._inbox.put((participant, message)))
        self._thread.start()

    def close(self) -> None:
        """Linger until every participant said goodbye, is lost, or `close_s` passed; then stop. Idempotent."""
        self._left.wait(self._deadlines.close_s)
        self._stop.set()
        self._inbox.put(("", messages.Heartbeat()))  # wakes the thread; nobody has that name
        self._thread.join(2 * _IDLE_S + 1.0)
        self._hub.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            wait = min(_IDLE_S, max(0.0, self._protocol.next_deadline() - time.monotonic()))
            try:
                self._take(*self._inbox.get(timeout=wait))
                while True:
                    self._take(*self._inbox.get_nowait())
            except queue.Empty:
                pass  # all that arrived is taken: now time may be judged
            self._perform(self._protocol.on_time(time.monotonic()))
            if self._protocol.everybody_left and not self._protocol.busy:
                self._left.set()

    def _take(self, participant: str, message: messages.FromParticipant | messages.Cause) -> None:
        if isinstance(message, messages.Cause):
            self._perform(self._protocol.on_lost(participant, message))
        else:
            self._perform(self._protocol.on_message(participant, message, time.monotonic()))

    def _perform(self, todo: list[actions.Action]) -> None:
        pending = deque(todo)
        while pending:
            action = pending.popleft()
            if isinstance(action, actions.Send):
                self._hub.send(action.to, action.message)
            elif isinstance(action, actions.Discard):
                self._discard(action)
            else:
                event = self._attempt(action)
                pending.extend(self._protocol.on_driver(event, time.monotonic()))
                if isinstance(event, actions.Published):
                    self._flush(pending)
                    self._after_commit()

    def _attempt(
        self, action: actions.BeginStaging | actions.Publish | actions.Select | actions.Claim
    ) -> actions.DriverEvent:
        """Perform one action; whatever goes wrong becomes an event that reaches all participants."""
        try:
            match action:
                case actions.BeginStaging():
                    return self._begin(action)
                case actions.Publish():
                    return self._publish(action)
                case actions.Select():
                    return self._select(action)
                case actions.Claim():
                    return self._claim(action)
        except PublishUnconfirmed as error:
            return actions.PublishUnknown(action.call, messages.cause_of(error))
        except (CheckpointError, OSError) as error:
            return actions.IoFailed(action.call, messages.cause_of(error))
        except Exception as error:
            _log.exception("stepseal: defect in the coordinator")
            text = (
                f"{type(error).__name__}: {error} (a defect of stepseal; see the coordinator's log)"
            )
            return actions.IoFailed(action.call, messages.Cause(InternalError.kind, text))

    def _begin(self, action: actions.BeginStaging) -> actions.Staged:
        if self._life.number is None:
            self._claim_unrestored()
        assert self._life.number is not None
        staging = begin(self._storage, action.step, self._life.number, action.attempt)
        return actions.Staged(action.call, staging.key, staging.nonce)

    def _claim_unrestored(self) -> None:
        commits = [e for e in list_steps(self._storage, self._life.run_id) if e.state != "foreign"]
        if commits:
            newest = commits[-1].name
            raise NotRestored(
                f"save: the root already holds {len(commits)} steps up to {newest}, and restore() "
                "was not called. "
                "Call restore() before training, or restore(fresh=True) to start anew beside them.",
                step=commits[-1].step,
            )
        self._life.number = claim(self._storage, None)

    def _publish(self, action: actions.Publish) -> actions.Published:
        life = self._life
        assert life.number is not None
        draft = draft_manifest(
            action,
            participants=self._participants,
            run_id=life.run_id,
            incarnation=life.number,
            parent=life.head,
            durability=self._storage.sync_support(),
            facts=self._facts,
        )
        sha256 = publish(
            self._storage,
            action.staging,
            draft,
            finisher=self._finisher,
            deadline_passed=lambda: time.monotonic() > action.deadline,
        )
        life.head = Lineage(action.step, sha256, life.number)
        return actions.Published(action.call, sha256)

    def _flush(self, pending: deque[actions.Action]) -> None:
        """Send what is to be sent before housekeeping, which may be slow."""
        while pending and isinstance(pending[0], actions.Send):
            sending = pending.popleft()
            assert isinstance(sending, actions.Send)
            self._hub.send(sending.to, sending.message)

    def _after_commit(self) -> None:
        """Housekeeping that must never fail a save."""
        assert self._life.head is not None
        step = self._life.head.step
        try:
            replace_durable(self._storage, LATEST, f"{step_name(step)}\n".encode())
            if not self._life.swept and self._life.number is not None:
                sweep(self._storage, self._life.number)
                self._life.swept = True
        except StorageUnavailable as error:
            _log.warning("stepseal: after the commit of step %d: %s", step, error)

    def _discard(self, action: actions.Discard) -> None:
        try:
            discard(self._storage, action.staging)
        except StorageUnavailable as error:
            _log.warning(
                "stepseal: leftovers of an aborted save stay for the next sweep: %s", error
            )

    def _select(self, action: actions.Select) -> actions.Selected:
        found = select(
            self._storage,
            self._life.run_id,
            step=action.step,
            exclude=action.exclude,
            inspect=functools.partial(self._finisher.inspect, exact=False),
        )
        lineage = None if found.entry is None else found.entry.lineage()
        manifest = None if found.entry is None else found.entry.manifest
        attempt = "" if manifest is None else manifest.attempt
        return actions.Selected(action.call, lineage, attempt, found.has_commits, found.reasons)

    def _claim(self, action: actions.Claim) -> actions.Claimed:
        self._life.number = claim(self._storage, action.parent)
        self._life.head = action.parent
        self._life.swept = False
        return actions.Claimed(action.call, self._life.number)
