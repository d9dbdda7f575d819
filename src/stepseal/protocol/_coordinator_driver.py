"""Runs the coordinator on three threads: messages and time, storage work, and housekeeping.

Invariants:

- There is one driver per incarnation.
- The protocol's thread never waits for storage, so it handles messages, losses and deadlines while
  a step is being published.
- All deletions run on the housekeeping thread. A save waits at most two seconds for the deletion of
  aborted attempts.
- If the driver ends because of a defect, it closes all connections, so that no participant waits.
"""

from __future__ import annotations

import functools
import logging
import queue
import secrets
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

from stepseal.process import OWN_SLICE_S, own_time_s, start_thread
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._incarnation import Incarnation, discard_aborted
from stepseal.protocol._stragglers import Stragglers
from stepseal.protocol._summing_up import views_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._draft import JobInfo
    from stepseal.protocol._figures import Show
    from stepseal.protocol._gates import Gate
    from stepseal.protocol._incarnation import Announce, Housekeep
    from stepseal.protocol._opening import Opening
    from stepseal.protocol._steps import CoordinatorSteps
    from stepseal.protocol._transport import Hub
    from stepseal.protocol._triggers import Timing

    Input = (
        tuple[str, messages.FromParticipant | messages.Failure, str]
        | Callable[[], list[actions.Action]]
        | actions.DriverEvent
        | Literal["job done", "stop"]
    )
    Job = actions.BeginStaging | actions.Publish | actions.Select | actions.Claim | None
    Chore = actions.Discard | Literal["sweep and prune"] | None

__all__ = ["CoordinatorDriver"]

_log = logging.getLogger("stepseal")
_JOIN_S = 2.0
"""Seconds that `close` waits for a thread that has nothing left to do."""
_ROOM_S = 2.0
"""Seconds that a save waits at most for the deletion of aborted attempts."""
_BREATH_S = 1.0
"""Seconds by which a thread that wakes up later was stopped, and until it then judges others."""


class CoordinatorDriver:
    """Runs one `Coordinator` on a thread, its storage work on another, and deletes on a third.

    Args:
        steps: the step store of the root.
        participants: those who make the calls, in ordinal order; none where `open` does.
        hub: connections to them; started and closed here.
        deadlines: limits per phase.
        job: facts for each manifest.
        housekeep: sweeps after the claim and prunes after each commit, on its own thread.
        announce: tells others of each commit; closed here.
        gates: what writers save by themselves.
        timing: triggers that depend on time alone; None for none.
        show: shows people how far each call is; closed here.

    Raises:
        ParticipantFailed: one of the threads cannot be had; the hub is closed.
    """

    def __init__(
        self,
        steps: CoordinatorSteps,
        participants: tuple[str, ...],
        *,
        hub: Hub,
        deadlines: Deadlines,
        job: JobInfo,
        housekeep: Housekeep | None = None,
        announce: Announce | None = None,
        gates: tuple[Gate, ...] = (),
        timing: Timing | None = None,
        show: Show | None = None,
    ) -> None:
        self._show = show
        self._stragglers = Stragglers()
        self._steps = steps
        self._deadlines = deadlines
        self._hub = hub
        self._announce = announce
        self._incarnation = Incarnation(steps, job=job, housekeep=housekeep, announce=announce)
        new_attempt = functools.partial(secrets.token_hex, 16)
        self._protocol = Coordinator(participants, deadlines, new_attempt, gates, timing)
        self._inbox: queue.SimpleQueue[Input] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._chores: queue.SimpleQueue[Chore] = queue.SimpleQueue()
        self._opened: dict[int, Future[actions.Told]] = {}
        self._connecting: dict[str, Future[None]] = {}
        """Life to whoever waits for it to connect."""
        self._num_jobs = 0
        self._discarded = threading.Condition()
        self._num_discards = 0
        self._left = threading.Event()
        self._closed = False
        self._slept_s = time.monotonic() - own_time_s()
        self._judges_from_s = 0.0
        """After this process was stopped: the hub first reads what came meanwhile."""
        self._thread = threading.Thread(
            target=self._serve, name="stepseal-coordinator", daemon=True
        )
        self._worker = threading.Thread(target=self._work, name="stepseal-commit", daemon=True)
        self._keeper = threading.Thread(target=self._keep_house, name="stepseal-keep", daemon=True)
        self._started: list[threading.Thread] = []
        try:
            hub.start(lambda participant, found, life: self._inbox.put((participant, found, life)))
            for thread in (self._thread, self._worker, self._keeper):
                start_thread(thread)
                self._started.append(thread)
        except BaseException:
            self.close(linger=False)
            raise

    def admit(self, participant: str, life: str, *, steps: bool = False) -> Future[None]:
        """Let a participant take part in later calls; its earlier life ends.

        Args:
            participant: its id.
            life: random text that no other admission has.
            steps: it begins its calls at safe points.

        Returns:
            Done once this life has connected.
        """
        connected: Future[None] = Future()
        self._connecting[life] = connected
        connected.add_done_callback(lambda _: self._connecting.pop(life, None))
        self._inbox.put(lambda: self._protocol.admit(participant, life, steps=steps))
        return connected

    def release(self, participant: str) -> None:
        """Let a participant take no part in later calls, and tell it so."""
        self._inbox.put(lambda: self._protocol.release(participant))

    def open(self, opening: Opening) -> Future[actions.Told]:
        """Open a call for all participants; return its outcome to come.

        If the driver ends first, the outcome is a `CancelledError`.
        """
        outcome: Future[actions.Told] = Future()

        def begin() -> list[actions.Action]:
            call, todo = self._protocol.open(opening, time.monotonic())
            self._opened[call] = outcome
            return todo

        self._inbox.put(begin)
        return outcome

    def lost(self, participant: str, life: str, cause: messages.Failure) -> None:
        """Report the death of a life that somebody else than the hub has noticed."""
        self._inbox.put(lambda: self._protocol.on_lost(participant, cause, life))

    def unreached(self, call: int, participant: str, cause: messages.Failure) -> None:
        """Report that a participant could not be brought to begin a call."""
        self._inbox.put(lambda: self._protocol.on_unreached(call, participant, cause))

    def close(self, *, linger: bool = True) -> None:
        """Wait up to `close_s` until all participants are done or lost; then stop. Idempotent.

        Args:
            linger: False stops at once, where nobody is going to say goodbye.
        """
        if self._closed:
            return
        self._closed = True
        self._inbox.put(list)  # lets an idle driver look whether somebody is left
        if linger:
            self._left.wait(self._deadlines.close_s)
        self._inbox.put("stop")
        self._jobs.put(None)
        self._join(self._thread, self._worker)
        self._chores.put(None)  # after the prune of the last commit
        self._join(self._keeper)
        self._hub.close()
        if self._announce is not None:
            self._announce.close()
        if self._show is not None:
            self._show.close()

    def _join(self, *threads: threading.Thread) -> None:
        for thread in threads:
            if thread in self._started:
                thread.join(_JOIN_S)

    def _serve(self) -> None:
        try:
            while self._take_all():
                now = time.monotonic()
                if now >= self._judges_from_s:
                    self._perform(self._protocol.on_time(now))
                    self._look(now)
                idle = self._num_jobs == 0 and not self._protocol.busy
                if idle and self._protocol.everybody_left:
                    self._left.set()
        except Exception:
            _log.exception("stepseal: defect in the coordinator; all participants are released")
            self._hub.close()
            self._left.set()
        finally:
            waiting: list[Future[Any]] = list(self._opened.values())
            for outcome in waiting + list(self._connecting.values()):
                outcome.cancel()
            self._opened.clear()

    def _take_all(self) -> bool:
        """Wait for an event or the next deadline, and handle all events; False to stop."""
        due_s = min(self._protocol.next_deadline(), self._stragglers.next_s)
        left_s = max(due_s, self._judges_from_s) - time.monotonic()
        try:
            found = self._get(min(max(0.0, left_s), OWN_SLICE_S))
            while found != "stop":
                self._take(found)
                found = self._inbox.get_nowait()
        except queue.Empty:
            return True  # deadlines may be checked now
        return False

    def _get(self, limit_s: float) -> Input:
        """Wait for an event; nobody is charged with the time in which this process was stopped.

        Raises:
            queue.Empty: none came.
        """
        try:
            return self._inbox.get(timeout=limit_s)
        finally:
            now_s = time.monotonic()
            slept_s = now_s - own_time_s() - self._slept_s
            if slept_s > _BREATH_S:
                self._slept_s += slept_s
                self._protocol.on_slept(slept_s)
                self._judges_from_s = now_s + _BREATH_S

    def _take(self, found: Input) -> None:
        now = time.monotonic()
        if isinstance(found, str):
            self._num_jobs -= 1
        elif callable(found):
            self._perform(found())
        elif not isinstance(found, tuple):
            self._perform(self._protocol.on_driver(found, now))
        elif isinstance(found[1], messages.Failure):
            self._perform(self._protocol.on_lost(found[0], found[1], found[2]))
        else:
            _log.debug("stepseal: %s reports %s", found[0], type(found[1]).__name__)
            self._perform(self._protocol.on_message(found[0], found[1], now, found[2]))

    def _perform(self, todo: list[actions.Action]) -> None:
        for action in todo:
            if isinstance(action, actions.Send):
                _log.debug("stepseal: %s is told %s", action.to, type(action.message).__name__)
                self._hub.send(action.to, action.message)
            elif isinstance(action, actions.Told):
                opened = self._opened.pop(action.outcome.call)
                if opened.set_running_or_notify_cancel():  # else nobody waits for it any more
                    opened.set_result(action)
            elif isinstance(action, (actions.Warn, actions.Inform)):
                self._say(action)
            elif isinstance(action, actions.Connected):
                connected = self._connecting.pop(action.life, None)
                if connected is not None and connected.set_running_or_notify_cancel():
                    connected.set_result(None)
            else:
                self._num_jobs += 1
                if isinstance(action, actions.Discard):
                    with self._discarded:
                        self._num_discards += 1
                    self._chores.put(action)
                else:
                    self._jobs.put(action)

    def _look(self, now: float) -> None:
        """Warn of who is late, and show how far all are."""
        calls, waiting = self._protocol.seen()
        self._perform(self._stragglers.look(calls, waiting, now))
        if self._show is not None:
            self._show.calls(views_of(calls))

    def _say(self, action: actions.Warn | actions.Inform) -> None:
        if self._show is not None:
            self._show.hide()  # a record of the log begins a line of its own
        if isinstance(action, actions.Warn):
            _log.warning("stepseal: %s", action.text)
            return
        _log.info("stepseal: %s", action.text)
        if self._show is not None:
            self._show.line(action.text)

    def _work(self) -> None:
        while (action := self._jobs.get()) is not None:
            if isinstance(action, actions.BeginStaging):
                self._wait_for_room()
            event = self._incarnation.perform(action)
            self._inbox.put(event)  # before `latest` is moved
            if isinstance(event, actions.Published):
                self._incarnation.after_commit()
            if isinstance(event, (actions.Published, actions.Claimed)):
                self._chores.put("sweep and prune")
            else:
                self._inbox.put("job done")
        self._incarnation.close()

    def _wait_for_room(self) -> None:
        """Wait shortly for the deletion of aborted attempts, which may have filled the disk."""
        with self._discarded:
            limit_s = min(_ROOM_S, self._deadlines.commit_s / 2)
            self._discarded.wait_for(lambda: self._num_discards == 0, limit_s)

    def _keep_house(self) -> None:
        """Delete aborted attempts; sweep and prune once for all commits since the last time."""
        going_on = True
        while going_on:
            chores = [self._chores.get()]
            while not self._chores.empty():
                chores.append(self._chores.get())
            for chore in chores:
                if isinstance(chore, actions.Discard):
                    discard_aborted(self._steps, chore)
                    with self._discarded:
                        self._num_discards -= 1
                        self._discarded.notify_all()
            if "sweep and prune" in chores:
                self._incarnation.housekeep()
            going_on = None not in chores
            for chore in chores:
                if chore is not None:
                    self._inbox.put("job done")
