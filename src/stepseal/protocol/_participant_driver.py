"""Runs a participant's protocol on threads: sends messages, waits with deadlines, reports outcomes.

Every wait ends: with an answer, with the loss of the coordinator, or at the participant's own
deadline.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.process import own_time_s
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import error_from, failure_of
from stepseal.protocol._participant import Participant, RestoreState, SaveState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import TypeAlias

    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._opening import Begin
    from stepseal.protocol._participant import RestoreAnswer
    from stepseal.protocol._safe_points import OwnPoints
    from stepseal.protocol._transport import Link

    Answer: TypeAlias = Callable[[messages.Compare], messages.Compared]

__all__ = ["ParticipantDriver"]

_TICK_S = 0.25


def no_digests(asked: messages.Compare) -> messages.Compared:
    """Answer as who compares nothing."""
    return messages.Compared(asked.call, {})


class ParticipantDriver:
    """One participant's view of the coordinator, shared by the threads of its process.

    Args:
        participant: own id.
        link: connection to the coordinator; started here.
        deadlines: limits per phase.
        points: own safe points, counted over all lives; None where there are none yet.

    Raises:
        CoordinatorLost: the coordinator refused this participant, or did not answer within
            `connect_s`; the link is closed.
        InvalidInput: the coordinator runs another release.
    """

    def __init__(
        self,
        participant: str,
        link: Link,
        deadlines: Deadlines,
        points: OwnPoints | None = None,
    ) -> None:
        self.participant = participant
        self._link = link
        self.deadlines = deadlines
        self._protocol = Participant(deadlines, points)
        self._changed = threading.Condition()
        self._closed = False
        link.start(self._on_message)
        self._wait(lambda: self._protocol.welcomed or self._is_lost(), deadlines.connect_s)
        if not self._protocol.welcomed:
            link.close()
            lost = self._protocol.lost
            if lost is not None and lost.kind != errors.CoordinatorLost.kind:
                raise error_from(lost.kind, lost.message, participant=participant)
            why = f"no answer within {deadlines.connect_s:g} s" if lost is None else lost.message
            raise errors.CoordinatorLost(
                f"control plane: the coordinator did not accept {participant}: {why}. Do all "
                "participants belong to the same start of the job?",
                participant=participant,
            )

    def _on_message(self, message: messages.FromCoordinator | messages.Failure) -> None:
        answer = None
        with self._changed:
            if isinstance(message, messages.Failure):
                self._protocol.on_lost(message)
            else:
                answer = self._protocol.on_message(message)
            self._changed.notify_all()
        if answer is not None:  # on the link's own thread: whatever the others do
            self._link.send(answer)

    def new_call(self) -> int:
        """Return the number of the next call."""
        with self._changed:
            return self._protocol.new_call()

    def wait_begin(self, timeout_s: float | None) -> Begin | None:
        """Wait for a call that the coordinator opens.

        Returns:
            The call; None if `timeout_s` passes first, or the coordinator is gone or has released
            this participant (see `is_lost`).
        """
        found: list[Begin] = []

        def arrived() -> bool:
            begin = self._protocol.next_begin()
            if begin is not None:
                found.append(begin)
            return bool(found) or self._is_lost()

        self._wait(arrived, timeout_s)
        return found[0] if found else None

    def pass_safe_point(self, *, waits: bool = False) -> bool:
        """Pass the next safe point; wait at it while a request of the coordinator is undecided.

        Costs no message where nobody has asked.

        Args:
            waits: wait until the coordinator names this safe point, or a later one.

        Returns:
            Whether all ranks that were asked stop at this one. Also False without a coordinator.

        Raises:
            CommitTimeout: the coordinator neither named a safe point nor gave up in time.
        """
        return self._pass(waits=waits)[0]

    def take_due(self) -> messages.Due | None:
        """Pass the next safe point; return what all ranks do at it, None for nothing.

        Raises:
            CommitTimeout: see `pass_safe_point`.
        """
        return self._pass(waits=False, takes=True)[1]

    def fire(self, fired: messages.Fired) -> None:
        """Tell the coordinator that a trigger fired here; pass no safe point until it has asked."""
        with self._changed:
            self._protocol.points.held = True
        self._link.send(fired)

    def _pass(self, *, waits: bool, takes: bool = False) -> tuple[bool, messages.Due | None]:
        passed: list[messages.SafePoint | None] = []
        due: list[messages.Due | None] = []
        points, limits = self._protocol.points, self.deadlines
        limit_s = None if waits else max(limits.connect_s, limits.capture_s) + limits.lost_s

        def done() -> bool:
            if not passed and self._is_lost():
                points.leave()
                passed.append(None)
            elif not passed and points.try_pass(waits=waits):
                passed.append(points.arrived())
                if takes and passed[0] is not None:
                    due.append(points.take_due())
            return bool(passed)

        if not self._wait(done, limit_s):
            with self._changed:
                points.leave()
            raise errors.CommitTimeout(
                f"{self.participant}: waited {limit_s:g} s at a safe point, and the coordinator "
                "neither named the target nor gave up",
                participant=self.participant,
            )
        if passed[0] is None:
            return False, None
        self._link.send(passed[0])
        return True, due[0] if due else None

    def wait_begin_here(self) -> Begin | None:
        """Wait for the call to begin at this safe point; None if it ended, or nobody is there."""
        found: list[Begin | None] = []

        def done() -> bool:
            begin = self._protocol.next_begin()
            if begin is not None or self._is_lost() or self._protocol.points.arrived() is None:
                found.append(begin)
                self._protocol.points.forget()
            return bool(found)

        self._wait(done, None)
        return found[0]

    @property
    def is_dismissed(self) -> bool:
        """True once the coordinator has released this participant."""
        with self._changed:
            return self._protocol.dismissed

    def wait_thaw(self, call: int, step: int) -> None:
        """Wait until all participants have captured, or the save has ended.

        Raises:
            CommitTimeout: neither was told in time; this participant fails the save.
        """
        state, limits = self._save(call), self.deadlines
        limit_s = limits.capture_s + limits.lost_s
        if not self._wait(lambda: state.thawed or state.settled, limit_s):
            text = f"{self.participant}: was frozen for {limit_s:g} s, and nobody told it to go on"
            error = errors.CommitTimeout(text, participant=self.participant)
            self.send_failed(call, step, "capture", error)
            raise error

    def take_up(self, begin: Begin) -> bool:
        """Return whether to begin this call; False if it was begun before."""
        with self._changed:
            return self._protocol.take_up(begin)

    @property
    def is_lost(self) -> bool:
        """True once the coordinator is gone or has released this participant."""
        with self._changed:
            return self._is_lost()

    def send_captured(self, message: messages.Captured) -> None:
        """Report a capture, and start the deadline of the save."""
        with self._changed:
            self._protocol.captured(message.call, own_time_s())
        self._link.send(message)

    def send_failed(
        self, call: int, step: int, phase: str, error: BaseException, *, publish: bool = False
    ) -> None:
        """Report that this participant cannot contribute to the save, or the publication."""
        with self._changed:
            self._protocol.captured(call, own_time_s())
        self._link.send(messages.Failed(call, step, phase, failure_of(error), publish))

    def send_returned(self, call: int, attempt: str) -> None:
        """Report that the engines of this participant have written all their files."""
        self._link.send(messages.EnginesReturned(call, attempt))

    def wait_inventory(self, call: int) -> bool:
        """Wait for the order to take the inventory; False if the save ended without one.

        True also if the save has failed since; see `wait_write`.
        """
        state = self._save(call)
        self._wait(lambda: state.inventory or state.settled, None)
        return state.inventory

    def send_prepared(
        self,
        call: int,
        attempt: str,
        part: messages.PartReport,
        digests: dict[str, dict[str, str]] | None = None,
    ) -> bool:
        """Report the part, unless the save has ended meanwhile.

        Args:
            call: number of the call.
            attempt: its attempt.
            part: what was written.
            digests: of each component and set of participants that is compared.

        Returns:
            True if the report was sent; from then on the step may exist.
        """
        with self._changed:
            if not self._protocol.prepare(call, own_time_s()):
                return False
        self._link.send(messages.Prepared(call, attempt, part, digests or {}))
        return True

    def wait_write(self, call: int, answer: Answer = no_digests) -> messages.Write | None:
        """Wait for the order to write; None if the save ended without one.

        Meanwhile it answers what the coordinator asks about replicas.

        Returns the order even if the save has failed since. Either all participants got an order or
        none did, so the same call then raises the failure on all of them.
        """
        state = self._save(call)
        self._answer(state, lambda: state.write is not None or state.settled, answer)
        return state.write

    def answer_until_settled(self, call: int, answer: Answer) -> None:
        """Answer what the coordinator asks about replicas until the save is settled."""
        state = self._save(call)
        self._answer(state, lambda: state.settled, answer)

    def _answer(self, state: SaveState, condition: Callable[[], bool], answer: Answer) -> None:
        while True:
            self._wait(lambda: condition() or bool(state.asked), None)
            with self._changed:
                if condition():
                    return
                asked = state.asked.pop(0)
            self._link.send(answer(asked))

    def ended(self, call: int) -> bool:
        """Return whether the save has ended, so that writing can stop; also checks the deadline."""
        with self._changed:
            self._protocol.on_time(own_time_s())
            return self._protocol.save(call).settled

    def wait_outcome(self, call: int, timeout_s: float | None) -> SaveState | None:
        """Wait until the save is settled; None if `timeout_s` passes first."""
        state = self._save(call)
        return state if self._wait(lambda: state.settled, timeout_s) else None

    def call_restore(self, message: messages.RestoreCalled) -> None:
        """Join a restore."""
        self._restore(message.call)
        self._link.send(message)

    def wait_order(
        self, call: int, timeout_s: float
    ) -> messages.Candidate | messages.Apply | RestoreAnswer:
        """Wait for the next order or the answer of a restore.

        Raises:
            CoordinatorLost: the coordinator is gone.
            CommitTimeout: nothing arrived within `timeout_s`.
        """
        state = self._restore(call)
        self._wait(lambda: state.has_news, timeout_s)
        with self._changed:
            if state.answer is not None:  # earlier orders are void
                return state.answer
            if state.inbox:
                return state.inbox.pop(0)
            lost = state.lost
        if lost is not None:
            text = f"restore: {self.participant}: {lost.message}. Restart the job."
            raise errors.CoordinatorLost(text, participant=self.participant)
        raise errors.CommitTimeout(
            f"restore: {self.participant}: the coordinator gave no order within {timeout_s:g} s. "
            "Restart the job.",
            participant=self.participant,
        )

    def restore_ended(self, call: int) -> bool:
        """Return whether the restore has failed or the coordinator is gone, so work can stop."""
        state = self._restore(call)
        with self._changed:
            return state.answer is not None or state.lost is not None

    def vote(self, message: messages.Checked | messages.Applied | messages.Rejected) -> None:
        """Answer an order of a restore."""
        self._link.send(message)

    def forget(self, call: int) -> None:
        """Drop a call after its outcome was read."""
        with self._changed:
            self._protocol.forget(call)

    def tell_components(self, names: Collection[str]) -> None:
        """Tell the coordinator which components this participant holds; wait until it knows."""
        self._send_and_wait(messages.Holds(list(names)), self.deadlines.connect_s)

    def _send_and_wait(self, message: messages.Holds | messages.Goodbye, limit_s: float) -> None:
        """Send a message that is answered by `Welcome`, and wait for that."""
        with self._changed:
            self._protocol.welcomed = False
        self._link.send(message)
        self._wait(lambda: self._protocol.welcomed or self._is_lost(), limit_s)

    def close(self) -> None:
        """Say goodbye, wait at most `close_s` for the answer, and close the link. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self._protocol.dismissed:
            self._send_and_wait(messages.Goodbye(), self.deadlines.close_s)
        self._link.close()

    def _is_lost(self) -> bool:
        return self._protocol.lost is not None

    def _save(self, call: int) -> SaveState:
        with self._changed:
            return self._protocol.save(call)

    def _restore(self, call: int) -> RestoreState:
        with self._changed:
            return self._protocol.restore(call)

    def _wait(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until `condition` holds, and check deadlines of calls; False at the timeout."""
        end = float("inf") if timeout_s is None else own_time_s() + timeout_s
        with self._changed:
            while not condition():
                now = own_time_s()
                if now >= end:
                    return False
                self._protocol.on_time(now)
                if condition():
                    return True
                self._changed.wait(min(_TICK_S, end - now))
            return True
