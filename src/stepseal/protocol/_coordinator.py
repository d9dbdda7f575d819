"""The coordinator's protocol without I/O: turns messages, losses, time and answers into actions.

One instance per incarnation. It dispatches to one round per call, and remembers lost participants
and past decisions. The same code runs under threads, actors and a simulator. Invariants:

- A lost life stays lost, because a restarted participant does not know the calls.
- Each call has exactly one round, and messages for a decided call change nothing.
- A participant that connects late receives the earlier decisions.
- The roster of a call never changes: whoever is admitted meanwhile takes part in the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stepseal import errors
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._asking import SafePoints
from stepseal.protocol._gated_round import GatedRound
from stepseal.protocol._gates import Gates
from stepseal.protocol._lives import Lives
from stepseal.protocol._publications import unknown_components
from stepseal.protocol._restore_round import RestoreRound
from stepseal.protocol._rounds import answer, report
from stepseal.protocol._save_round import SaveRound
from stepseal.protocol._triggers import Timing, Triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._gates import Gate
    from stepseal.protocol._opening import Opening
    from stepseal.protocol._stragglers import Waiting

__all__ = ["Coordinator"]


class Coordinator:
    """Decides the outcome of every `save` and `restore` call.

    Either the participants make all calls, the same ones in the same order (an SPMD job), or the
    coordinator opens them with `open`.

    Args:
        participants: those that take part from the start, in ordinal order; they make the calls.
        deadlines: limits per phase.
        new_attempt: returns a fresh 128-bit random id in hex at every call.
        gates: what writers save by themselves; each save that is opened then waits for all of them.
        timing: triggers that depend on time alone; None for none.
    """

    def __init__(
        self,
        participants: tuple[str, ...],
        deadlines: Deadlines,
        new_attempt: Callable[[], str],
        gates: tuple[Gate, ...] = (),
        timing: Timing | None = None,
    ) -> None:
        self._lives = Lives(participants)
        self._triggers = Triggers(timing or Timing())
        self._points = SafePoints(self._triggers)
        self._now = 0.0
        """Time of the newest event that told it."""
        self._opens = not participants
        self._deadlines = deadlines
        self._new_attempt = new_attempt
        self._rounds: dict[int, SaveRound | RestoreRound] = {}
        self._rosters: dict[int, dict[str, str]] = {}
        """Call to its participants and their lives."""
        self._decided: dict[int, Literal["save", "restore"]] = {}
        self._num_opened = 0
        self._gates = Gates(gates)

    @property
    def participants(self) -> tuple[str, ...]:
        """All participants of now."""
        return self._lives.everybody()

    @property
    def everybody_left(self) -> bool:
        """True once nobody may still need the coordinator.

        One that opens the calls knows it by itself; else all have said goodbye or are lost.
        """
        return self._opens or self._lives.everybody_left

    @property
    def busy(self) -> bool:
        """True while a call is undecided."""
        return bool(self._rounds)

    def next_deadline(self) -> float:
        """Return the monotonic time by which `on_time` must be called."""
        return min(
            [self._triggers.deadline(self._now), *(r.deadline for r in self._rounds.values())]
        )

    def seen(self) -> tuple[list[SaveRound | RestoreRound], Mapping[int, Waiting]]:
        """Return the open calls, and who of them waits where, for people."""
        return list(self._rounds.values()), self._points.waiting()

    def admit(self, participant: str, life: str, *, steps: bool = False) -> list[actions.Action]:
        """Let a participant take part in later calls; an earlier life of it ends here.

        Args:
            participant: its id.
            life: random text that no other admission has.
            steps: it begins its calls at safe points, where the others of its role do.
        """
        self._lives.admit(participant, life)
        self._points.declare(participant, steps=steps)
        return self._keep(self._settle())

    def release(self, participant: str) -> list[actions.Action]:
        """Let a participant take no part in later calls; it need not say goodbye."""
        told: list[actions.Action] = [actions.Send(participant, messages.Dismiss())]
        self._lives.release(participant)
        return told + self._keep(self._settle())

    def open(self, opening: Opening, now: float) -> tuple[int, list[actions.Action]]:
        """Open a call for everybody who was admitted; return its number.

        A publication is for the roles alone that hold what is published. `Told` reports the
        outcome.
        """
        assert self._opens, "the participants make the calls"
        if opening.kind == "save" and self._gates.gates:
            return self._want(opening, now)
        ended = [] if opening.check_only else self._gates.give_up_all("a restore began")
        todo = ended + self._settle()
        self._num_opened += 1
        call = self._num_opened
        publish = opening.publish
        if unknown := self._lives.unknown(publish):
            return call, [unknown_components(call, opening, unknown)]
        roster = self._lives.holders(publish) if publish else self._lives.roster()
        self._rosters[call] = roster
        if opening.kind == "save":
            save = SaveRound(call, tuple(roster), self._new_attempt(), self._deadlines, now)
            self._rounds[call] = save
            todo += save.open(opening, roster)
        else:
            restore = RestoreRound(call, tuple(roster), self._deadlines, now)
            self._rounds[call] = restore
            todo += restore.open(opening, roster)
        return call, self._keep(todo + self._settle())

    def _want(self, opening: Opening, now: float) -> tuple[int, list[actions.Action]]:
        """Let a gated save be committed, once all writers are done."""
        assert opening.step is not None
        if untold := self._gates.untold(opening.step):
            return untold.outcome.call, [untold]
        found, todo = self._gated(opening.step, now)
        todo = found.want(opening) + todo
        return found.call, self._keep(todo + self._settle())

    def _gated(self, step: int, now: float) -> tuple[GatedRound, list[actions.Action]]:
        """Return the call of a gated step; open it if it is not."""
        if (found := self._gates.open.get(step)) is not None:
            return found, []
        self._num_opened += 1
        call = self._num_opened
        everybody = self._lives.roster()
        roster = {p: life for p, life in everybody.items() if self._gates.names_of(p)}
        self._rosters[call] = roster
        found = GatedRound(call, roster, step, self._new_attempt(), self._deadlines, now)
        self._rounds[call] = self._gates.open[step] = found
        names = {one: self._gates.names_of(one) for one in roster}
        return found, found.begin(names, self._gates.without_writer(roster))

    def _on_asked(
        self, participant: str, message: messages.SaveAsked, now: float
    ) -> list[actions.Action]:
        if refused := self._gates.refusal(participant, message):
            return [actions.Send(participant, refused)]
        found, todo = self._gated(message.step, now)
        todo += self._settle()
        life = self._rosters[found.call].get(participant)
        if found.done or life is None or not self._lives.is_current(participant, life):
            return [*todo, actions.Send(participant, self._gates.too_late(participant, message))]
        return todo + found.grant(participant, message)

    def on_message(
        self, participant: str, message: messages.FromParticipant, now: float, life: str = ""
    ) -> list[actions.Action]:
        """Handle a message; ignore one from an unknown or lost participant, or of an old life."""
        self._now = now
        if not self._lives.hears(participant, life):
            return []
        todo = self._dispatch(participant, message, now)
        return self._keep(todo + self._settle())

    def _keep(self, todo: list[actions.Action]) -> list[actions.Action]:
        """Keep messages to participants that have not connected yet; `Hello` delivers them.

        Drop those about calls of an earlier life: this life does not know them. Ask ranks that step
        for their safe points before they are told to begin.
        """
        kept = []
        asked = [] if self._opens else self._points.ask_what_is_due(self._lives)
        todo = asked + todo  # whoever hears of a failure was asked before
        lapsed = self._points.settle(self._rounds)
        for action in self._points.instead(todo + lapsed, self._rounds, self._rosters):
            if isinstance(action, actions.Send):
                if not self._is_for_this_life(action):
                    continue
                self._lives.keep(action)
            kept.append(action)
        for call in self._rosters.keys() - self._rounds.keys():
            del self._rosters[call]  # nothing about it is sent any more
        return kept

    def _is_for_this_life(self, action: actions.Send) -> bool:
        roster = self._rosters.get(getattr(action.message, "call", 0), {})
        life = roster.get(action.to)
        return life is None or self._lives.is_current(action.to, life)

    def _dispatch(
        self, participant: str, message: messages.FromParticipant, now: float
    ) -> list[actions.Action]:
        match message:
            case messages.Hello():
                kept = self._lives.kept(participant)
                return [actions.Send(participant, messages.Welcome()), *kept]
            case messages.SafePoint():
                return self._points.on_point(participant, message)
            case messages.Holds():
                life = self._lives.hold(participant, message.components)
                return [actions.Send(participant, messages.Welcome()), actions.Connected(life)]
            case messages.Goodbye():
                self._lives.leave(participant)
                return [actions.Send(participant, messages.Welcome())]
            case messages.Fired():
                if self._points.serves(participant, message):
                    self._triggers.limit(participant, message, now)
                    return self._points.let_go([participant])
                self._triggers.on_fired(participant, message, now)
                waits = self._lives.all_connected and not self._points.is_asking
                return [] if waits else self._points.let_go([participant])
            case messages.Captured() | messages.Failed():
                return self._on_save(participant, message, now)
            case messages.SaveAsked():
                return self._on_asked(participant, message, now)
            case messages.RestoreCalled():
                return self._on_restore(participant, message, now)
            case (
                messages.EnginesReturned()
                | messages.Prepared()
                | messages.Compared()
                | messages.Checked()
                | messages.Applied()
                | messages.Rejected()
                | messages.Progressed()
            ):
                return report(self._rounds.get(message.call), participant, message, now)
            case (
                messages.Heartbeat() | messages.Challenge()
            ):  # pragma: no branch - FromParticipant has no other
                return []

    def _on_save(
        self, participant: str, message: messages.Captured | messages.Failed, now: float
    ) -> list[actions.Action]:
        call = message.call
        if self._kind(call) == "restore":
            text = f"call {call}: {participant} called save, but others called restore"
            cause = messages.Failure(errors.StateMismatch.kind, text)
            kind, failures = errors.ParticipantFailed.kind, {participant: cause}
            aborted = messages.Aborted(call, message.step, kind, text, failures)
            return [actions.Send(participant, aborted), *self._mix_up(call, participant, cause)]
        if call in self._decided:
            return []
        found = self._rounds.get(call)
        if not isinstance(found, SaveRound):
            if self._opens:
                return []
            attempt = self._new_attempt()
            found = SaveRound(call, self._called_by_all(call), attempt, self._deadlines, now)
            self._rounds[call] = found
            self._triggers.on_saving(call, now, is_step=not message.publish)
        if isinstance(message, messages.Captured):
            return found.on_captured(participant, message, now)
        return found.on_failed(participant, message)

    def _on_restore(
        self, participant: str, message: messages.RestoreCalled, now: float
    ) -> list[actions.Action]:
        call = message.call
        if self._kind(call) == "save":
            text = f"call {call}: {participant} called restore, but others called save"
            cause = messages.Failure(errors.StateMismatch.kind, text)
            kind, failures = errors.ParticipantFailed.kind, {participant: cause}
            failed = messages.RestoreFailed(call, kind, text, {}, failures, tainted=False)
            return [actions.Send(participant, failed), *self._mix_up(call, participant, cause)]
        if call in self._decided:
            return []
        found = self._rounds.get(call)
        if not isinstance(found, RestoreRound):
            if self._opens:
                return []
            found = RestoreRound(call, self._called_by_all(call), self._deadlines, now)
            self._rounds[call] = found
        return found.on_called(participant, message, now)

    def _called_by_all(self, call: int) -> tuple[str, ...]:
        """Return the participants of a call that they make themselves."""
        roster = self._rosters[call] = self._lives.roster()
        return tuple(roster)

    def _kind(self, call: int) -> Literal["save", "restore"] | None:
        """Return the kind of a call that a participant has already made, else None."""
        found = self._rounds.get(call)
        if found is None:
            return self._decided.get(call)
        return "save" if isinstance(found, SaveRound) else "restore"

    def _mix_up(self, call: int, participant: str, cause: messages.Failure) -> list[actions.Action]:
        """Fail a round that still waits for this participant, which will not take part."""
        found = self._rounds.get(call)
        if found is None or participant not in found.missing():
            return []
        return found.on_lost({participant: cause})

    def on_lost(
        self, participant: str, cause: messages.Failure, life: str = ""
    ) -> list[actions.Action]:
        """Handle a connection that ended or went silent without a goodbye."""
        self._lives.lose(participant, life, cause)
        return self._keep(self._settle())

    def on_unreached(
        self, call: int, participant: str, cause: messages.Failure
    ) -> list[actions.Action]:
        """Fail an opened call that a participant, alive or not, could not be brought to begin."""
        return self._keep(self._mix_up(call, participant, cause) + self._settle())

    def on_driver(self, event: actions.DriverEvent, now: float) -> list[actions.Action]:
        """Handle the driver's answer to an action; ignore it if its round has ended."""
        self._now = now
        todo = answer(self._rounds.get(event.call), event, now)
        return self._keep(todo + self._settle())

    def on_time(self, now: float) -> list[actions.Action]:
        """Check deadlines; call it after all messages that have arrived were handled."""
        self._now = now
        self._triggers.on_time(now)
        todo = self._end_of_grace(now)
        for found in list(self._rounds.values()):
            if now >= found.deadline:
                todo += found.on_deadline(self._points.waiting().get(found.call))
        todo += self._settle() + self._gates.publish(now)
        return self._keep(todo + self._settle())

    def on_slept(self, slept_s: float) -> None:
        """Postpone what is awaited: for so long this process was stopped, and perhaps all were."""
        for found in self._rounds.values():
            found.postpone(slept_s)

    def _end_of_grace(self, now: float) -> list[actions.Action]:
        """Abort saves that are not decided when the job must end; a publication goes on."""
        todo: list[actions.Action] = []
        for found in self._rounds.values():
            over = self._triggers.over(found.call, now)
            if over is not None and (missing := found.missing()):
                todo += found.on_lost(dict.fromkeys(missing, over))
        return todo

    def _settle(self) -> list[actions.Action]:
        """Fail rounds that wait for a participant that is gone; forget rounds that are done."""
        todo = self._points.drop(self._lives)
        for call, found in list(self._rounds.items()):
            absent = self._absent(found)
            if absent:
                todo += found.on_lost(absent)
            if found.done:
                del self._rounds[call]
                self._decided[call] = "save" if isinstance(found, SaveRound) else "restore"
                self._note_end(found)
                if isinstance(found, GatedRound):
                    self._gates.ended(found)
                elif isinstance(found, RestoreRound) and found.claimed:
                    self._gates.went_on_from(found.restored.step if found.restored else None)
        return todo

    def _note_end(self, found: SaveRound | RestoreRound) -> None:
        """Note how a call ended that ranks have made: minutes count from there."""
        if self._opens:
            return
        if isinstance(found, SaveRound):
            self._triggers.on_ended(found.call, self._now, committed=found.is_committed)
        else:
            self._triggers.restart(self._now)

    def _absent(self, found: SaveRound | RestoreRound) -> dict[str, messages.Failure]:
        """Return the participants that this round waits for and that are gone."""
        gone = self._lives.absent(self._rosters[found.call])
        return {one: gone[one] for one in found.missing() if one in gone} if gone else {}
