"""Decides which folders in `superseded/` and `trash/` are deleted; gives a reason for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepseal.errors import StorageUnavailable
from stepseal.layout import duration_text
from stepseal.retention._judge import NO_GOOD_STEP, NOT_KNOWN
from stepseal.steps import parse_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.steps import Doubt, Guards, RemoveSteps

__all__ = ["AsideJudgement", "Terms", "TrashJudgement", "judge_superseded", "judge_trash"]


@dataclass(frozen=True, slots=True)
class AsideJudgement:
    """Whether one folder of the superseded area stays."""

    name: str
    keep: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TrashJudgement:
    """What happens to one folder that is in the trash already."""

    name: str
    action: Literal["keep", "put back", "delete"]
    reason: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What these judgements depend on, besides the folders."""

    guards: Guards
    doubt: Doubt | None
    has_good: bool
    """The root has at least one step that is known to be good to resume from."""
    now_s: float
    """Unix time."""


def judge_superseded(
    names: Sequence[str], terms: Terms, grace_s: float
) -> tuple[AsideJudgement, ...]:
    """Judge the folders that commits and prunes superseded; each is deleted after its grace."""
    return tuple(_judge_aside(name, terms, grace_s) for name in names)


def _judge_aside(name: str, terms: Terms, grace_s: float) -> AsideJudgement:
    folder = parse_folder(name)
    if folder is None or folder.moved_at_s is None or folder.fate:
        return AsideJudgement(name, keep=True, reason="not a name that stepseal gives")
    protected = terms.guards.reasons(folder.step)
    if protected:
        return AsideJudgement(name, keep=True, reason="; ".join(protected))
    if not terms.has_good:
        return AsideJudgement(name, keep=True, reason=NO_GOOD_STEP)
    age_s = terms.now_s - folder.moved_at_s
    text = f"superseded {duration_text(age_s)} ago, kept for {duration_text(grace_s)}"
    return AsideJudgement(name, keep=age_s < grace_s, reason=text)


def judge_trash(
    removal: RemoveSteps, names: Sequence[str], terms: Terms, grace_s: float
) -> tuple[TrashJudgement, ...]:
    """Judge the folders that earlier prunes moved to the trash.

    Args:
        removal: the step store.
        names: names of all folders in the trash.
        terms: facts that were read together with the names.
        grace_s: seconds to keep a whole folder after it was moved.
    """
    return tuple(_judge_trashed(removal, name, terms, grace_s) for name in names)


def _judge_trashed(removal: RemoveSteps, name: str, terms: Terms, grace_s: float) -> TrashJudgement:
    folder = parse_folder(name)
    if folder is None or folder.moved_at_s is None:
        return TrashJudgement(name, "keep", "not a name that stepseal gives")
    if folder.fate in (".deleting", ".in-place"):
        return TrashJudgement(name, "delete", "its deletion began earlier and is finished")
    if not folder.fate:
        return TrashJudgement(name, "keep", "left by a save: the next start of the job sweeps it")
    try:
        back = removal.reasons_to_go_back(folder, terms.guards)
    except StorageUnavailable as error:
        return TrashJudgement(name, "keep", f"cannot be read: {error}")
    if back:
        return TrashJudgement(name, "put back", back)
    if terms.doubt is not None and terms.doubt.covers(folder.incarnation):
        return TrashJudgement(name, "keep", f"{terms.doubt.why}: {NOT_KNOWN}")
    if not terms.has_good:
        return TrashJudgement(name, "keep", NO_GOOD_STEP)
    age_s = terms.now_s - folder.moved_at_s
    text = f"pruned {duration_text(age_s)} ago, kept in the trash for {duration_text(grace_s)}"
    return TrashJudgement(name, "keep" if age_s < grace_s else "delete", text)
