"""Promises about what stays: judged when a step is taken out of sight, and when it is deleted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.campaigns.simulator._state import exists, manifest_at

from stepseal.layout import parse_step_name
from stepseal.steps._roots import TRASH

if TYPE_CHECKING:
    from tests.campaigns.simulator._disk import Disk
    from tests.campaigns.simulator._oracle import Oracle
    from tests.campaigns.simulator._world import Node

    from stepseal.layout import StepRef

__all__ = ["Keeping"]

_TOLERANCE_S = 0.001
"""Times on disk are rounded."""
_PRUNED = re.compile(r".*/step-(\d+)\.(\d+)\.([0-9a-f]{32})\.[0-9a-f]{16}\.pruned")


class Keeping:
    """Knows who reads what, which steps are pinned, and what was deleted.

    Args:
        oracle: knows the rest.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.pinned: set[int] = set()
        """Numbers of which somebody was told that they are pinned."""
        self._pin_written: dict[int, int] = {}
        """Pinned number to the verb that wrote the pin: what left its place before is not meant."""
        self._moved_at: dict[str, int] = {}
        """Attempt to the verb before which a prune moved it into the trash."""
        self._to_come_back: set[str] = set()
        """Commits that a prune took which did not know the newest claim, and which count in it."""
        self._moved_as: dict[str, set[str]] = {}
        """Attempt to the one of these two sets to which its last move into the trash took it."""
        self._held: dict[Node, tuple[str, float]] = {}
        """Process to the attempt that it found standing under its lease, and until when."""
        self._parent_wanted: dict[Node, tuple[str | None, int]] = {}
        """Process to the parent of the claim that it begins, and the number of the verb then."""
        self._claims_since: dict[Node, float] = {}
        """Process to when it began to claim."""
        self.graces: dict[Node, float] = {}
        """Process that prunes to how long it leaves alone what left the lineage."""
        self.outside_since: dict[str, float] = {}
        """Commit outside the lineage to when it came to be there, at the earliest."""
        self.out: set[str] = set()
        """Commits in the trash, from where they may come back; none was the newest."""
        self._left_at: dict[str, int] = {}
        """Attempt to the number of the verb before which it left its place."""

    def hold(self, node: Node, attempt: str, seconds: float) -> None:
        """Note that a process leased a step and then found it standing."""
        if attempt:
            self._held[node] = (attempt, self.oracle.world.now + seconds)

    def readers_of(self, attempt: str) -> list[str]:
        """Return the processes that live and lease this attempt."""
        now = self.oracle.world.now
        return [
            node.name
            for node, (held, until) in self._held.items()
            if held == attempt and node.alive and now <= until
        ]

    def release(self, node: Node) -> None:
        """Note that a process does not need its step any more."""
        self._held.pop(node, None)

    def before_pruning(self, disk: Disk, key: str) -> None:
        """Judge that a step is about to be taken out of its place."""
        oracle = self.oracle
        step = parse_step_name(key)
        owed = oracle.owed()
        stale = oracle.claimed_at.get(max(oracle.claims, default=0), 0) > disk.saw_claims_at
        found = manifest_at(oracle.world.disk, key)
        if not stale:  # one that is stale looks again, and puts it back
            kept = self._is_newer_durable(step)
            oracle.require("the newest step is not taken away", kept, disk.node.name, key)
            since = None if found is None else self.outside_since.get(found.attempt)
            if since is not None:
                over = oracle.world.now - since >= self.graces[disk.node] - _TOLERANCE_S
                oracle.require("what left the lineage has its grace", over, key, since)
        if found is None:
            return
        self._moved_at[found.attempt] = oracle.world.num_verbs
        returns = stale and step == max(owed, default=-1)
        moved = self._moved_as[found.attempt] = self._to_come_back if returns else self.out
        moved.add(found.attempt)

    def is_on_its_way_back(self, attempt: str) -> bool:
        """Tell whether a step lies in the trash from where a restore, or who put it there, takes
        it back.
        """
        return attempt in self._to_come_back and attempt in self._in_trash()

    def _in_trash(self) -> set[str]:
        disk = self.oracle.world.disk
        if not exists(disk, TRASH):
            return set()
        lying = [e.name for e in disk.list_dir(TRASH) if e.name.endswith(".pruned")]
        found = [manifest_at(disk, f"{TRASH}/{name}") for name in lying]
        return {manifest.attempt for manifest in found if manifest is not None}

    def after_power_loss(self, standing: set[str]) -> None:
        """Note what lies in the trash again, or stands again, because its way was not durable."""
        for attempt in standing:
            self._left_at.pop(attempt, None)
        for attempt in self._in_trash() - standing:
            self._moved_as.get(attempt, set()).add(attempt)

    def came_back(self, attempt: str) -> None:
        """Note that a step stands in its place."""
        self.out.discard(attempt)
        self._to_come_back.discard(attempt)
        self._left_at.pop(attempt, None)

    def pin_written(self, step: int) -> None:
        """Note that from now on a prune can see a pin."""
        self._pin_written.setdefault(step, self.oracle.world.num_verbs)

    def _is_newer_durable(self, step: int | None) -> bool:
        """Tell whether a step would be left to resume from if power were lost now."""
        image = self.oracle.world.disk.after_power_loss(lambda *_: 0.0)
        for entry in image.list_dir(""):
            number = parse_step_name(entry.name)
            if number is None or number == step:
                continue
            found = manifest_at(image, entry.name)
            if found is not None and self.oracle.in_lineage(found.incarnation, number):
                return True
        return False

    def before_deletion(self, disk: Disk, key: str, target: str) -> None:
        """Judge that a folder in the trash is about to be called deleted."""
        match = _PRUNED.fullmatch(key)
        if match is None:
            self._before_deletion_aside(key)
            return
        oracle = self.oracle
        step, attempt = int(match[1]), match[3]
        readers = self.readers_of(attempt)
        oracle.require("what is leased is not deleted", not readers, target, readers)
        moved_at = self._moved_at.get(attempt, oracle.world.num_verbs)
        pinned = step in self.pinned and moved_at >= self._pin_written.get(step, 0)
        oracle.require("what is pinned is not deleted", not pinned, target)
        owed = oracle.owed()
        newest = owed[max(owed)].attempt if owed else ""
        oracle.require("the newest step is not deleted", attempt != newest, target)
        parent = oracle.claims.get(max(oracle.claims, default=0))
        needed = parent is not None and oracle.places.get((parent[1], parent[0])) == attempt
        claimed = oracle.claimed_at.get(max(oracle.claims, default=0), 0)
        seen = claimed <= disk.saw_claims_at
        oracle.require("what was resumed from is not deleted", not (needed and seen), target)
        current = disk.node.incarnation == max(oracle.claims, default=0)
        oracle.require("a replaced job deletes nothing", current or not seen, target)
        oracle.pruned.add(attempt)

    def _before_deletion_aside(self, key: str) -> None:
        """Judge that something superseded is about to be called deleted."""
        oracle = self.oracle
        found = manifest_at(oracle.world.disk, key)
        if found is None:
            return
        owed = found.attempt in {commit.attempt for commit in oracle.owed().values()}
        oracle.require("what is owed is not deleted", not owed, key)
        oracle.pruned.add(found.attempt)

    def before_claim(self, node: Node, parent: StepRef | None) -> None:
        """Note from where on the parent of a claim is looked at."""
        place = None if parent is None else (parent.incarnation, parent.step)
        attempt = None if place is None else self.oracle.places.get(place)
        self._parent_wanted[node] = (attempt, self.oracle.world.num_verbs)
        self._claims_since[node] = self.oracle.world.now

    def see_lineage(self, since: float) -> None:
        """Note what the newest claim left behind, or took back."""
        oracle = self.oracle
        for attempt, commit in oracle.commits.items():
            if oracle.in_lineage(commit.incarnation, commit.step):
                self.outside_since.pop(attempt, None)
            else:
                self.outside_since.setdefault(attempt, since)

    def left(self, attempt: str) -> None:
        """Note that a step left its place."""
        self._left_at[attempt] = self.oracle.world.num_verbs

    def after_claim(self, node: Node, number: int) -> None:
        """Judge that a claim descends from something that stood when it was looked at last."""
        self.see_lineage(self._claims_since[node])
        attempt, since = self._parent_wanted.get(node, (None, 0))
        if attempt is None:
            return
        stood = self._left_at.get(attempt, since) >= since
        self.oracle.require("a claim descends from what stands", stood, node.name, number)
