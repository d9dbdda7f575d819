"""What must hold of publications, who reads them, and what a controller publishes next."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.campaigns.simulator._readers import Reader
from tests.campaigns.simulator._state import exists, manifest_at, wrong_with

from stepseal.errors import CheckpointError
from stepseal.layout import MANIFEST, Area, role_of
from stepseal.steps._catalog import list_steps
from stepseal.steps._roots import TRASH
from stepseal.storage import read_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tests.campaigns.simulator._actor_oracle import ActorOracle
    from tests.campaigns.simulator._disk import Disk
    from tests.campaigns.simulator._oracle import Oracle
    from tests.campaigns.simulator._world import World

    from stepseal.testing import MemoryStorage

__all__ = ["Published", "ReaderOfVersions", "holders", "next_version", "publication_of"]

_AREA = Area.PUBLISHED
_WAYS = (("model",), ("model",), ("samples",), ("model", "prompts"))


def _versions(disk: MemoryStorage) -> dict[int, str]:
    """Return each version that stands, and its attempt; empty where its manifest is not sound."""
    if not exists(disk, _AREA.folder):
        return {}
    numbers = (_AREA.parse(entry.name) for entry in disk.list_dir(_AREA.folder))
    found = {n: manifest_at(disk, _AREA.key(n)) for n in numbers if n is not None}
    return {n: "" if one is None else one.attempt for n, one in found.items()}


class Published:
    """Judges publications.

    Args:
        oracle: knows the rest.
    """

    def __init__(self, oracle: ActorOracle) -> None:
        self.oracle = oracle
        self.begun: dict[str, int] = {}
        """Attempt to the number of the verb before which its staging began."""
        self.commits: dict[str, tuple[int, int]] = {}
        """Attempt to its version, and the number of the verb that committed it."""
        self.acknowledged: set[str] = set()
        self.away: set[str] = set()
        """Attempts that a prune took out of their place."""

    def begin(self, attempt: str) -> None:
        """Take an attempt that is about to be staged."""
        self.begun[attempt] = self.oracle.world.num_verbs

    def before_change(self, verb: str, key: str, target: str) -> None:
        disk, oracle = self.oracle.world.disk, self.oracle
        if key.startswith(f"{_AREA.folder}/{_AREA.prefix}") and verb in ("rename", "exchange"):
            found = manifest_at(disk, key)
            if found is not None:
                image = disk.after_power_loss(lambda *_: 0.0)
                newer = any(n > found.step and attempt for n, attempt in _versions(image).items())
                oracle.require("the newest publication is not taken away", newer, key)
                self.away.add(found.attempt)
        elif target.endswith(".deleting") or (verb == "remove_file" and key.endswith(MANIFEST)):
            folder = key.removesuffix(f"/{MANIFEST}")
            held = manifest_at(disk, folder)
            if held is not None and held.attempt in self.commits:
                place = _AREA.key(self.commits[held.attempt][0])  # a torn move leaves a second name
                second = folder != place and self._is_whole(disk, held.attempt)
                gone = held.attempt in self.away or second
                oracle.require("what was published is deleted by a prune alone", gone, key)
                readers = oracle.keeping.readers_of(held.attempt)
                oracle.require("what is leased is not deleted", not readers, key, readers)

    def after_change(self, disk: Disk, verb: str, target: str) -> None:
        if verb not in ("rename", "exchange", "replace"):
            return
        if target.startswith(f"{_AREA.folder}/{_AREA.prefix}"):
            self._placed(disk, target)
        elif target == "latest":
            name = read_bytes(self.oracle.world.disk, target, 100).decode().strip()
            known = any(f"step-{c.step}" == name for c in self.oracle.commits.values())
            self.oracle.require("latest names a step", known, name)

    def _placed(self, disk: Disk, target: str) -> None:
        """Judge a commit point; a publication that was put back is none."""
        oracle, found = self.oracle, manifest_at(self.oracle.world.disk, target)
        oracle.require("a publication has a sound manifest", found is not None, target)
        if found is None:
            return
        self.away.discard(found.attempt)
        if found.attempt in self.commits:
            return
        since = self.begun.get(found.attempt, 0)
        apart = found.kind == _AREA.kind and not found.resumable and since > 0
        oracle.require("nobody resumes from a publication", apart, target, found.kind)
        oracle.judge_attempt(disk, found)
        before = [version for version, at in self.commits.values() if at < since]
        grows = found.step > max(before, default=-1)
        once = found.step not in (version for version, _ in self.commits.values())
        oracle.require("versions only grow", grows and once, target, before)
        self.commits[found.attempt] = (found.step, oracle.world.num_verbs)

    # -- words -----------------------------------------------------------------------------------

    def acknowledge(self, attempt: str, who: str) -> None:
        """Judge that somebody takes this attempt for published."""
        if attempt in self.acknowledged:
            return
        oracle, known = self.oracle, attempt in self.commits
        oracle.require("committed is told after the commit", known, who, attempt)
        apart = attempt not in oracle.aborted or attempt in self.away
        oracle.require("committed and aborted exclude each other", apart, who, attempt)
        if known:
            self.acknowledged.add(attempt)
        if known and attempt not in self.away:
            image = oracle.world.disk.after_power_loss(lambda *_: 0.0)
            kept = self._is_whole(image, attempt)
            oracle.require("what is acknowledged survives power loss", kept, who, attempt)

    def abort(self, attempt: str, who: str) -> None:
        """Judge that somebody was told that this attempt was not published."""
        if attempt in self.begun:
            apart = attempt not in self.commits or attempt in self.away
            self.oracle.require("no abort of what is committed", apart, who, attempt)

    # -- what stands -----------------------------------------------------------------------------

    def _is_whole(self, disk: MemoryStorage, attempt: str) -> bool:
        found = manifest_at(disk, _AREA.key(self.commits[attempt][0]))
        return found is not None and found.attempt == attempt and not wrong_with(disk, found)

    def require_kept(self, when: str) -> None:
        """Judge that all that stands was published, whole, and that what was told still stands."""
        oracle, disk = self.oracle, self.oracle.world.disk
        for version, attempt in _versions(disk).items():
            whole = attempt in self.commits and self._is_whole(disk, attempt)
            oracle.require("a publication is old or new, and whole", whole, when, version)
        for attempt in self.acknowledged - self.away:
            whole = self._is_whole(disk, attempt)
            oracle.require("what was published stays", whole, when, self.commits[attempt])
        told = max((self.commits[attempt][0] for attempt in self.acknowledged), default=-1)
        stands = max(_versions(disk), default=-1)
        oracle.require("the newest publication stays", stands >= told, when, stands, told)

    def after_power_loss(self) -> None:
        """Take what the disk shows now, and judge what had to survive."""
        disk = self.oracle.world.disk
        standing = set(_versions(disk).values())
        self.away -= standing
        lying = [e.name for e in disk.list_dir(TRASH)] if exists(disk, TRASH) else []
        found = [manifest_at(disk, f"{TRASH}/{name}") for name in lying]
        left = standing | self.acknowledged | {one.attempt for one in found if one is not None}
        self.commits = {a: commit for a, commit in self.commits.items() if a in left}
        self.require_kept("after power loss")


class ReaderOfVersions(Reader):
    """Reads steps, and publications as well: the newest one never goes back.

    Args:
        world: time and disk.
        oracle: judges what is read.
        number: which reader this is.
    """

    def __init__(self, world: World, oracle: Oracle, number: int) -> None:
        self.seen: dict[int, str] = {}
        """Version to its attempt."""
        super().__init__(world, oracle, number)

    def read(self) -> None:
        with contextlib.suppress(CheckpointError):  # refused, or pruned meanwhile
            self.read_version()
        super().read()

    def read_version(self) -> None:
        entries = [e for e in list_steps(self.disk, area=_AREA) if e.state == "committed"]
        if not entries:
            return
        newest = entries[-1]
        alone = newest.step >= max(self.seen, default=-1)
        self.oracle.require("readers never see versions go back", alone, newest.step, self.seen)
        assert newest.manifest is not None
        attempt = self.seen.setdefault(newest.step, newest.manifest.attempt)
        self.oracle.require(
            "a version is published once", attempt == newest.manifest.attempt, newest.name
        )
        self.read_step(newest)


def holders(
    components: Collection[str], holds: Mapping[str, set[str]], lives: Mapping[str, str]
) -> dict[str, str]:
    """Return who takes part in a publication, and its life: the roles that hold what it publishes.

    Args:
        components: what is published.
        holds: participant to what it said it holds.
        lives: everybody's life.
    """
    roles = {role_of(name) for name, held in holds.items() if not held.isdisjoint(components)}
    return {name: life for name, life in lives.items() if role_of(name) in roles}


def publication_of(world: World) -> tuple[str, ...]:
    """Draw the components of a publication."""
    return world.random.choice(_WAYS)


def next_version(world: World, step: int) -> int:
    """Draw a version that is no step's number, and above all others but for a fault."""
    newest = max(_versions(world.disk), default=-1)
    if newest > 0 and world.chance(4 * world.faults.fail):
        return newest - world.random.randint(0, 1)
    version = max(newest, step) + world.random.randint(1, 4)
    return version + 1 if version % 10 == 0 else version
