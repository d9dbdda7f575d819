"""Every promise of the protocol, judged at each change of the disk and at each word that is told.

Knows what was written, prepared, committed, told and claimed from watching alone; shares with the
protocol nothing but the decoding of manifests and claims. `checks` counts how often each promise
was judged: one that was never judged is not proven.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.campaigns.simulator._keeping import Keeping
from tests.campaigns.simulator._state import exists, manifest_at, wrong_with

from stepseal.layout import (
    LATEST,
    MANIFEST,
    parse_step_name,
    step_name,
    unix_time,
)
from stepseal.steps._claims import INCARNATIONS, read_claims
from stepseal.steps._pins import PINS
from stepseal.steps._roots import STAGING, SUPERSEDED, TRASH

if TYPE_CHECKING:
    from tests.campaigns.simulator._disk import Disk
    from tests.campaigns.simulator._parts import Replica
    from tests.campaigns.simulator._world import Node, World

    from stepseal.layout import Manifest
    from stepseal.protocol import _messages as messages

__all__ = ["Commit", "Oracle"]

_STAGED = re.compile(STAGING + r"/(?:step|v)-(\d+)\.(\d+)\.([0-9a-f]{32})")
_INSIDE = re.compile(r"(?:step-|published/v-)\d+/.*")
_CLAIM = re.compile(INCARNATIONS + r"/([0-9]+)\.json")
_PIN = re.compile(PINS + r"/step-([0-9]+)\.json")


@dataclass(frozen=True)
class Commit:
    """An attempt that passed the commit point."""

    attempt: str
    step: int
    incarnation: int
    num_parts: int


class Oracle:
    """Judges one world; `problems` lists every broken promise."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.problems: list[str] = []
        self.checks: Counter[str] = Counter()
        self.prepared: dict[str, set[str]] = {}
        """Attempt to who wrote, synced and closed all of its part."""
        self.commits: dict[str, Commit] = {}
        self.places: dict[tuple[int, int], str] = {}
        """Incarnation and step to the attempt that has it."""
        self.acknowledged: dict[str, Commit] = {}
        self.aborted: set[str] = set()
        """Attempts of which somebody was told that they will never be committed."""
        self.ordered: set[str] = set()
        """Attempts that somebody was ordered to write."""
        self.publishing: dict[str, float] = {}
        """Attempt to the deadline of its publication."""
        self.rotted: set[str] = set()
        self.pruned: set[str] = set()
        self.claims: dict[int, tuple[int, int] | None] = {}
        """Claimed incarnation to step and incarnation of its parent."""
        self.claimed_at: dict[int, int] = {}
        """Claimed incarnation to the number of the verb that claimed it."""
        self.superseded: set[str] = set()
        """Commits that were put out of their place while they were outside the lineage."""
        self.withdrawn: set[str] = set()
        """Attempts that stood in their step's place until their own coordinator undid it."""
        self.num_begun = 0
        """Attempts that were staged so far."""
        self.keeping = Keeping(self)
        self.replicas: dict[str, dict[str, Replica]] = {}
        """Attempt to what each participant holds that others hold, too."""
        self.left_out: dict[str, set[tuple[str, ...]]] = {}
        """Attempt to what its orders to write leave out."""
        self._taken = False
        self.checked: set[tuple[str, int, int]] = set()
        """Processes, calls and rounds of restores in which a candidate was checked and fits."""
        self.heard: set[int] = set()
        """Incarnations of which the claim was confirmed to the claimer."""

    def require(self, promise: str, kept: bool, *what: object) -> None:
        """Count one judgement of a promise, and note it if it was broken."""
        self.checks[promise] += 1
        if not kept:
            text = " ".join(str(word) for word in what)
            self.world.note("BROKEN:", promise, text)
            self.problems.append(f"t={self.world.now:.3f}: {promise}: {text}")

    # -- the disk --------------------------------------------------------------------------------

    def before_change(self, disk: Disk, verb: str, key: str, target: str) -> None:
        inside = _INSIDE.fullmatch(key) is not None
        if verb in ("create_file", "make_dir", "write", "remove_file", "remove_dir"):
            self.require("nothing is changed in place", not inside, verb, key)
        if verb in ("remove_file", "remove_dir"):
            self._before_removal(disk, key)
        elif verb == "replace" and target != LATEST:
            self.require("nothing is overwritten", not exists(self.world.disk, target), key, target)
        elif verb == "rename":
            self._before_move(disk, key, target)

    def _displaced(self, step: int, found: Manifest) -> None:
        """Take what an exchange put out of its place, if it did not count any more."""
        for commit in list(self.commits.values()):
            if commit.step == step and commit.attempt != found.attempt:
                self.keeping.left(commit.attempt)
                if not self.in_lineage(commit.incarnation, step):
                    self.superseded.add(commit.attempt)

    def _before_removal(self, disk: Disk, key: str) -> None:
        node, claim = disk.node, _CLAIM.fullmatch(key)
        self.require("claims stay", claim is None, node.name, "removes", key)
        if key.endswith(f"/{MANIFEST}"):
            folder = key.rpartition("/")[0]
            found = manifest_at(self.world.disk, folder)
            attempt = "" if found is None else found.attempt
            if attempt and folder.endswith(".pruned"):  # it could not be renamed for its deletion
                self.keeping.before_deletion(disk, folder, folder)
            gone = attempt in self.commits and attempt not in self.pruned
            gone = gone and not self._is_elsewhere(attempt, folder)
            gone = gone and attempt not in self.withdrawn
            self.require("what was committed is never deleted", not gone, node.name, key)

    def _is_elsewhere(self, attempt: str, folder: str) -> bool:
        """Tell whether a torn move left a second name of a step.

        On this disk each name has bytes of its own, so that those of the step may have rotted.
        """
        disk, place = self.world.disk, step_name(self.commits[attempt].step)
        if attempt in self.rotted and folder != place and exists(disk, place):
            return True
        others = [place]
        for area in (SUPERSEDED, STAGING):  # staging holds, for a while, what was exchanged
            others += [f"{area}/{entry.name}" for entry in disk.list_dir(area)]
        found = [manifest_at(disk, other) for other in others if other != folder]
        return any(other is not None and other.attempt == attempt for other in found)

    def _before_move(self, disk: Disk, key: str, target: str) -> None:
        node = disk.node
        if not exists(self.world.disk, key):
            return  # it will be refused
        if target.endswith(".deleting"):
            self.keeping.before_deletion(disk, key, target)
        elif key.startswith("step-"):
            self.keeping.before_pruning(disk, key)
        if parse_step_name(target) is not None:
            self._taken = exists(self.world.disk, target)
        staged = _STAGED.fullmatch(key)
        if staged is None or not target.startswith(TRASH):
            return
        attempt, incarnation = staged[3], int(staged[2])
        own = node.incarnation == incarnation
        begun = attempt in self.ordered  # else its folder could not be made whole
        dead = not begun or attempt in self.aborted or attempt in self.publishing
        supersedes = disk.had_no_room and incarnation <= max(self.claims, default=0)
        allowed = node.incarnation > incarnation or (own and dead) or supersedes
        self.require("live staging stays", allowed, node.name, node.incarnation, "removes", key)

    def after_change(self, disk: Disk, verb: str, key: str, target: str) -> None:
        node = disk.node
        self.num_begun += verb == "make_dir" and _STAGED.fullmatch(key) is not None
        if verb in ("link", "replace") and (claim := _CLAIM.fullmatch(target)) is not None:
            self._claimed(node, int(claim[1]))
        elif verb == "link" and (pinned := _PIN.fullmatch(target)) is not None:
            self.keeping.pin_written(int(pinned[1]))
        elif verb in ("rename", "exchange", "replace") and parse_step_name(target) is not None:
            if verb == "rename":  # refused if the name was taken; then this is not reached
                self.require("nothing is overwritten", not self._taken, key, target)
            self._placed(disk, target)

    def _claimed(self, node: Node, number: int) -> None:
        highest = max(self.claims, default=0)
        self.require("incarnations only grow", number > highest, node.name, number, highest)
        self.read_claims()
        self.claimed_at[number] = self.world.num_verbs
        self.keeping.after_claim(node, number)

    def read_claims(self) -> None:
        """Take what the disk says of claims now."""
        self.claims = {
            claim.incarnation: None
            if claim.parent is None
            else (claim.parent.step, claim.parent.incarnation)
            for claim in read_claims(self.world.disk)
        }

    def _placed(self, disk: Disk, target: str) -> None:
        """Judge a commit point; a step that was put back is none."""
        found = manifest_at(self.world.disk, target)
        self.require("a step has a sound manifest", found is not None, disk.node.name, target)
        if found is None:
            return
        self._displaced(found.step, found)
        self.superseded.discard(found.attempt)
        self.keeping.came_back(found.attempt)
        if found.attempt in self.commits:
            self._undone(disk.node.incarnation, found)
            return
        attempt, step, incarnation = found.attempt, found.step, found.incarnation
        self._judge_commit(disk, found)
        held = self.places.setdefault((incarnation, step), attempt)
        self.require("one manifest per incarnation and step", held == attempt, held, attempt)
        self.commits[attempt] = Commit(attempt, step, incarnation, len(found.parts))
        self.keeping.see_lineage(unix_time(found.created_at) - self.world.clock() + self.world.now)

    def _undone(self, incarnation: int, found: Manifest) -> None:
        """Take what its own coordinator exchanged back, before anybody was told of it."""
        for commit in self.commits.values():
            own = commit.incarnation == incarnation and commit.step == found.step
            if own and commit.attempt not in self.acknowledged:
                self.withdrawn.add(commit.attempt)

    def hold(self, order: messages.Write, who: str, replica: Replica) -> None:
        """Take what a participant holds that is ordered to write."""
        self.replicas.setdefault(order.attempt, {})[who] = replica
        told = self.left_out.setdefault(order.attempt, set())
        told.add(tuple(order.left_out))
        self.require("all leave out alike", len(told) == 1, who, told)

    def _judge_replicas(self, found: Manifest) -> None:
        held = self.replicas.get(found.attempt, {}).values()
        models, extras = {one.model for one in held}, {one.extra for one in held}
        self.require("replicas that are committed are equal", len(models) == 1, found.step, models)
        whole = len(extras) == 1 and "" not in extras
        kept = "extra" in {entry.name for entry in found.components}
        told = "extra" in found.left_out
        right = (kept, told) == (whole, not whole)
        self.require("what differs and may is left out", right, found.step, extras, kept, told)

    def _judge_commit(self, disk: Disk, found: Manifest) -> None:
        step, number = found.step, found.incarnation
        self.judge_attempt(disk, found)
        if max(self.claims, default=0) > number:
            inside = self.in_lineage(number, step)
            self.require("a zombie never enters the lineage", not inside, f"{step} by {number}")

    def judge_attempt(self, disk: Disk, found: Manifest) -> None:
        """Judge what was just committed, wherever it belongs."""
        self._judge_replicas(found)
        attempt, step, number = found.attempt, found.step, found.incarnation
        missing = set(found.participants) - self.prepared.get(attempt, set())
        self.require("commit after all prepared", not missing, f"step {step} lacks {missing}")
        wrong = wrong_with(self.world.disk, found)
        self.require("a commit is whole, of one attempt", not wrong, wrong)
        told = attempt in self.aborted
        self.require("no commit after an abort was told", not told, f"step {step}", attempt)
        own = disk.node.incarnation == number
        self.require("a commit names its own incarnation", own, disk.node.incarnation, number)
        deadline = self.publishing.get(attempt, float("inf"))
        late = deadline < disk.last_verb_before
        self.require("no commit after its deadline", not late, f"step {step}", deadline)
        newer = max(self.claims, default=0)
        if newer <= number:
            return
        looked = self.claimed_at.get(newer, 0) > disk.saw_claims_at
        self.require("who saw a newer claim commits nothing", looked, f"step {step} by {number}")

    # -- lineage ---------------------------------------------------------------------------------

    def in_lineage(self, incarnation: int, step: int) -> bool:
        """Tell whether a step descends to the newest claim."""
        number = max(self.claims, default=0)
        limit: float = float("inf")
        while number:
            if number == incarnation:
                return step <= limit
            parent = self.claims.get(number)
            if parent is None:
                return False
            limit, number = parent
        return not self.claims

    def owed(self) -> dict[int, Commit]:
        """Return, by step, what was acknowledged, counts in the newest lineage and is sound."""
        spoilt = self.rotted | self.pruned | self.superseded | self.keeping.out
        return {
            commit.step: commit
            for attempt, commit in self.acknowledged.items()
            if attempt not in spoilt and self.in_lineage(commit.incarnation, commit.step)
        }

    def require_owed(self, when: str) -> None:
        """Judge whether all that is owed stands in its place, whole, or is to come back there."""
        for step, commit in self.owed().items():
            found = manifest_at(self.world.disk, step_name(step))
            kept = found is not None and found.attempt == commit.attempt
            if not kept and self.keeping.is_on_its_way_back(commit.attempt):
                continue  # then the restore must find it
            self.require("what was acknowledged is kept", kept, when, commit)
            if found is not None and kept:
                wrong = wrong_with(self.world.disk, found)
                self.require("what was acknowledged stays whole", not wrong, when, wrong)

    def require_known(self, when: str) -> None:
        """Judge whether all that stands is committed, whole, and nothing else."""
        for entry in self.world.disk.list_dir(""):
            step = parse_step_name(entry.name)
            if step is None:
                continue
            found = manifest_at(self.world.disk, entry.name)
            if found is None:
                spoilt = any(self.commits[a].step == step for a in self.rotted)
                self.require("what stands was committed", spoilt, when, entry.name, "unreadable")
                continue
            self.require(
                "what stands was committed", found.attempt in self.commits, when, entry.name
            )
            if found.attempt not in self.rotted:
                wrong = wrong_with(self.world.disk, found)
                self.require("what stands is whole", not wrong, when, wrong)

    # -- words -----------------------------------------------------------------------------------

    def acknowledge(self, attempt: str, step: int, who: str) -> None:
        """Judge that somebody takes this attempt for committed."""
        if attempt in self.acknowledged:
            return
        commit = self.commits.get(attempt)
        self.require("committed is told after the commit", commit is not None, who, step, attempt)
        apart = attempt not in self.aborted or self.is_superseded(attempt)
        self.require("committed and aborted exclude each other", apart, who, step)
        if commit is None:
            return
        self.acknowledged[attempt] = commit
        if attempt in self.owed().get(step, Commit("", 0, 0, 0)).attempt:
            image = self.world.disk.after_power_loss(lambda *_: 0.0)
            found = manifest_at(image, step_name(step))
            kept = found is not None and found.attempt == attempt and not wrong_with(image, found)
            self.require("what is acknowledged survives power loss", kept, who, step)

    def abort(self, attempt: str, who: str) -> None:
        """Judge that somebody was told that this attempt is not committed and never will be.

        A step that a newer incarnation superseded is not there any more.
        """
        committed = attempt in self.commits and not self.is_superseded(attempt)
        self.require("no abort of what is committed", not committed, who, attempt)
        self.aborted.add(attempt)

    def is_commit(self, attempt: str) -> bool:
        """Tell whether an attempt passed its commit point."""
        return attempt in self.commits

    def is_superseded(self, attempt: str) -> bool:
        """Tell whether a commit left its place: pruned, or after it left the newest lineage."""
        if attempt in self.pruned or attempt in self.keeping.out:
            return True
        commit = self.commits.get(attempt)
        if commit is None or self.in_lineage(commit.incarnation, commit.step):
            return False
        found = manifest_at(self.world.disk, step_name(commit.step))
        return found is None or found.attempt != attempt

    def after_power_loss(self) -> None:
        """Take what the disk shows now, and judge what had to survive."""
        self.read_claims()
        self.keeping.see_lineage(0.0)  # claims of which nobody heard may be gone
        lost = {number for number in self.heard if number not in self.claims}
        self.require("claims stay", not lost, "after power loss", lost)
        standing = set()
        for entry in self.world.disk.list_dir(""):
            if parse_step_name(entry.name) is not None:
                found = manifest_at(self.world.disk, entry.name)
                standing.add("" if found is None else found.attempt)
        self.keeping.after_power_loss(standing)
        for place, attempt in list(self.places.items()):
            if attempt not in standing and attempt not in (*self.acknowledged, *self.rotted):
                del self.places[place]
                self.commits.pop(attempt, None)
        self.require_owed("after power loss")
        self.require_known("after power loss")
