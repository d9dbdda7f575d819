"""The two places of a root where commits lie: its steps, and what is published for readers.

A commit of one never counts for the other: the kind in its manifest says where it belongs.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal, TypeAlias

from stepseal.layout._names import MAX_STEP

__all__ = ["Area", "StepKind"]

StepKind: TypeAlias = Literal["full", "weights"]
"""Whether a commit is a step, which holds all that a job needs, or a publication for readers."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")


class Area(Enum):
    """Where commits of one kind lie, and what they are called."""

    STEPS = ("full", "", "step-", "step", "save of step")
    """The steps of a run, which a job resumes from."""
    PUBLISHED = ("weights", "published", "v-", "version", "publication of version")
    """Publications: for readers; nobody resumes from them."""

    def __init__(self, kind: StepKind, folder: str, prefix: str, noun: str, act: str) -> None:
        self.kind = kind
        """Kind of every manifest here."""
        self.folder = folder
        """Key of the folder that holds them; empty for the root itself."""
        self.prefix = prefix
        """What their names begin with; the number follows."""
        self.noun = noun
        """What a number counts here."""
        self._act = act

    @classmethod
    def of(cls, kind: StepKind) -> Area:
        """Return the area to which manifests of a kind belong."""
        return cls.PUBLISHED if kind == cls.PUBLISHED.kind else cls.STEPS

    def folder_name(self, number: int) -> str:
        """Return the name of a folder here, such as `step-200` or `v-7`."""
        return f"{self.prefix}{number}"

    def key(self, number: int) -> str:
        """Return the key of a folder here, such as `step-200` or `published/v-7`."""
        return (
            f"{self.folder}/{self.folder_name(number)}" if self.folder else self.folder_name(number)
        )

    def parse(self, name: str) -> int | None:
        """Return the number in the canonical name of a folder, or None for any other name."""
        text = name[len(self.prefix) :] if name.startswith(self.prefix) else ""
        found = int(text) if _NUMBER.fullmatch(text) else -1
        return found if 0 <= found <= MAX_STEP else None

    def title(self, number: int) -> str:
        """Return what makes a commit here, with its number, such as `save of step 200`."""
        return f"{self._act} {number}"
