"""The coordinator's protocol without I/O: messages, losses, time and driver answers in, actions
out.

One instance per incarnation. It dispatches to one round per call and remembers who is lost and what
was decided. The same code runs under threads, actors and a simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.commit import _actions as actions
from stepseal.commit import _messages as messages
from stepseal.commit._restore_round import RestoreRound
from stepseal.commit._save_round import SaveRound

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.commit._deadlines import Deadlines

__all__ = ["Coordinator"]


class Coordinator:
    """Decides, for every call, whether the step is committed or the candidate restored.

    Args:
        participants: everyone, in ordinal order.
        deadlines: limits per phase.
        new_attempt: returns a fresh 128-bit random id in hex at every call.
    """

    def __init__(
        self,
        participants: tuple[str, ...],
        deadlines: Deadlines,
        new_attempt: Callable[[], str],
    ) -> None:
        self.participants = participants
        self._deadlines = deadlines
        self._new_attempt = new_attempt
        self._rounds: dict[int, SaveRound | RestoreRound] = {}
        self._decided: set[int] = set()
        self._lost: dict[str, messages.Cause] = {}
        self._gone: set[str] = set()

    @property
    def everybody_left(self) -> bool:
        """True when each participant said goodbye or is lost."""
        return len(self._gone | self._lost.keys()) >= len(self.participants)

    @property
    def busy(self) -> bool:
        """True while a call is undecided."""
        return bool(self._rounds)

    def next_deadline(self) -> float:
        """Return the monotonic time at which `on_time` must be called at the latest."""
        return min((r.deadline for r in self._rounds.values()), default=float("inf"))

    def on_message(
        self, participant: str, message: messages.FromParticipant, now: float
    ) -> list[actions.Action]:
        """Take a message of a known participant."""
        if participant not in self.participants:
            return []
        todo = self._dispatch(participant, message, now)
        return todo + self._settle()

    def _dispatch(
        self, participant: str, message: messages.FromParticipant, now: float
    ) -> list[actions.Action]:
        match message:
            case messages.Hello():
                self._lost.pop(participant, None)
                return [actions.Send(participant, messages.Welcome())]
            case messages.Goodbye():
                self._gone.add(participant)
                return [actions.Send(participant, messages.Welcome())]
            case messages.PostVerdict():
                decided = message.call in self._decided
                verdict = messages.Verdict(message.call, message.step, decided)
                return [actions.Send(p, verdict) for p in self.participants]
            case messages.Heartbeat():
                return []
            case messages.RestoreCalled():
                restore = self._restore(message.call, now)
                return restore.on_called(participant, message, now) if restore else []
            case messages.Captured() | messages.Failed():
                save = self._save(message.call, now)
            case messages.Prepared():
                save = self._known_save(message.call)
            case messages.Checked() | messages.Applied() | messages.Rejected():
                return self._on_vote(participant, message, now)
        if save is None:
            return []
        if isinstance(message, messages.Captured):
            return save.on_captured(participant, message, now)
        if isinstance(message, messages.Failed):
            return save.on_failed(participant, message)
        return save.on_prepared(participant, message, now)

    def _on_vote(
        self,
        participant: str,
        message: messages.Checked | messages.Applied | messages.Rejected,
        now: float,
    ) -> list[actions.Action]:
        restore = self._rounds.get(message.call)
        if not isinstance(restore, RestoreRound):
            return []
        if isinstance(message, messages.Rejected):
            return restore.on_rejected(participant, message, now)
        return restore.on_vote(participant, message, now)

    def on_lost(self, participant: str, cause: messages.Cause) -> list[actions.Action]:
        """A participant's connection ended, or it fell silent, without a goodbye."""
        if participant not in self._gone:
            self._lost[participant] = cause
        return self._settle()

    def on_driver(self, event: actions.DriverEvent, now: float) -> list[actions.Action]:
        """Take the driver's answer to an earlier action."""
        found = self._rounds.get(event.call)
        todo: list[actions.Action] = []
        match event:
            case actions.Staged() if isinstance(found, SaveRound):
                todo = found.on_staged(event, now)
            case actions.Staged():
                todo = [actions.Discard(event.staging)]
            case actions.Published() if isinstance(found, SaveRound):
                todo = found.on_published(event)
            case actions.PublishUnknown() if isinstance(found, SaveRound):
                todo = found.on_unknown(event)
            case actions.Selected() if isinstance(found, RestoreRound):
                todo = found.on_selected(event, now)
            case actions.Claimed() if isinstance(found, RestoreRound):
                todo = found.on_claimed(event)
            case actions.IoFailed() if found is not None:
                todo = found.on_io_failed(event)
            case _:
                pass
        return todo + self._settle()

    def on_time(self, now: float) -> list[actions.Action]:
        """Judge deadlines; call after all messages that already arrived were taken."""
        todo: list[actions.Action] = []
        for found in list(self._rounds.values()):
            if now >= found.deadline:
                todo += found.on_deadline()
        return todo + self._settle()

    def _settle(self) -> list[actions.Action]:
        """Fail rounds that wait for someone who cannot answer; forget rounds that are done."""
        todo: list[actions.Action] = []
        for call, found in list(self._rounds.items()):
            for participant in found.missing():
                cause = self._absence(participant)
                if cause is not None and not found.done:
                    todo += found.on_lost(participant, cause)
            if found.done:
                del self._rounds[call]
                self._decided.add(call)
        return todo

    def _absence(self, participant: str) -> messages.Cause | None:
        if participant in self._lost:
            return self._lost[participant]
        if participant in self._gone:
            kind = errors.ParticipantFailed.kind
            return messages.Cause(kind, "closed its checkpointer before this call")
        return None

    def _save(self, call: int, now: float) -> SaveRound | None:
        if call in self._decided:
            return None
        if call not in self._rounds:
            self._rounds[call] = SaveRound(
                call, self.participants, self._new_attempt(), self._deadlines, now
            )
        return self._known_save(call)

    def _known_save(self, call: int) -> SaveRound | None:
        found = self._rounds.get(call)
        return found if isinstance(found, SaveRound) else None

    def _restore(self, call: int, now: float) -> RestoreRound | None:
        if call in self._decided:
            return None
        if call not in self._rounds:
            self._rounds[call] = RestoreRound(call, self.participants, self._deadlines, now)
        found = self._rounds[call]
        return found if isinstance(found, RestoreRound) else None
