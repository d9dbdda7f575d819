"""What goes on beside the job of the soak, in processes of its own: reading, pruning, pinning."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from tests.campaigns.harness._states import expected_step, names, stored_step
from tests.campaigns.soak._job import Word

import stepseal as ss
from stepseal import errors
from stepseal.cli._pruning import prune_root
from stepseal.steps._catalog import read_marker
from stepseal.steps._pins import pin, unpin
from stepseal.storage import LocalStorage

if TYPE_CHECKING:
    from tests.campaigns.soak._job import Folder

__all__ = ["pin_on", "prune_on", "read_on"]

_PUT_BACK_S = 5.0
"""A prune that noticed the pin too late puts the step back, as soon as it goes on: the longest that
one is stopped here is 3.8 s. One that died leaves that to the next, which the next life runs."""


def prune_on(folder: Folder, keep: int, seed: int, _pipe: Any) -> None:  # noqa: ANN401
    """Prune as `stepseal prune` does, over and over, until killed."""
    chance = random.Random(seed)
    while True:
        time.sleep(chance.uniform(0.01, 0.3))
        try:
            found = prune_root(
                str(folder.root), keep_latest=keep, superseded_grace_s=3600.0, dry_run=False,
                verify=chance.random() < 0.5, allow_shared=False,
            )  # fmt: skip
            removed = [s["step"] for s in found["steps"] if s["action"] == "removed"]
            for step in removed:
                folder.words.say(Word("pruned", 0, -1, step))
        except errors.CheckpointError:
            continue  # no root yet, or another start of the job claimed it
        except Exception as error:
            text = f"prune: {type(error).__name__}: {error}"
            folder.words.say(Word("wrong", 0, -1, text=text))


def pin_on(folder: Folder, seed: int, _pipe: Any) -> None:  # noqa: ANN401
    """Pin some step, look that it stays, and unpin it, over and over, until killed."""
    chance = random.Random(seed)
    while True:
        time.sleep(0.2)
        try:
            storage = LocalStorage.open(str(folder.root))
            step = chance.choice(ss.open(folder.root).steps() or (0,))
            run_id = read_marker(storage)
            pin(storage, step, run_id)
        except errors.CheckpointError:
            continue  # no root or no step yet, or it was pruned before
        folder.words.say(Word("pinned", 0, -1, step))
        end = time.monotonic() + chance.uniform(0.1, 1.0)
        while time.monotonic() < end:
            away_s = _away_s(folder, step)
            if away_s:
                folder.words.say(Word("put back", 0, -1, step, text=f"{away_s:.2f}"))
            if away_s > _PUT_BACK_S:
                text = f"step {step} is gone although it is pinned"
                folder.words.say(Word("wrong", 0, -1, step, text=text))
                break
            time.sleep(0.1)
        unpin(storage, step)


def _away_s(folder: Folder, step: int) -> float:
    """Return for how long a step is not in its place from now on; 0 if it is."""
    begin = time.monotonic()
    away_s = 0.0
    while step not in ss.open(folder.root).steps() and away_s <= _PUT_BACK_S:
        time.sleep(0.01)
        away_s = time.monotonic() - begin
    return away_s


def read_on(folder: Folder, world: int, verify: bool, _pipe: Any) -> None:  # noqa: ANN401
    """Read the newest step over and over, until killed: it is whole, or it is gone."""
    words = folder.words
    while True:
        try:
            step = ss.open(folder.root).latest()
            if step is not None:
                words.say(_read(step, world, verify=verify))
        except (errors.RootNotFound, errors.StepNotFound):
            words.say(Word("gone", 0, -1))
        except Exception as error:
            words.say(Word("wrong", 0, -1, text=f"reader: {type(error).__name__}: {error}"))
        time.sleep(0.08)


def _read(step: ss.Step, world: int, *, verify: bool) -> Word:
    life = step.manifest.cut.get("life")
    assert isinstance(life, int)
    if verify:
        findings = step.verify()
        if any(finding.severity == "damage" for finding in findings):
            if _is_gone(step):
                return Word("gone", life, -1, step.step)
            return Word("wrong", life, -1, step.step, text=f"verify: {findings[:2]}")
        return Word("verified", life, -1, step.step)
    if stored_step(step) != expected_step(life, step.step, names(world)):
        return Word("wrong", life, -1, step.step, text="a reader saw other values than were saved")
    return Word("read", life, -1, step.step)


def _is_gone(step: ss.Step) -> bool:
    """Whether that very step does not stand in its place any more."""
    root = step.path.rpartition("/")[0]
    try:
        now = ss.open(root).step(step.step)
    except errors.CheckpointError:
        return True
    return now.manifest.attempt != step.manifest.attempt
