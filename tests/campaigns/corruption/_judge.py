"""Judges one damage after the other: what `verify` says, and what a restore does with it.

A violation is damage that `verify` does not name, a restore that uses a file that is not what was
saved or passes over a step that is whole, a reason that does not name what is wrong, one live value
that is not exactly what the restored step holds, and a job that cannot go on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from click.testing import CliRunner
from tests.campaigns.corruption._damages import Pristine, harm, touched
from tests.campaigns.harness._small_job import STEPS, Life, SavedRoot

from stepseal.cli import main
from stepseal.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bench", "ControlBench", "knowable"]

_DAMAGE = 3
_MARKER = "stepseal.json"
_LATER = 100


class _Bench:
    def __init__(self, root: SavedRoot) -> None:
        self.root = root
        self.pristine = Pristine.of(root.path)
        self.num_cases = 0
        self.violations: list[str] = []

    def run(self, damages: list[str], *, until: str | None = None) -> None:
        """Judge damages; those that change nothing do not count.

        Args:
            damages: one after the other.
            until: a violation that begins so ends it.
        """
        for damage in damages:
            found = self._judge(damage)
            self.num_cases += found is not None
            large = " --large" if self.root.large else ""
            again = f"python -m tests.campaigns.corruption.run{large} --damage '{damage}'"
            self.violations += [f"{text}: {again}" for text in found or ()]
            if until is not None and any(text.startswith(until) for text in found or ()):
                return

    def _judge(self, damage: str) -> list[str] | None:
        raise NotImplementedError

    def _verify(self, *arguments: str) -> tuple[int, str]:
        """Return exit code and output of `stepseal verify`."""
        result = CliRunner().invoke(main, ["verify", str(self.root.path), *arguments])
        if not isinstance(result.exception, (SystemExit, type(None))):
            return -1, repr(result.exception)
        return result.exit_code, result.output


class Bench(_Bench):
    """For damage inside steps: one life of the job that is restored over and over."""

    def __init__(self, root: SavedRoot) -> None:
        super().__init__(root)
        self._life = root.life()
        self._ranges = root.tensor_ranges()

    def close(self) -> None:
        """End the life."""
        self._life.close()

    def _judge(self, damage: str) -> list[str] | None:
        names = touched(damage)
        try:
            harm(self.root.path, damage)
            harmed: dict[int, set[str]] = defaultdict(set)
            for path in self.pristine.changed(names) & self.pristine.files.keys():
                step, _, inside = path.partition("/")
                harmed[int(step.removeprefix("step-"))].add(inside)
            if not harmed:
                return None
            found = [text for step, paths in harmed.items() for text in self._named(step, paths)]
            return found + self._restored(harmed)
        finally:
            self.pristine.put_back(names)
            self.root.forget_claims()

    def _named(self, step: int, paths: set[str]) -> list[str]:
        """`verify` names each file that is damaged, with its exit code."""
        code, output = self._verify(str(step))
        if "manifest.json" in paths and code not in (-1, 0) and "belongs to run" in output:
            return []
        unnamed = {path for path in knowable(paths) if f"damage: {path}" not in output}
        if "damage: : " in output:  # the walk ends at a folder that is none
            unnamed -= {path for path in unnamed if self._lost_folder(step, path)}
        if code == _DAMAGE and not unnamed:
            return []
        return [f"verify of step {step} ends with {code} and does not name {unnamed}: {output}"]

    def _lost_folder(self, step: int, path: str) -> bool:
        folder = path.rpartition("/")[0]
        return bool(folder) and not (self.root.path / f"step-{step}" / folder).is_dir()

    def _restored(self, harmed: dict[int, set[str]]) -> list[str]:
        used = {
            step: {path for path in paths if self._is_used(step, path)}
            for step, paths in harmed.items()
        }
        wanted = max(step for step in STEPS if not used.get(step))
        self._life.scramble()
        try:
            restored = self._life.restore()
        except CheckpointError as error:
            return [f"restore raised {error!r}"]
        found = []
        if restored.step != wanted:
            found.append(f"expected step {wanted} restored, found {restored.step}")
        for step in STEPS:
            reason = restored.skipped.get(f"step-{step}", "")
            if step > restored.step and not self._explains(reason, harmed.get(step, set())):
                found.append(f"the reason does not name {used.get(step)}: {restored.skipped}")
        if wrong := self.root.wrong_values(self._life, restored.step):
            found.append(f"wrong value in live state: {wrong}")
        return found

    @staticmethod
    def _explains(reason: str, paths: set[str]) -> bool:
        if "manifest.json" in paths and "belongs to run" in reason:
            return True
        folders = {path.split("/")[0] for path in paths if "/" in path}
        return any(name in reason for name in paths | folders)

    def _is_used(self, step: int, path: str) -> bool:
        """Tell whether a restore of a step sees that this file is not what it was."""
        place = self.root.path / f"step-{step}" / path
        before = self.pristine.files[f"step-{step}/{path}"]
        ranges = self._ranges.get(path, [])
        if path != ".metadata" and not ranges:
            return True
        if place.is_symlink() or not place.is_file() or place.stat().st_size != len(before):
            return True  # sizes and kinds of all files are looked at
        data = place.read_bytes()
        return any(data[start:stop] != before[start:stop] for start, stop in ranges)


def knowable(paths: set[str]) -> set[str]:
    """Return the damaged files that can be told to be so: what says it of them is whole itself."""
    if "manifest.json" in paths:
        return {"manifest.json"}
    return {path for path in paths if not paths & _above(path)}


def _above(path: str) -> set[str]:
    """Return the documents that say what a file must be, but the manifest."""
    if match := re.fullmatch(r"__(\d+)_\d+\.distcp", path):
        stem = f"parts/trainer/{match[1]}"
        return {f"{stem}.json", f"{stem}.safetensors"}
    match = re.search(r"trainer/\d+", path)
    document = f"parts/{match[0]}.json" if match else ""
    return {document} - {path}


class ControlBench(_Bench):
    """For damage to the marker, to `latest` and to claims; a life of the job per damage.

    The root has three incarnations: the second went back to step 20 and left step 30 behind.
    """

    def __init__(self, root: SavedRoot) -> None:
        for step, parent in ((25, 20), (27, None)):
            life = root.life()
            life.restore(parent)
            root.saved[step] = life.train_and_save(step)
            life.close()
        super().__init__(root)

    def _judge(self, damage: str) -> list[str] | None:
        names = touched(damage)
        try:
            harm(self.root.path, damage)
            changed = self.pristine.changed(names) & self.pristine.files.keys()
            if not changed:
                return None
            if _MARKER in changed:
                return self._refused()
            claims = any("/incarnations/" in path for path in changed)
            wanted = (27, 30) if claims else (27,)  # rather too much than stranded
            found = self._with_life(lambda life: self._goes_on(life, wanted))
            return found or self._with_life(lambda life: self._goes_on(life, (_LATER,)))
        finally:
            self.pristine.put_back(set())

    def _with_life(self, act: Callable[[Life], list[str]]) -> list[str]:
        try:
            life = self.root.life()
        except CheckpointError as error:
            return [f"no life begins: {error!r}"]
        try:
            return act(life)
        finally:
            life.close()

    def _refused(self) -> list[str]:
        """Without a marker no job begins, nothing is written, and the error says why."""
        before = Pristine.of(self.root.path).files
        found = []
        try:
            self.root.life().close()
            found.append("a job began")
        except CheckpointError as error:
            if _MARKER not in str(error):
                found.append(f"expected an error that names the marker, found {error!r}")
        if (now := Pristine.of(self.root.path).files) != before:
            found.append(f"the root was changed: {sorted(now.keys() ^ before.keys())}")
        code, output = self._verify()
        if code in (-1, 0) or _MARKER not in output:
            found.append(f"verify ends with {code} and does not name the marker: {output}")
        return found

    def _goes_on(self, life: Life, wanted: tuple[int, ...]) -> list[str]:
        """The job resumes with the right values, and saves once."""
        life.scramble()
        try:
            restored = life.restore()
            wrong = self.root.wrong_values(life, restored.step)
            if _LATER not in wanted:
                self.root.saved[_LATER] = life.train_and_save(_LATER)
        except CheckpointError as error:
            return [f"stranded: {error!r}"]
        found = [f"wrong value in live state: {wrong}"] if wrong else []
        if restored.step not in wanted:
            found.append(f"expected step {wanted} restored, found {restored.step}")
        code, output = self._verify()
        return found if code == 0 else [*found, f"verify ends with {code}: {output}"]
