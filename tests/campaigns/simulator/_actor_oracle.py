"""What must hold of calls that a coordinator opens for actors, besides what `_oracle` judges.

A step holds what exactly one life of each participant on the roster of one call captured, at one
cut; the roster is who was admitted when the call was opened. A call fails only for what happened to
the lives on its roster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.campaigns.simulator._cast import COMPONENTS, FIELDS, ORDER, fits
from tests.campaigns.simulator._oracle import Oracle
from tests.campaigns.simulator._parts import is_payload_of, read_part
from tests.campaigns.simulator._published import Published

from stepseal.layout import Area, role_of
from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.campaigns.simulator._disk import Disk
    from tests.campaigns.simulator._owner import Capture, Owner
    from tests.campaigns.simulator._world import Node, World

    from stepseal.layout import Manifest

__all__ = ["ActorOracle", "Opened"]


@dataclass
class Opened:
    """A call of a controller."""

    call: int
    kind: str
    roster: dict[str, str]
    """Participant to the life that it had when the call was opened."""
    captures: dict[str, list[Capture]] = field(default_factory=dict)
    outcome: object = None
    publish: tuple[str, ...] = ()
    """Components that it publishes; none for a step."""
    frozen: dict[str, Owner] = field(default_factory=dict)
    """Who was frozen by its capture."""
    moved: list[str] = field(default_factory=list)
    """Who of them had changed what it holds when the last one captured."""
    let_go: set[str] = field(default_factory=set)
    """Who was told of the end of the capture, or of the call."""

    def values(self) -> dict[str, int]:
        """Return how far each participant was when it captured."""
        return {name: taken[0].value for name, taken in self.captures.items()}


class ActorOracle(Oracle):
    """Judges one world of actors."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.published = Published(self)
        self.opened: dict[tuple[int, int], Opened] = {}
        """Controller and call to what is known of the call."""
        self.attempts: dict[str, Opened] = {}
        self.processes: dict[str, str] = {}
        """Life to the process that was admitted in it."""
        self.left_lives: set[str] = set()
        """Lives that said goodbye."""
        self.ended_at: dict[str, float] = {}
        """Life to when its controller replaced or released it."""
        self.lost_at: dict[str, float] = {}
        """Life to when its controller heard of its loss."""

    def open(
        self, controller: int, kind: str, roster: dict[str, str], publish: tuple[str, ...] = ()
    ) -> int:
        """Take a call that is about to be opened; return its number."""
        call = 1 + sum(1 for number, _ in self.opened if number == controller)
        self.opened[controller, call] = Opened(call, kind, roster, publish=publish)
        return call

    def admitted(self, life: str, owner: Owner) -> None:
        """Judge that a process was let in as a life."""
        first = self.processes.setdefault(life, owner.node.name)
        alone = first == owner.node.name
        self.require("a life is one process", alone, life, first, owner.node.name)

    # -- the disk --------------------------------------------------------------------------------

    def before_change(self, disk: Disk, verb: str, key: str, target: str) -> None:
        self.published.before_change(verb, key, target)
        super().before_change(disk, verb, key, target)

    def after_change(self, disk: Disk, verb: str, key: str, target: str) -> None:
        super().after_change(disk, verb, key, target)
        self.published.after_change(disk, verb, target)

    def acknowledge(self, attempt: str, step: int, who: str) -> None:
        if attempt in self.published.begun:
            self.published.acknowledge(attempt, who)
        else:
            super().acknowledge(attempt, step, who)

    def abort(self, attempt: str, who: str) -> None:
        self.published.abort(attempt, who)
        super().abort(attempt, who)

    def is_commit(self, attempt: str) -> bool:
        return attempt in self.published.commits or super().is_commit(attempt)

    def is_superseded(self, attempt: str) -> bool:
        return attempt in self.published.away or super().is_superseded(attempt)

    def after_power_loss(self) -> None:
        super().after_power_loss()
        self.published.after_power_loss()

    # -- captures --------------------------------------------------------------------------------

    def see_capture(self, owner: Owner, taken: Capture, *, freeze: bool) -> None:
        """Judge that a process has captured for a call."""
        controller, name = owner.job.number, owner.name
        opened = self.opened.get((controller, taken.call), Opened(taken.call, "none", {}))
        mine = opened.captures.setdefault(name, [])
        mine.append(taken)
        on_roster = opened.roster.get(name) == taken.life
        self.require("who begins is on the roster, in this life", on_roster, name, taken)
        known = self.processes.get(taken.life) == taken.process
        self.require("a life is one process", known, name, taken)
        self.require("each life begins a call once", len(mine) == 1, name, mine)
        own = _place(name)
        early = [n for n in opened.roster if _place(n) < own and n not in opened.captures]
        self.require("consumers are captured before producers", not early, name, early)
        if freeze:
            opened.frozen[name] = owner
        values = opened.values()
        opened.moved = [n for n, one in opened.frozen.items() if one.value != values[n]]

    def see_order(self, controller: int, order: messages.Write) -> None:
        """Judge that somebody is ordered to write what was captured in a call."""
        opened = self.attempts[order.attempt] = self.opened[controller, order.call]
        missing = opened.roster.keys() - opened.captures.keys()
        self.require("nothing is written before all captured", not missing, order.call, missing)
        sound = fits(opened.values(), related=not opened.publish)
        self.require("what is no cut is not written", sound, order.call, opened.values())

    def see_write(self, order: messages.Write, name: str) -> None:
        """Judge that a participant begins to write."""
        opened = self.attempts[order.attempt]
        self.require("who writes is on the roster", name in opened.roster, name, order.call)

    def _judge_replicas(self, found: Manifest) -> None:
        """Judge what a step that was just committed holds."""
        opened = self.attempts[found.attempt]
        whole = set(found.participants) == opened.roster.keys()
        self.require("a step holds its whole roster, and nobody else", whole, found.participants)
        values = {}
        for index, part in enumerate(found.parts):
            name = part.participant
            data = read_part(self.world.disk, found.step, found, index)
            process, life, call, value = data.decode().split()[2:]
            values[name] = int(value)
            right = (opened.roster.get(name), self.processes.get(life)) == (life, process)
            self.require("a step holds one life of each participant", right, name, life, process)
            same = int(call) == opened.call
            self.require("all parts are of one call", same, name, call, opened.call)
        fit = fits(values, related=not opened.publish)
        self.require("the cut holds in every step", fit, found.step, values)
        told = {FIELDS[role_of(name)]: v for name, v in values.items() if role_of(name) in FIELDS}
        if found.area is Area.STEPS:
            told["step"] = found.step
            still = not opened.moved
            self.require("who is frozen stands still until all captured", still, opened.moved)
        self.require("a step tells its cut", dict(found.cut) == told, found.cut, told)
        roles = {entry.name: entry.role for entry in found.components}
        owned = {COMPONENTS[role_of(name)]: role_of(name) for name in values}
        self.require("each component belongs to its role", roles == owned, roles)
        parent = found.parent
        known = parent is None or (parent.incarnation, parent.step) in self.places
        self.require("the parent of a step is a step", known, found.step, parent)

    def see_apply(self, name: str, found: Manifest, of: str, data: bytes) -> None:
        """Judge what a participant takes over from a step."""
        right = is_payload_of(data, found.attempt, of)
        self.require("no wrong byte is loaded", right, name, data)

    # -- words -----------------------------------------------------------------------------------

    def see_word(
        self, controller: int, name: str, life: str, message: messages.FromCoordinator
    ) -> None:
        """Judge that a life is told something of a call."""
        call = getattr(message, "call", None)
        if call is not None:
            its = self.opened[controller, call].roster.get(name)
            self.require("nobody hears of calls that it is not in", its == life, name, message)
        if isinstance(message, (messages.Thaw, messages.Committed, messages.Aborted)):
            self.opened[controller, message.call].let_go.add(name)

    def told(self, controller: int, outcome: object, reached: Collection[str]) -> None:
        """Judge the outcome of a call, as its controller is told.

        Args:
            controller: whose call it is.
            outcome: of the call.
            reached: lives that have a line to this controller.
        """
        call: int = getattr(outcome, "call")  # noqa: B009 - of any outcome
        opened = self.opened[controller, call]
        self.require("each call has one outcome", opened.outcome is None, controller, outcome)
        opened.outcome = outcome
        for name in opened.frozen:
            free = name in opened.let_go or opened.roster.get(name) not in reached
            self.require("nobody stays frozen after the call", free, controller, name, outcome)
        for name, cause in getattr(outcome, "failures", {}).items():
            life = opened.roster.get(name, "nobody")
            self.require(
                "a call fails for its own lives", self._is_true(life, cause), call, name, cause
            )

    def _is_true(self, life: str, cause: messages.Failure) -> bool:
        """Tell whether this happened to a life."""
        text, now = cause.message, self.world.now
        if text.startswith(("line cut", "actor died")):
            return text.endswith(life)
        if text.startswith(("was admitted again", "was released")):
            return life in self.ended_at
        if text.startswith("closed its"):
            return life in self.left_lives
        if text.startswith("did not answer"):
            gone_at = min(self.ended_at.get(life, now), self.lost_at.get(life, now))
            return gone_at >= now  # else it was waited for though it was gone
        return True

    def check_told(self, controller: int, node: Node) -> None:
        """Judge, when time is over, that every call has its outcome."""
        for (number, call), opened in self.opened.items():
            if number == controller and node.alive and node.frozen_until <= self.world.now:
                self.require("each call has one outcome", opened.outcome is not None, number, call)


def _place(name: str) -> int:
    role = role_of(name)
    return ORDER.index(role) if role in ORDER else len(ORDER)
