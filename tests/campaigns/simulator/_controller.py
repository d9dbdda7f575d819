"""The controller of actors: admits them, restores, saves, and does something about who is gone.

The coordinator's protocol and its storage work are the real ones, as in `_coordinator`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaigns.simulator._cast import COMPONENTS, GUEST, ORDER, RELATIONS
from tests.campaigns.simulator._coordinator import Head
from tests.campaigns.simulator._disk import Disk
from tests.campaigns.simulator._published import holders, next_version, publication_of
from tests.steps._kit import DEADLINES

from stepseal import errors
from stepseal.layout import Area, role_of
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import failure_of
from stepseal.protocol._opening import BeginRestore, BeginSave, Opening
from stepseal.protocol._outcome import resolve_save
from stepseal.protocol._participant import SaveState
from stepseal.steps import PosixSteps

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.simulator._company import Era
    from tests.campaigns.simulator._coordinator import StorageWork
    from tests.campaigns.simulator._owner import Owner
    from tests.campaigns.simulator._participant import Plan
    from tests.campaigns.simulator._world import Node

    from stepseal.retention import Retention

__all__ = ["Controller"]

_GRACE_S = 0.001
_MAX_FAILURES = 5
"""Calls that fail until the controller gives up."""
_GIVES_UP = 0.7
"""How often a controller ends that finds an actor taken over by another one."""
_CARELESS = 0.15
"""How often a controller goes on after a failure without a restore."""


class Controller(Head):
    """The process that opens the calls.

    Args:
        era: its life.
        node: the process.
        plan: how much it saves, and what it restores first.
        new_attempt: returns a fresh id.
        retention: which steps it keeps; None for all.
    """

    def __init__(
        self,
        era: Era,
        node: Node,
        plan: Plan,
        new_attempt: Callable[[], str],
        retention: Retention | None,
    ) -> None:
        super().__init__(era.world, era.oracle, node, (), new_attempt, retention)
        self.era = era
        self.company = era.company
        self.judge = era.company.oracle
        self.own_disk = Disk(self.world, node, self.oracle)
        self.plan = plan
        self.saves_left = 3 * plan.num_saves
        self.failures_left = _MAX_FAILURES
        self.lives: dict[str, str] = {}
        """Participant to its life."""
        self.suspects: set[str] = set()
        """Who failed, and is admitted again before the next restore."""
        self.awaited: dict[str, str] = {}
        """Whom `gather` waits for, and in which life."""
        self.holds: dict[str, set[str]] = {}
        """Participant to the components that it said it holds."""
        self.publications_left = 2 * plan.num_saves if self.company.publishes else 0
        self.publish_keep = self.world.random.choice((1, 2))
        self.asked: Opening
        """The call that was opened last."""
        self.step = 0
        self.restores = True
        self.has_restored = False
        self.finished = False

    # -- admissions ------------------------------------------------------------------------------

    def gather(self) -> None:
        """Admit everybody who is missing or failed; then go on."""
        everybody = (*self.company.names, *([GUEST] if GUEST in self.lives else []))
        self.suspects |= {name for name in everybody if not self.company.lives(name)}
        wanted = [n for n in everybody if n not in self.lives or n in self.suspects]
        if self.world.chance(0.1):
            wanted = list(everybody)
        self.suspects.clear()
        self.awaited = dict.fromkeys(wanted, "")
        for name in wanted:
            self.awaited[name] = self.admit(name)
        if not wanted:
            self.go_on()

    def admit(self, name: str) -> str:
        """Admit a participant in a new life; return the life."""
        if not self.company.lives(name):
            self.company.start(name, self.era)
        life = f"{self.world.random.getrandbits(32):08x}"
        self.end_life(name)
        self.lives[name] = life
        self.era.hub.admit(name, life)
        self._perform(self.protocol.admit(name, life))
        self.company.call(name, lambda owner: self._hand_over(owner, life))
        late = lambda: self._admitted(name, life, good=False)  # noqa: E731
        self.world.at(DEADLINES.connect_s, late, self.node)
        return life

    def _hand_over(self, owner: Owner, life: str) -> None:
        def refused() -> None:
            report = lambda: self._admitted(owner.name, life, good=False)  # noqa: E731
            self.world.at(self.world.roll() * 0.02, report, self.node)

        owner.enqueue(lambda: owner.admit(self.era, life, refused))

    def _perform(self, todo: list[actions.Action]) -> None:
        """Note also who is let in: a life is, once the coordinator knows what it holds."""
        for life in [one.life for one in todo if isinstance(one, actions.Connected)]:
            for name in [name for name, own in self.lives.items() if own == life]:
                known = lambda name=name, life=life: self._admitted(name, life, good=True)  # noqa: E731
                self.world.at(0.0, known, self.node)
        super()._perform(todo)

    def take(self, participant: str, message: messages.FromParticipant, life: str = "") -> None:
        current = self.lives.get(participant) == life and life not in self.judge.lost_at
        if isinstance(message, messages.Holds) and current:
            self.holds[participant] = set(message.components)
        super().take(participant, message, life)

    def _admitted(self, name: str, life: str, *, good: bool) -> None:
        if self.awaited.get(name) != life:
            return
        del self.awaited[name]
        if not good:
            self.release(name)
        if not self.awaited:
            self.go_on()

    def release(self, name: str) -> None:
        """Let a participant take no part any more."""
        self.end_life(name)
        self.holds.pop(name, None)
        if self.lives.pop(name, None) is not None:
            self._perform(self.protocol.release(name))

    def end_life(self, name: str) -> None:
        if name in self.lives:
            self.judge.ended_at.setdefault(self.lives[name], self.world.now)

    # -- its script ------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Restore or save, once everybody was admitted."""
        missing = [name for name in self.company.names if name not in self.lives]
        if missing:
            self.failures_left -= 1
            self.suspects.update(missing)
            if self.failures_left > 0:
                self.world.at(1.0, self.gather, self.node)
            else:
                self.finish()
        elif self.restores:
            self.restore()
        else:
            self.save()

    def restore(self) -> None:
        """Bring everybody back to one step."""
        plan, first = self.plan, not self.has_restored
        policies = {} if GUEST in self.lives else {COMPONENTS[role_of(GUEST)]: "skip"}
        step, fresh = (plan.restore_step, plan.fresh) if first else (None, False)
        self.open(Opening("restore", step, fresh=fresh, policies=policies))

    def prepare_save(self) -> None:
        """Perhaps let somebody join, leave or come back; then save."""
        happens = self.world.roll()
        if happens < 0.1 and GUEST not in self.lives:
            self.awaited = {GUEST: ""}
            self.awaited[GUEST] = self.admit(GUEST)
        elif happens < 0.2 and GUEST in self.lives:
            self.release(GUEST)
            self.save()
        elif happens < 0.3:
            name = self.world.random.choice(list(self.lives))
            self.awaited = {name: ""}
            self.awaited[name] = self.admit(name)
        else:
            self.save()

    def save(self) -> None:
        if not self.saves_left or not self.lives:
            self.finish()
            return
        if self.publications_left and self.world.chance(0.4):
            self.publications_left -= 1
            components = publication_of(self.world)
            version = next_version(self.world, self.step)
            self.open(Opening("save", version, ORDER, publish=components))
            return
        self.saves_left -= 1
        cut = {"step": self.step + 10}
        freeze = self.company.freeze
        self.open(Opening("save", self.step + 10, ORDER, RELATIONS, cut, freeze=freeze))

    def open(self, opening: Opening) -> None:
        """Open a call, and perhaps let something happen meanwhile."""
        self.asked, publish = opening, opening.publish
        roster = holders(publish, self.holds, self.lives) if publish else dict(self.lives)
        call = self.judge.open(self.era.number, opening.kind, roster, publish)
        self.world.note(self.node.name, "opens", opening.kind, call, opening.step)
        number, todo = self.protocol.open(opening, self.world.now)
        assert number == call
        if opening.kind == "save":
            self._watch(call)
        self._perform(todo)
        if self.world.chance(0.4 * self.world.faults.crash):
            self.world.at(self.world.roll() ** 2 * 3.0, self.trouble, self.node)

    def _watch(self, call: int) -> None:
        """Judge that a save is decided in time, unless this process stood still.

        That a call ends at all is judged when time is over.
        """
        opened, stood_s = self.judge.opened[self.era.number, call], self.node.stood_s

        def look() -> None:
            excused = self.node.stood_s != stood_s or not self.node.alive
            told = opened.outcome is not None
            self.oracle.require("every opened call ends in time", told or excused, call)

        self.world.at(DEADLINES.save_s + _GRACE_S, look)

    def trouble(self) -> None:
        """Let somebody join, leave, die or come back, whatever goes on."""
        if self.finished or not self.lives:
            return
        draw = self.world.random
        name, company = draw.choice(list(self.lives)), self.company
        match draw.choice(("again", "replace", "release", "join", "kill", "kill")):
            case "again":
                self.admit(name)
            case "replace":
                if company.lives(name):
                    self.world.freeze(company.here[name].node, draw.choice((1.0, 5.0, 40.0)))
                company.start(name, self.era)
                self.admit(name)
            case "release":
                self.release(name)
            case "join":
                self.admit(GUEST)
            case "kill" if company.lives(name):
                self.world.kill(company.here[name].node)

    def finish(self) -> None:
        """Leave in good order."""
        for name in list(self.lives):
            self.release(name)
        self.finished = True
        self._perform([])

    # -- outcomes --------------------------------------------------------------------------------

    def lose(self, participant: str, cause: messages.Failure, life: str = "") -> None:
        self.judge.lost_at.setdefault(life, self.world.now)
        super().lose(participant, cause, life)

    def _is_needed(self) -> bool:
        return not self.finished

    def _do(self, action: StorageWork) -> None:
        if isinstance(action, actions.BeginStaging) and action.area is Area.PUBLISHED:
            self.judge.published.begin(action.attempt)
        super()._do(action)

    def _watch_select(self, action: actions.Select) -> Callable[[actions.DriverEvent], None]:
        judge = super()._watch_select(action)

        def judge_all(event: actions.DriverEvent) -> None:
            judge(event)
            if isinstance(event, actions.Selected) and event.ref is not None:
                is_step = (event.ref.incarnation, event.ref.step) in self.oracle.places
                self.oracle.require("a restore is offered steps alone", is_step, event.ref)

        return judge_all

    def _nodes_of(self, call: int) -> list[str]:
        return list(self.judge.opened[self.era.number, call].roster.values())

    def _deliver(self, to: str, message: messages.FromCoordinator) -> None:
        if isinstance(message, (BeginSave, BeginRestore)) and self.company.has_bells:
            self._ring(to, message)
            return
        line = self.era.hub.lines.get(to)
        if line is not None:
            self.judge.see_word(self.era.number, to, line.life, message)
            line.down(message)
        if isinstance(message, messages.Dismiss):
            self.era.hub.end(to)

    def _ring(self, to: str, begin: BeginSave | BeginRestore) -> None:
        def gone() -> None:
            dead = messages.Failure(errors.ParticipantFailed.kind, f"actor died {begin.life}")
            self.world.at(0.01, lambda: self.lose(to, dead, begin.life), self.node)

        def ring(owner: Owner) -> None:
            try:
                owner.begin(begin)
            except errors.CheckpointError as error:
                why = failure_of(error)
                reach = lambda: self._unreached(begin.call, to, why)  # noqa: E731
                self.world.at(0.01, reach, self.node)

        self.company.call(to, lambda owner: owner.enqueue(lambda: ring(owner)), gone)

    def _unreached(self, call: int, name: str, why: messages.Failure) -> None:
        self._perform(self.protocol.on_unreached(call, name, why))

    def _judge(self, message: messages.FromCoordinator) -> None:
        super()._judge(message)
        if isinstance(message, messages.Write):
            self.judge.see_order(self.era.number, message)

    def _take_outcome(self, told: actions.Told) -> None:
        outcome = told.outcome
        reached = {line.life for line in self.era.hub.lines.values() if not line.dead}
        self.judge.told(self.era.number, outcome, reached)
        if isinstance(outcome, messages.Aborted) and outcome.call in self.attempts:
            self.oracle.abort(self.attempts[outcome.call], self.node.name)
        if self.finished:
            return
        if isinstance(outcome, messages.RestoreFailed):
            self.world.at(0.0, lambda: self.after_failure(outcome.failures), self.node)
        elif isinstance(outcome, (messages.Restored, messages.Fresh)):
            self.has_restored, self.restores = True, False
            self.step = outcome.step if isinstance(outcome, messages.Restored) else 0
            self.world.at(self.world.roll(), self.prepare_save, self.node)
        else:
            decided = outcome
            self.world.spawn(self.node, lambda: self.end_save(decided))

    def end_save(self, outcome: messages.Decided) -> None:
        """Find out how a save or publication ended, as `stepseal.Coordinator` does."""
        state, asked = SaveState(outcome.call, outcome=outcome), self.asked
        step = asked.step or 0
        failures = outcome.failures if isinstance(outcome, messages.Aborted) else {}
        try:
            found = resolve_save(state, step, PosixSteps(self.own_disk))
        except errors.CheckpointError as error:
            end = "unknown" if isinstance(error, errors.OutcomeUnknown) else f"failed: {error.kind}"
            then: Callable[[], None] = lambda: self.after_failure(failures)  # noqa: E731
            if asked.publish and self.world.chance(0.5):
                then = self.prepare_save  # it has harmed nothing
        else:
            self.oracle.acknowledge(found.attempt, step, self.node.name)
            self.step, end = (self.step if asked.publish else step), "committed"
            then = self.prepare_save
        self.era.ends.setdefault(outcome.call, {})[self.node.name] = end
        wait_s = self.world.roll() * self.plan.pace_s
        self.world.at(wait_s, then, self.node)

    def after_failure(self, failures: dict[str, messages.Failure]) -> None:
        """Bring back whoever failed, and restore; or go on carelessly."""
        self.suspects.update(name for name in failures if name in self.lives)
        self.failures_left -= 1
        stolen = any(cause.message.startswith("closed") for cause in failures.values())
        if self.failures_left <= 0 or (stolen and self.world.chance(_GIVES_UP)):
            self.finish()
            return
        careless = self.has_restored and self.world.chance(_CARELESS)
        self.restores = not careless
        if careless and self.world.chance(0.5):
            self.prepare_save()
        else:
            self.gather()
