"""One save as the coordinator sees it, without I/O: captures, staging, parts, publication.

Two-phase commit with presumed abort. If there are external components, the phase `engines` comes
before the parts: nobody lists what engines of a role wrote until all of them have returned.
Invariants:

- The round orders `Publish` only after every participant has reported `Prepared` for this attempt,
  and only if all replicas that are compared are equal.
- After an abort was sent for a call, the call is never published.
- A participant may be lost after it has prepared: its bytes are durable.
- If the coordinator opened the call, a role is told to capture only after all roles before it in
  the order have captured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.layout import Area, role_of
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._agreement import disagreements, held_up, kind_of, late, summary, told_once
from stepseal.protocol._comparing import Comparison
from stepseal.protocol._cut import by_role, role_problems
from stepseal.protocol._failures import MAX_TEXT, shortened
from stepseal.protocol._figures import Figures
from stepseal.protocol._hanging import NEXT_SAVE, after_loss, publication_hangs, staging_hangs
from stepseal.protocol._stages import Stages
from stepseal.protocol._summing_up import of_commit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._opening import Opening

__all__ = ["SaveRound"]


class SaveRound:
    """State of one save call.

    Args:
        call: number of the call, equal on all participants.
        participants: all participants, in ordinal order.
        attempt: 128-bit random id in hex, never used before.
        deadlines: limits per phase.
        now: monotonic time of the first report.
    """

    def __init__(
        self,
        call: int,
        participants: tuple[str, ...],
        attempt: str,
        deadlines: Deadlines,
        now: float,
    ) -> None:
        self.call = call
        self.participants = participants
        self.attempt = attempt
        self.deadline = now + deadlines.capture_s
        self.phase = "capture"
        self.figures = Figures(now)
        self.step = -1
        """Number of the step, or version of the publication."""
        self._area = Area.STEPS
        self._deadlines = deadlines
        self._captured: dict[str, messages.Captured] = {}
        self._with_engines: tuple[str, ...] = ()
        """Who holds external components; the others write their parts meanwhile."""
        self._returned: set[str] = set()
        self._inventoried: set[str] = set()
        """Who was told to take the inventory."""
        self._prepared: dict[str, messages.PartReport] = {}
        self._staging: str | None = None
        self._digests: dict[str, Mapping[str, Mapping[str, str]]] = {}
        self._left_out: dict[str, str] = {}
        self._comparison: Comparison | None = None
        self._opening: Opening | None = None
        self._stages = Stages()
        self._ends_at = now + deadlines.save_s
        """When whoever opened the call is told that its outcome is unknown."""
        self._told = False
        self.is_committed = False

    def open(self, opening: Opening, lives: Mapping[str, str]) -> list[actions.Action]:
        """Tell the first participants to capture; the call was not made by the participants.

        Args:
            opening: what the controller asks for.
            lives: every participant and its life, in ordinal order.
        """
        assert opening.step is not None
        self.step = opening.step
        self._area = Area.PUBLISHED if opening.publish else Area.STEPS
        self._opening = opening
        self.figures.noun = "participant"
        return self._stages.open(self.call, opening, self.participants, lives)

    @property
    def done(self) -> bool:
        """True once the outcome was sent."""
        return self.phase == "done"

    def on_captured(
        self, participant: str, message: messages.Captured, now: float
    ) -> list[actions.Action]:
        """Handle a capture report; after the last one, compare all and begin staging."""
        if self.phase != "capture" or participant in self._captured:
            return []
        self._take_number(message)
        self._captured[participant] = message
        self._stages.captured(participant)
        if len(self._captured) < len(self.participants):
            return self._stages.begin_next()
        return self._thaw() + self._all_captured(now)

    def _thaw(self) -> list[actions.Action]:
        """Let everybody go on who is frozen."""
        frozen = self._stages.frozen(self._captured)
        return [actions.Send(one, messages.Thaw(self.call)) for one in frozen]

    def _all_captured(self, now: float) -> list[actions.Action]:
        """Compare the reports of all, and begin staging."""
        # in ordinal order, not by arrival, so that messages are reproducible
        self._captured = {p: self._captured[p] for p in self.participants}
        failures, left_out = self._disagreements()
        if failures:
            return self._abort(failures, "participants disagree")
        self._leave_out(left_out)
        for p, report in self._captured.items():
            self._digests[p] = {found.name: found.digests for found in report.components}
        return self._compare(now, required=False)

    def _take_number(self, message: messages.Captured | messages.Failed) -> None:
        self.step = max(self.step, message.step)
        if message.publish:
            self._area = Area.PUBLISHED

    @property
    def what(self) -> str:
        """What the call is, for messages: `save of step 5`."""
        return self._area.title(self.step)

    def _compare(self, now: float, *, required: bool) -> list[actions.Action]:
        """Compare replicas: those of optional components before the write, all others after it."""
        names = [
            found.name
            for members in by_role(self.participants).values()
            for found in self._captured[members[0]].components
            if found.required is required and found.name not in self._left_out
        ]
        parts = {p: self._prepared[p] for p in self.participants} if required else None
        self._comparison = Comparison(self._captured, self._digests, names, parts)
        asks = self._comparison.asks(self.call)
        if not asks:
            return self._compared(now)
        self.phase = "compare"
        return [actions.Send(participant, ask) for participant, ask in asks.items()]

    def on_compared(
        self, participant: str, message: messages.Compared, now: float
    ) -> list[actions.Action]:
        """Handle an answer about replicas that differ."""
        if self.phase != "compare" or self._comparison is None:
            return []
        self._comparison.take(participant, message)
        return [] if self.missing() else self._compared(now)

    def _compared(self, now: float) -> list[actions.Action]:
        """Go on after a comparison: leave optional components out, or abort, or publish."""
        assert self._comparison is not None
        told: list[actions.Action] = [
            actions.Warn(f"{self.what}: {text}; what the first holds is stored")
            for text in self._comparison.warnings()
        ]
        if self._staging is not None:
            if failures := self._comparison.failures():
                return self._abort(failures, "replicas differ")
            return [*told, *self._publish(now)]
        self._leave_out(self._comparison.reasons())
        self.phase = "staging"
        self.deadline = now + self._deadlines.commit_s
        staging = actions.BeginStaging(self.call, self.step, self.attempt, self._area)
        return [*told, staging]

    def _disagreements(self) -> tuple[dict[str, messages.Failure], dict[str, str]]:
        """Compare within each role, then across roles; see `disagreements`."""
        found: dict[str, messages.Failure] = {}
        left_out: dict[str, str] = {}
        for names in by_role(self.participants).values():
            failures, without = disagreements({p: self._captured[p] for p in names})
            found |= failures
            left_out |= without
        return found or role_problems(self._captured, self._opening), left_out

    def on_staged(self, event: actions.Staged, now: float) -> list[actions.Action]:
        """Order all participants to write."""
        if self.phase != "staging":
            return []
        self._staging = event.staging
        self._with_engines = tuple(
            p
            for p, captured in self._captured.items()
            if any(component.kind == "external" for component in captured.components)
        )
        self.phase = "engines" if self._with_engines else "write"
        self.deadline = now + self._deadlines.write_s
        order = (self.call, self.attempt, event.staging, event.nonce)
        return [
            actions.Send(participant, messages.Write(*order, ordinal, dict(self._left_out)))
            for ordinal, participant in enumerate(self.participants)
        ]

    def on_returned(
        self, participant: str, message: messages.EnginesReturned, now: float
    ) -> list[actions.Action]:
        """Handle the end of a participant's engines; after the last of a role, order its inventory.

        The folders of a role are its own, so no other role writes there.
        """
        if self.phase != "engines" or message.attempt != self.attempt:
            return []
        if now > self.deadline:
            return self.on_deadline()
        self._returned.add(participant)
        others = [one for one in self._with_engines if role_of(one) == role_of(participant)]
        if not self._returned.issuperset(others):
            return []
        self._inventoried.update(others)
        if self._inventoried.issuperset(self._with_engines):
            self.phase = "write"  # within the same limit
        order = messages.TakeInventory(self.call, self.attempt)
        return [actions.Send(one, order) for one in others]

    def on_prepared(
        self, participant: str, message: messages.Prepared, now: float
    ) -> list[actions.Action]:
        """Handle a part report; after the last one, order the publication."""
        busy = set(self._with_engines) - self._inventoried
        early = self.phase == "engines" and participant not in busy
        current = (early or self.phase == "write") and message.attempt == self.attempt
        if not current or participant in self._prepared:
            return []
        if now > self.deadline:
            return self.on_deadline()  # before it counts, so that the late one is named
        self._prepared[participant] = message.part
        self._digests[participant] = message.digests
        if self.phase == "engines" or len(self._prepared) < len(self.participants):
            return []
        return self._compare(now, required=True)

    def _publish(self, now: float) -> list[actions.Action]:
        assert self._staging is not None
        self.phase = "publish"
        self.deadline = now + self._deadlines.commit_s
        return [
            actions.Publish(
                self.call,
                self.step,
                self.attempt,
                self._staging,
                dict(self._captured),
                dict(self._prepared),
                self.deadline,
                dict(self._left_out),
                self._opening,
                self._area,
                self.figures,
            )
        ]

    def on_failed(self, participant: str, message: messages.Failed) -> list[actions.Action]:
        """Abort, unless all have prepared: then the failure of one participant does no harm."""
        self._take_number(message)
        if self.phase in ("publish", "done"):
            return []
        if self._is_decided():
            return self._compared(0.0)
        return self._abort({participant: message.cause}, f"phase {message.phase}")

    def on_lost(self, absent: Mapping[str, messages.Failure]) -> list[actions.Action]:
        """Abort, because the `absent` participants are gone."""
        assert absent.keys() <= set(self.missing())
        if self._is_decided():
            return self._compared(0.0)
        then = after_loss(absent.values(), opened=self._opening is not None)
        return self._abort(absent, f"phase {self.phase}", then)

    def missing(self) -> tuple[str, ...]:
        """Return the participants whose report is missing in this phase."""
        reported: Collection[str]
        if self.phase == "capture":
            reported = self._captured
        elif self.phase == "engines":
            reported = (self._returned - self._inventoried) | self._prepared.keys()
        elif self.phase == "write":
            reported = self._prepared
        elif self.phase == "compare" and self._comparison is not None:
            return self._comparison.missing(self.call)
        else:
            return ()
        return tuple(p for p in self.participants if p not in reported)

    def awaited(self) -> tuple[str, ...]:
        """Return who is missing and was told to go on: roles that capture later may not yet."""
        names = self.missing()
        return self._stages.awaited(names) if self.phase == "capture" else names

    def postpone(self, slept_s: float) -> None:
        """Wait longer."""
        self.deadline += slept_s
        self._ends_at += slept_s

    def on_deadline(self, notes: Mapping[str, str | None] | None = None) -> list[actions.Action]:
        """Abort a phase that took too long; name the missing participants.

        A running publication is not interrupted, because it may have passed the commit point; it
        checks its own deadline right before that point. Everybody waits until their own deadline.

        Args:
            notes: participant to what else is known of it; None for one that waits for others.
        """
        if self.phase == "staging":
            within_s = self._deadlines.commit_s
            return self._finish(staging_hangs(self.call, self.step, self.what, within_s))
        if self._is_decided():
            return self._compared(0.0)
        limit_s = self._deadlines.of_phase(self.phase, staged=self._staging is not None)
        if limit_s is None:
            return self._publication_took_too_long()
        text = f"did not answer within {limit_s:g} s in phase {self.phase}"
        failures = late(self.awaited(), text, notes or {})
        frozen = self._stages.frozen(self._captured) if self.phase == "capture" else []
        return self._abort(failures, f"phase {self.phase}{held_up(frozen, failures)}")

    def _leave_out(self, reasons: Mapping[str, str]) -> None:
        self._left_out |= {name: why[:MAX_TEXT] for name, why in reasons.items()}

    def _is_decided(self) -> bool:
        """Tell whether the round only asks where replicas differ, and then aborts."""
        comparison = self._comparison if self.phase == "compare" else None
        return comparison is not None and self._staging is not None and bool(comparison.differing)

    def _publication_took_too_long(self) -> list[actions.Action]:
        """Let the one who opened the call wait on until its own deadline; then nobody knows."""
        waits = self._opening is not None and self.deadline < self._ends_at
        self.deadline = self._ends_at if waits else float("inf")
        if waits or self._opening is None:
            return []
        self._told = True
        hangs = publication_hangs(self.call, self.attempt, self.step, self.what)
        return [actions.Told(hangs)]

    def on_published(self, event: actions.Published, now: float) -> list[actions.Action]:
        """Report the commit to all participants; success is never reported earlier."""
        if self.phase != "publish":
            return []
        cost, told = of_commit(self, now)
        facts = (self.call, self.attempt, self.step, event.manifest_sha256)
        return [*self._finish(messages.Committed(*facts, *cost)), told]

    def on_unknown(self, event: actions.PublishUnknown) -> list[actions.Action]:
        """Report an unknown outcome to all; delete nothing, as the step may be committed."""
        if self.phase != "publish":
            return []
        text = told_once(self.what, event.cause.message)
        return self._finish(messages.Unresolved(self.call, self.attempt, self.step, text))

    def on_io_failed(self, event: actions.IoFailed) -> list[actions.Action]:
        """Abort, because the coordinator's own work failed before the commit point."""
        kind, text = event.cause.kind, told_once(self.what, event.cause.message)
        aborted = messages.Aborted(self.call, self.step, kind, text, {}, cause=event.cause)
        return self._finish(aborted) + self._discards()

    def _abort(
        self, failures: Mapping[str, messages.Failure], where: str, then: str = NEXT_SAVE
    ) -> list[actions.Action]:
        text = summary(f"{self.what}, {where}", failures, then)
        kind, told = kind_of(failures.values()), shortened(failures)
        aborted = messages.Aborted(self.call, self.step, kind, text, told)
        return self._finish(aborted) + self._discards()

    def _discards(self) -> list[actions.Action]:
        return [] if self._staging is None else [actions.Discard(self._staging)]

    def _finish(self, message: messages.Decided) -> list[actions.Action]:
        self.phase, self.deadline = "done", float("inf")
        self.is_committed = isinstance(message, messages.Committed)
        sent = [actions.Send(participant, message) for participant in self.participants]
        return [*sent, actions.Told(message)] if self._opening and not self._told else [*sent]
