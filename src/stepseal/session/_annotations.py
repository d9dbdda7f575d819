"""Metrics, tags, cut and names of components, checked when the caller gives them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stepseal.components import is_tensor
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["Annotations", "check_annotations", "check_published"]

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Annotations:
    """Metrics, tags and cut of one step, of plain types."""

    metrics: dict[str, float | Literal["nan", "inf", "-inf"]]
    tags: list[str]
    cut: dict[str, Scalar]


def check_annotations(
    metrics: Mapping[str, float] | None,
    tags: Sequence[str],
    cut: Mapping[str, Scalar] | None,
) -> Annotations:
    """Return them in plain types.

    Raises:
        InvalidInput: a name is no str, a metric no number, a tag no str, or a cut field no JSON
            scalar; `.problems` lists all.
    """
    problems: list[str] = []
    numbers: dict[str, float | Literal["nan", "inf", "-inf"]] = {}
    for name, value in (metrics or {}).items():
        try:
            numbers[name] = float(_detached(value))
        except (TypeError, ValueError, RuntimeError):
            problems.append(f"metrics[{name!r}]: expected a number, found {value!r:.80}")
    for what, given in (("metrics", metrics or {}), ("cut", cut or {})):
        wrong = [name for name in given if type(name) is not str]
        problems += [f"{what}: expected names of type str, found {name!r:.80}" for name in wrong]
    if isinstance(tags, str) or any(type(tag) is not str for tag in tags):
        problems.append(f"tags: expected a list of str, found {tags!r:.80}")
    for name, field in (cut or {}).items():
        if type(field) not in (str, int, float, bool, type(None)):
            kind = type(field).__name__
            problems.append(
                f"cut[{name!r}]: expected a str, int, float, bool or None, found {kind}"
            )
    if problems:
        raise InvalidInput(f"save: {'; '.join(problems)}", problems=tuple(problems))
    return Annotations(numbers, list(tags), dict(cut or {}))


def check_published(names: object, added: Collection[str] | None) -> tuple[str, ...]:
    """Return the names of components to publish, without repetitions.

    Args:
        names: what the caller gave.
        added: names that exist; None where others know them.

    Raises:
        InvalidInput: it is no list of names, is empty, or has one that was not added.
    """
    wrong = f"publish: components: expected a list of names such as ['model'], found {names!r:.80}"
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidInput(wrong)
    found = tuple(dict.fromkeys(names))
    if not found or not all(isinstance(name, str) for name in found):
        raise InvalidInput(wrong)
    missing = [] if added is None else [name for name in found if name not in added]
    if missing:
        raise InvalidInput(
            f"publish: expected components that were added ({', '.join(added or ())}), found "
            f"{', '.join(map(repr, missing))}.",
            component=missing[0],
        )
    return found


def _detached(value: Any) -> Any:  # noqa: ANN401 - whatever was handed in
    """Return a tensor without its graph, as torch wants it for `float`."""
    return value.detach() if is_tensor(value) else value
