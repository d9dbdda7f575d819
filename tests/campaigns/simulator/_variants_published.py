"""Broken variants of freezing, and of publications between the saves of actors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepseal.errors import StepNotFound
from stepseal.layout import Area, StepRef
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._incarnation import Incarnation
from stepseal.protocol._lives import Lives
from stepseal.protocol._participant_driver import ParticipantDriver
from stepseal.protocol._save_round import SaveRound
from stepseal.retention import _publications
from stepseal.steps import _owned, _select
from stepseal.steps._catalog import read_step, step_numbers

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BROKEN"]

Patches = list[tuple[object, str, object]]


def _frozen_not_told() -> Patches:
    """Whoever is frozen when a call fails is told nothing."""
    real = SaveRound._finish

    def finish(self: SaveRound, message: messages.Decided) -> list[Any]:
        cold = self._stages.frozen(self._captured) if self.phase == "capture" else []
        sent = real(self, message)
        return [one for one in sent if not isinstance(one, actions.Send) or one.to not in cold]

    return [(SaveRound, "_finish", finish)]


def _frozen_until_thaw() -> Patches:
    """Neither the end of a call nor the loss of the coordinator lets a frozen owner go on."""

    def wait_thaw(self: ParticipantDriver, call: int, step: int) -> None:
        state = self._save(call)
        del step
        self._wait(lambda: state.thawed, self.deadlines.capture_s + self.deadlines.lost_s)

    return [(ParticipantDriver, "wait_thaw", wait_thaw)]


def _thawed_early() -> Patches:
    """Each frozen owner goes on as soon as its own role has captured."""
    real = SaveRound.on_captured

    def on_captured(self: SaveRound, who: str, message: Any, now: float) -> list[Any]:  # noqa: ANN401
        todo = real(self, who, message, now)
        return [*todo, *self._thaw()] if self.phase == "capture" else todo

    return [(SaveRound, "on_captured", on_captured)]


def _publish_with(after: Callable[[Incarnation, actions.Publish, str], None]) -> Patches:
    real = Incarnation._publish

    def publish(self: Incarnation, action: actions.Publish) -> actions.Published:
        done = real(self, action)
        if action.area is Area.PUBLISHED:
            after(self, action, done.manifest_sha256)
        return done

    return [(Incarnation, "_publish", publish)]


def _publication_is_head() -> Patches:
    """The next step descends from what was published."""

    def after(self: Incarnation, action: actions.Publish, sha256: str) -> None:
        assert self.number is not None
        self._head = StepRef(action.step, sha256, self.number)

    return _publish_with(after)


def _publication_is_latest() -> Patches:
    """The pointer to the newest step moves to a publication."""
    return _publish_with(lambda self, action, _: self._steps.point_latest(action.step))


def _publication_restored() -> Patches:
    """Whoever looks for a step finds publications, too; nor does `resumable` count."""
    real_numbers, real_read = step_numbers, read_step

    def numbers(storage: Any) -> list[int]:  # noqa: ANN401
        return sorted({*real_numbers(storage), *real_numbers(storage, Area.PUBLISHED)})

    def read(storage: Any, step: int, run_id: str | None) -> Any:  # noqa: ANN401
        try:
            return real_read(storage, step, run_id)
        except StepNotFound:
            entry = real_read(storage, step, run_id, Area.PUBLISHED)
            if entry.manifest is None:
                return entry
            return replace(entry, manifest=replace(entry.manifest, resumable=True))

    return [(_select, "step_numbers", numbers), (_select, "read_step", read)]


def _everybody_publishes() -> Patches:
    """Whoever holds nothing of a publication is asked and waited for, too."""
    return [(Lives, "holders", lambda self, _components: self.roster())]


def _versions_repeat() -> Patches:
    """A version may be below others."""
    return [(_owned, "step_numbers", lambda *_: [])]


def _newest_pruned() -> Patches:
    """One publication fewer stays than was asked for."""

    def outdated(sound: Any, keep: int, leased: Any) -> Any:  # noqa: ANN401
        left = sound[: len(sound) - keep + 1]
        return tuple(version for version in left if version not in leased)

    return [(_publications, "outdated", outdated)]


BROKEN: dict[str, Callable[[], Patches]] = {
    "frozen-not-told": _frozen_not_told,
    "frozen-until-thawed": _frozen_until_thaw,
    "thawed-early": _thawed_early,
    "publication-is-the-head": _publication_is_head,
    "publication-is-the-latest": _publication_is_latest,
    "publication-restored": _publication_restored,
    "published-by-everybody": _everybody_publishes,
    "versions-go-back": _versions_repeat,
    "newest-publication-pruned": _newest_pruned,
}
"""Variant to its patches."""
