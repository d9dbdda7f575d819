"""One gated save as the coordinator sees it: writers come when they want, and are told at once.

A save whose participants do not capture together. Its components are external, so there is nothing
to agree on beforehand: the attempt is staged when the call opens, each writer fills its folder and
reports, and the parts follow. Invariants, beyond those of `SaveRound`:

- The round orders `Publish` only after the controller wants the step.
- A writer waits for no other role.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import role_of
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._cut import role_problems
from stepseal.protocol._save_round import SaveRound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._granting import SaveAsked
    from stepseal.protocol._opening import Opening

__all__ = ["GatedRound"]

_NEXT = "Nothing was committed; older steps are untouched."


class GatedRound(SaveRound):
    """State of one gated save.

    Args:
        call: number of the call.
        roster: participants with a gate, and their lives, in ordinal order.
        step: step number.
        attempt: see `SaveRound`.
        deadlines: limits per phase; `write_s` is that of the last writer, and of the controller.
        now: monotonic time at which the first writer asked, or the controller wanted the step.
    """

    def __init__(
        self,
        call: int,
        roster: Mapping[str, str],
        step: int,
        attempt: str,
        deadlines: Deadlines,
        now: float,
    ) -> None:
        super().__init__(call, tuple(roster), attempt, deadlines, now)
        self.step = step
        self.figures.noun = "participant"
        self.asked: set[tuple[str, str]] = set()
        """Who has asked for what."""
        self.told: actions.Told | None = None
        """The outcome, once there is one."""
        self.deadline = now + deadlines.commit_s
        self.phase = "staging"

    def begin(
        self, names: Mapping[str, Sequence[str]], nobody: Sequence[str]
    ) -> list[actions.Action]:
        """Stage the attempt; the writers' reports of what they hold are known beforehand.

        Args:
            names: of each participant, the components that it is expected to write.
            nobody: gates that no participant can write.
        """
        for one, held in names.items():
            reports = [messages.ComponentReport(name, "external", "sharded", "") for name in held]
            self._captured[one] = messages.Captured(self.call, self.step, reports, {}, {}, [])
            self._digests[one] = {}
        if nobody:
            text = f"nobody was admitted to write {', '.join(nobody)}: call admit() first"
            return self.give_up(errors.ParticipantFailed.kind, text)
        return [actions.BeginStaging(self.call, self.step, self.attempt)]

    def grant(self, participant: str, asked: SaveAsked) -> list[actions.Action]:
        """Tell a writer that the call is open."""
        self.asked.add((participant, asked.name))
        role = role_of(participant)
        names = [report.name for report in self._captured[participant].components]
        others = [one for one in self.participants if role_of(one) == role]
        granted = messages.SaveGranted(self.call, self.step, asked.name, names, others)
        return [actions.Send(participant, granted)]

    def want(self, opening: Opening) -> list[actions.Action]:
        """Let the step be committed once all is durable; the controller says what it is."""
        self._opening = opening
        problems = role_problems(self._captured, opening)
        return self._abort(problems, "the cut") if problems else []

    @property
    def wanted(self) -> bool:
        """Whether the controller wants the step."""
        return self._opening is not None

    @property
    def is_ready(self) -> bool:
        """Whether nothing but the publication is left to do."""
        return self.phase == "ready" and self.wanted

    @property
    def is_finishing(self) -> bool:
        """Whether all writers are done, so that only digests or the commit are left."""
        return self.phase in ("write", "compare", "publish") and self.wanted

    @property
    def failure(self) -> tuple[str, str] | None:
        """Return kind and message of an abort; None for any other outcome."""
        found = None if self.told is None else self.told.outcome
        return (found.kind, found.message) if isinstance(found, messages.Aborted) else None

    def publish(self, now: float) -> list[actions.Action]:
        """Order the publication of a round that is ready."""
        return super()._publish(now)

    def _publish(self, now: float) -> list[actions.Action]:
        self.phase = "ready"  # within the limit of the writers; `Gates.publish` goes on
        return []

    def give_up(self, kind: str, why: str) -> list[actions.Action]:
        """Abort, unless the step is being published."""
        if self.phase in ("publish", "done"):
            return []
        text = f"save of step {self.step}: {why}. {_NEXT}"
        sent = self._finish(messages.Aborted(self.call, self.step, kind, text, {}))
        return sent + self._discards()

    def on_failed(self, participant: str, message: messages.Failed) -> list[actions.Action]:
        """Abort, unless all have prepared."""
        return [] if self.phase == "ready" else super().on_failed(participant, message)

    def on_deadline(self, notes: Mapping[str, str | None] | None = None) -> list[actions.Action]:
        """Abort a phase that took too long; name the missing writers, or the controller."""
        if self.phase != "ready":
            return super().on_deadline(notes)
        limit_s = self._deadlines.write_s
        why = f"all writers were done, but nobody called save({self.step}) within {limit_s:g} s"
        return self.give_up(errors.CommitTimeout.kind, why)

    def _finish(self, message: messages.Decided) -> list[actions.Action]:
        self.told = actions.Told(message)
        sent = super()._finish(message)
        if self.wanted or not isinstance(message, messages.Aborted):
            return sent
        return [*sent, actions.Warn(message.message)]  # the controller is told if it asks
