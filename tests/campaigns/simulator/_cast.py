"""Who takes part in a job of actors, what each role holds, and what must hold between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.protocol._opening import Relation

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COMPONENTS", "FIELDS", "GUEST", "ORDER", "RELATIONS", "fits"]

ORDER = ("trainer", "buffer", "dataset")
"""Consumers before producers: trainers train on samples of the buffer, which come of prompts."""
GUEST = "judge/0"
"""Joins and leaves between steps."""
COMPONENTS = {"trainer": "model", "buffer": "samples", "dataset": "prompts", "judge": "scores"}
FIELDS = {"trainer": "trained", "buffer": "sampled", "dataset": "drawn"}
"""Role to the field of the cut that says how far it is."""
RELATIONS = (Relation("trained", "<=", "sampled"), Relation("sampled", "<=", "drawn"))


def fits(values: Mapping[str, int], *, related: bool = True) -> bool:
    """Tell whether participants hold values of one cut: nobody is ahead of who it consumes from.

    Args:
        values: participant to how far it is.
        related: whether roles must fit together, and not only those within each role.
    """
    far = [{v for one, v in values.items() if one.startswith(f"{role}/")} for role in ORDER]
    alike = all(len(found) <= 1 for found in far)
    ahead = [max(found) for found in far if found]
    return alike and (not related or ahead == sorted(ahead))
