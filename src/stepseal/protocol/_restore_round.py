"""One restore as the coordinator sees it, without I/O: select, check, vote, apply, vote, claim.

One that only checks ends after the first vote, and claims nothing.

Invariants:
- No participant applies a candidate before all participants have checked it.
- If a candidate is damaged, all participants fall back to the next older one together. If storage
  refuses a candidate, they do so only after the second refusal.
- If a candidate does not fit the live state, the restore fails on all participants: an older step
  would not fit either, and falling back would lose work.
- After `Apply` was sent, every failure reports that live state was changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import step_name
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._agreement import kind_of, late, summary, told_once
from stepseal.protocol._cut import by_role
from stepseal.protocol._failures import shortened
from stepseal.protocol._figures import Figures
from stepseal.protocol._restore_facts import differences, unknown_names, without_holder
from stepseal.protocol._summing_up import of_restore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.layout import StepRef
    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._opening import Opening

__all__ = ["RestoreRound"]

_DAMAGE = frozenset({errors.Corrupt.kind, errors.StorageUnavailable.kind})
_PASSED_ON = _DAMAGE | {errors.StateMismatch.kind, errors.InvalidInput.kind}
"""Kinds that all participants raise if all that failed say so."""


class RestoreRound:
    """State of one restore call.

    Args:
        call: number of the call, equal on all participants.
        participants: all participants, in ordinal order.
        deadlines: limits per phase.
        now: monotonic time of the first report.
    """

    def __init__(
        self, call: int, participants: tuple[str, ...], deadlines: Deadlines, now: float
    ) -> None:
        self.call = call
        self.participants = participants
        self.deadline = now + deadlines.connect_s
        self.phase = "join"
        self.what = "restore"
        self.figures = Figures(now)
        self.restored: StepRef | None = None
        self.claimed = False
        """Whether the job goes on from here, and not only looked."""
        self._deadlines = deadlines
        self._limit_s = deadlines.connect_s
        self._joined: dict[str, messages.RestoreCalled] = {}
        self._voted: set[str] = set()
        self._left: dict[str, int] = {}
        """Component to the bits of entries that all who voted leave to others."""
        self._rejected: dict[str, messages.Failure] = {}
        self._round = 0
        self._candidate: StepRef | None = None
        self._reasons: dict[str, str] = {}
        self._excluded: list[int] = []
        self._tried_again: set[int] = set()
        """Candidates that storage has refused once."""
        self._tainted = False
        self._unverified = False
        self._opening: Opening | None = None
        self._report: dict[str, str] = {}

    def open(self, opening: Opening, lives: Mapping[str, str]) -> list[actions.Action]:
        """Tell all participants to join; the call was not made by the participants.

        Args:
            opening: what the controller asks for.
            lives: every participant and its life, in ordinal order.
        """
        self._opening = opening
        self.figures.noun = "participant"
        begins = opening.begins(self.call, self.participants, lives)
        return [actions.Send(one, message) for one, message in begins.items()]

    @property
    def done(self) -> bool:
        """True once the outcome was sent."""
        return self.phase == "done"

    def on_called(
        self, participant: str, message: messages.RestoreCalled, now: float
    ) -> list[actions.Action]:
        """Handle a call; when all have called alike, select a candidate (or claim, if fresh)."""
        if self.phase != "join" or participant in self._joined:
            return []
        self._joined[participant] = message
        if len(self._joined) < len(self.participants):
            return []
        failures = self._differences()
        if failures:
            return self._fail_with("participants called restore differently", failures)
        if self._opening is not None:
            text = unknown_names(self._joined.values(), self._opening)
            if text is not None:
                return self._fail(errors.InvalidInput.kind, text, {})
        if message.fresh:
            return self._conclude(now)
        return self._select(now)

    def _differences(self) -> dict[str, messages.Failure]:
        found: dict[str, messages.Failure] = {}
        for members in by_role(self.participants).values():
            found |= differences(members, self._joined)
        return found

    def on_selected(self, event: actions.Selected, now: float) -> list[actions.Action]:
        """Propose the candidate to all; without one, start fresh on an empty root, else fail."""
        if self.phase != "select":
            return []
        self._reasons.update(event.reasons)
        if event.ref is None:
            if not event.has_commits and not self._reasons:
                return self._conclude(now)
            return self._give_up()
        if self._opening is not None:
            text = without_holder(event, self.participants, self._joined.values(), self._opening)
            if text is not None:
                return self._fail(errors.StateMismatch.kind, text, {})
        self._candidate, self._report = event.ref, {}
        self._unverified = event.unverified
        self._round += 1
        self._enter("check", self._deadlines.check_s, now)
        return self._send(
            messages.Candidate(
                self.call,
                self._round,
                event.ref.step,
                event.attempt,
                event.ref.manifest_sha256,
                event.unverified,
            )
        )

    def on_vote(
        self, participant: str, message: messages.Checked | messages.Applied, now: float
    ) -> list[actions.Action]:
        """Handle a positive vote of the current phase and round."""
        phase = "check" if isinstance(message, messages.Checked) else "apply"
        if phase != self.phase or message.round != self._round:
            return []
        self._voted.add(participant)
        if isinstance(message, messages.Checked):
            for name, text in message.left.items():
                bits = int(text, 16)
                self._left[name] = self._left.get(name, bits) & bits
            self._report.update(message.report)
        return self._count(now)

    def on_rejected(
        self, participant: str, message: messages.Rejected, now: float
    ) -> list[actions.Action]:
        """Handle a negative vote; the others still vote, so that all fall back together."""
        if self.phase not in ("check", "apply") or message.round != self._round:
            return []
        self._tainted = self._tainted or message.touched
        self._rejected[participant] = message.cause
        return self._count(now)

    def _count(self, now: float) -> list[actions.Action]:
        if len(self._voted | self._rejected.keys()) < len(self.participants):
            return []
        if self._rejected:
            return self._after_rejection(now)
        if left := {name: f"{bits:x}" for name, bits in self._left.items() if bits}:
            return self._left_by_all(left)
        if self.phase == "check" and not self._asked.check_only:
            self._enter("apply", self._deadlines.apply_s, now)
            self._tainted = True
            return self._send(messages.Apply(self.call, self._round))
        self.restored = self._candidate
        return self._conclude(now)

    def _left_by_all(self, left: dict[str, str]) -> list[actions.Action]:
        assert self._candidate is not None
        text = (
            f"restore of step {self._candidate.step}: no participant takes some saved entries of "
            f"{', '.join(sorted(left))}. Nothing was changed."
        )
        return self._fail(errors.StateMismatch.kind, text, {}, left=left)

    def _after_rejection(self, now: float) -> list[actions.Action]:
        assert self._candidate is not None
        step = self._candidate.step
        failures = dict(self._rejected)
        asked = self._asked.step
        damage = all(cause.kind in _DAMAGE for cause in failures.values())
        refused = any(c.kind == errors.StorageUnavailable.kind for c in failures.values())
        if damage and refused and step not in self._tried_again:
            self._tried_again.add(step)
            return self._select(now)
        if asked is not None or not damage:
            return self._fail_with(f"restore of step {step}", failures)
        why = "; ".join(f"{p}: {c.message}" for p, c in sorted(failures.items())[:4])
        self._reasons[step_name(step)] = why
        self._excluded.append(step)
        return self._select(now)

    def on_claimed(self, event: actions.Claimed, now: float) -> list[actions.Action]:
        """Report the restored step to all; the root now belongs to this incarnation."""
        if self.phase != "claim":
            return []
        self.claimed = True
        step = None if self.restored is None else self.restored.step
        told = of_restore(self, step, len(self._reasons), now)
        return self._answer(event.incarnation) + told

    def on_io_failed(self, event: actions.IoFailed) -> list[actions.Action]:
        """Fail on all participants: the coordinator could not read or claim the root."""
        text = told_once("restore", event.cause.message)
        return self._fail(event.cause.kind, text, {}, event.cause)

    def on_lost(self, absent: Mapping[str, messages.Failure]) -> list[actions.Action]:
        """Fail on all participants, because the `absent` ones are gone."""
        assert absent.keys() <= set(self.missing())
        return self._fail_with(f"restore, phase {self.phase}", absent)

    def missing(self) -> tuple[str, ...]:
        """Return the participants whose report is missing in this phase."""
        if self.phase == "join":
            return tuple(p for p in self.participants if p not in self._joined)
        if self.phase in ("check", "apply"):
            reported = self._voted | self._rejected.keys()
            return tuple(p for p in self.participants if p not in reported)
        return ()

    awaited = missing

    def postpone(self, slept_s: float) -> None:
        """Wait longer."""
        self.deadline += slept_s

    def on_deadline(self, notes: Mapping[str, str | None] | None = None) -> list[actions.Action]:
        """Fail on all participants, because the phase took too long; name the missing ones.

        Args:
            notes: participant to what else is known of it; None for one that waits for others.
        """
        if self.phase in ("select", "claim"):
            text = (
                f"restore: the coordinator's storage did not answer within {self._limit_s:g} s in "
                f"phase {self.phase}. The restore ends on all participants."
            )
            return self._fail(errors.StorageUnavailable.kind, text, {})
        text = f"did not answer within {self._limit_s:g} s in phase {self.phase} of restore"
        return self._fail_with(
            f"restore, phase {self.phase}", late(self.missing(), text, notes or {})
        )

    def _enter(self, phase: str, limit_s: float, now: float) -> None:
        self.phase = phase
        self.deadline = now + limit_s
        self._limit_s = limit_s
        self._voted = set()
        self._left = {}
        self._rejected = {}

    @property
    def _asked(self) -> messages.RestoreCalled:
        """What was called, alike by all."""
        return next(iter(self._joined.values()))

    def _select(self, now: float) -> list[actions.Action]:
        self._enter("select", self._deadlines.check_s, now)
        excluded = tuple(self._excluded)
        return [actions.Select(self.call, self._asked.step, excluded, self._asked.unverified)]

    def _conclude(self, now: float) -> list[actions.Action]:
        """Claim the root for what was restored, or for a fresh start; or just tell."""
        if self._asked.check_only:
            return self._answer(None)
        self._enter("claim", self._deadlines.commit_s, now)
        # a foreign folder has no manifest, so a claim cannot name it as parent
        return [actions.Claim(self.call, None if self._unverified else self.restored)]

    def _answer(self, incarnation: int | None) -> list[actions.Action]:
        if self.restored is None:
            return self._finish(messages.Fresh(self.call, incarnation))
        return self._finish(
            messages.Restored(
                self.call,
                self.restored.step,
                incarnation,
                dict(self._reasons),
                self._unverified,
            )
        )

    def _give_up(self) -> list[actions.Action]:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(self._reasons.items())[:8])
        text = (
            f"restore: no step can be resumed: {reasons or 'no resumable step'}. "
            "Look at the steps with `stepseal verify`; restore(step=N) asks for one of them, "
            "restore(fresh=True) starts from scratch."
        )
        return self._fail(errors.NoResumableStep.kind, text, {})

    def _fail_with(
        self, what: str, failures: Mapping[str, messages.Failure]
    ) -> list[actions.Action]:
        kinds = {cause.kind for cause in failures.values()}
        kind = kinds.pop() if len(kinds) == 1 else errors.ParticipantFailed.kind
        if kind not in _PASSED_ON:
            kind = kind_of(failures.values())
        touched = (
            "Live state was changed: restore before you go on"
            if self._tainted
            else "Nothing was changed"
        )
        text = summary(what, failures, f"{touched}.")
        return self._fail(kind, text, failures)

    def _fail(
        self,
        kind: str,
        text: str,
        failures: Mapping[str, messages.Failure],
        cause: messages.Failure | None = None,
        *,
        left: Mapping[str, str] | None = None,
    ) -> list[actions.Action]:
        return self._finish(
            messages.RestoreFailed(
                self.call,
                kind,
                text,
                dict(self._reasons),
                shortened(failures),
                self._tainted,
                cause,
                dict(left or {}),
            )
        )

    def _send(self, message: messages.FromCoordinator) -> list[actions.Action]:
        return [actions.Send(participant, message) for participant in self.participants]

    def _finish(
        self, message: messages.Restored | messages.Fresh | messages.RestoreFailed
    ) -> list[actions.Action]:
        self.phase = "done"
        self.deadline = float("inf")
        sent = self._send(message)
        return [*sent, actions.Told(message, self._report)] if self._opening else sent
