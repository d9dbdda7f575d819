"""What must hold of a root, given everything that was said about it.

The current lineage is known from outside: the incarnation with the highest number that restored
owns the root, and stands on the step that it restored. A life that was about to restore when a
step was acknowledged, and never said what it restored, may have claimed the root on an older one:
that step is owed to nobody then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.campaigns.harness._states import expected_step, names, stored_step

import stepseal as ss
from stepseal import errors

if TYPE_CHECKING:
    from tests.campaigns.soak._job import Folder, Word

__all__ = ["judge_words", "survey"]


@dataclass(slots=True)
class _Story:
    """The words, told in order."""

    owner: int = 0
    """Life that owns the root."""
    incarnation: int = 0
    acknowledged: dict[int, int] = field(default_factory=dict)
    """Step to life, of the owner's lineage."""
    lineages: dict[int, dict[int, int]] = field(default_factory=dict)
    """Life to the lives that it descends from, each with its last step that counts."""
    promised: dict[int, frozenset[int]] = field(default_factory=dict)
    """Life to the steps that were acknowledged when it began to restore."""
    claiming: set[int] = field(default_factory=set)
    """Lives that began to restore, and did not say yet what came of it."""
    doubted_by: dict[int, set[int]] = field(default_factory=dict)
    """Acknowledged step to the later lives that were claiming then."""
    fenced: dict[tuple[int, int], int] = field(default_factory=dict)
    """Life and step of saves that began when another life owned the root already, with that."""
    restored: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def tell(self, word: Word) -> None:
        """Take the next word."""
        match word.kind:
            case "claiming":
                self.promised.setdefault(word.life, frozenset(self.acknowledged))
                self.claiming |= {word.life} - self.restored
            case "restored":
                self._restored(word)
            case "begin" if word.life != self.owner:
                self.fenced[word.life, word.step] = self.owner
            case "acknowledged":
                self._acknowledged(word)
            case "wrong":
                self.problems.append(f"life {word.life}, rank {word.rank}: {word.text}")

    def _restored(self, word: Word) -> None:
        if word.life in self.restored:
            return  # every participant says so
        self.restored.add(word.life)
        self.claiming.discard(word.life)
        newest = max(self.promised[word.life] & self.owed().keys(), default=0)
        if word.step < newest:
            self.problems.append(
                f"life {word.life} restored step {word.step}, but step {newest} was acknowledged "
                "before"
            )
        if word.text:
            of = int(word.text)
            before = self.lineages.get(of, {}) | {of: word.step}
            self.lineages[word.life] = {k: min(last, word.step) for k, last in before.items()}
        told = self.acknowledged.get(word.step)
        if told is not None and str(told) != word.text:
            self.problems.append(
                f"life {word.life} restored step {word.step} of life {word.text}, not of {told}"
            )
        if word.incarnation > self.incarnation:
            self.owner, self.incarnation = word.life, word.incarnation
            kept = {step: life for step, life in self.acknowledged.items() if step <= word.step}
            self.acknowledged = kept

    def _acknowledged(self, word: Word) -> None:
        owner = self.fenced.get((word.life, word.step))
        if owner is not None:
            self.problems.append(
                f"life {word.life} began to save step {word.step} when life {owner} owned the "
                "root, and it was acknowledged"
            )
        if word.life == self.owner:
            self.acknowledged[word.step] = word.life
            self.doubted_by[word.step] = {life for life in self.claiming if life > word.life}

    def owed(self) -> dict[int, int]:
        """Return what was acknowledged and is certainly of the current lineage, step to life."""
        return {
            step: life
            for step, life in self.acknowledged.items()
            if not self.doubted_by[step] & self.claiming
        }


def judge_words(words: list[Word]) -> tuple[dict[int, int], dict[int, int], list[str]]:
    """Return what is owed, step to life; the lives that the owner descends from, each with its
    last step that counts; and what is wrong.
    """
    story = _Story()
    for word in words:
        story.tell(word)
    lineage = story.lineages.get(story.owner, {})
    return story.owed(), lineage, list(dict.fromkeys(story.problems))


def survey(folder: Folder, world: int, keep: int | None, checked: set[str]) -> list[str]:
    """Check all that a reader can see; no life of the job runs meanwhile.

    Args:
        folder: of the round.
        world: number of participants.
        keep: number of newest steps that pruning leaves; None if nothing is pruned.
        checked: attempts that need not be read again; those of this survey are added.
    """
    acknowledged, lineage, found = judge_words(folder.words.all())
    try:
        run = ss.open(folder.root)
    except errors.RootNotFound:
        return [*found, *(f"no root, but step {step} was acknowledged" for step in acknowledged)]
    present = {}
    for entry in run.entries():
        if entry.state != "committed" or entry.manifest is None:
            found.append(f"step {entry.step} is {entry.state}: {entry.problem}")
            continue
        life = entry.manifest.cut["life"]
        assert isinstance(life, int)
        try:
            if entry.manifest.attempt not in checked:
                _check_step(run.step(entry.step), life, world, found)
                checked.add(entry.manifest.attempt)
            present[entry.step] = life
        except errors.StepNotFound:
            continue  # pruned meanwhile
    lives = {*acknowledged.values(), max(present.values(), default=0)}
    for step, life in acknowledged.items():
        if present.get(step) == life:
            continue
        newer = sum(
            other > step and (of in lives or other <= lineage.get(of, -1))
            for other, of in present.items()
        )
        if step in present:
            found.append(f"step {step} was acknowledged to life {life}, found {present[step]}'s")
        elif keep is None or newer < keep:
            found.append(f"step {step} of life {life} was acknowledged and is gone: {present}")
    return list(dict.fromkeys(found))


def _check_step(step: ss.Step, life: int, world: int, found: list[str]) -> None:
    """Note whether a step is not whole, or not what that life saved."""
    findings = step.verify()
    found += [f"step {step.step}: {finding}" for finding in findings]
    if not findings and stored_step(step) != expected_step(life, step.step, names(world)):
        found.append(f"step {step.step} of life {life} holds other values than were saved")
