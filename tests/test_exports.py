"""Every name in a face exists and says what it is."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
from tests._architecture import ARROWS, FACE

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "stepseal"


def is_built(wing: str) -> bool:
    """Say whether a wing and all that it may import have a face."""
    return all(
        below in ("errors", "_version", "__main__", FACE)
        or (PACKAGE / below / "__init__.py").exists()
        for below in ARROWS[wing] | {wing}
    )


MODULES = {wing: "stepseal" if wing == FACE else f"stepseal.{wing}" for wing in ARROWS}
# Each file of `integrations` is a face of its own, because it imports a foreign library.
NO_FACE = {"__main__", "_version", "integrations"}
FACES = [MODULES[wing] for wing in ARROWS if is_built(wing) and wing not in NO_FACE]


def is_documented(value: object, name: str, source: str) -> bool:
    """Say whether a value has a docstring, a documented type of ours, or an explanation."""
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        return bool(inspect.getdoc(value)) and not is_generated(value)
    if type(value).__module__.startswith("stepseal."):
        return bool(type(value).__doc__)
    return is_explained(name, source)


def is_generated(value: object) -> bool:
    """Say whether the docstring is only the signature that a dataclass makes for itself."""
    doc = inspect.getdoc(value) or ""
    return inspect.isclass(value) and doc.startswith(f"{value.__name__}(")


def is_explained(name: str, source: str) -> bool:
    """Say whether a constant has a comment above, beside, or a docstring below its definition."""
    lines = source.splitlines()
    for number, line in enumerate(lines):
        if re.match(rf"{name}(: [^=]+)? = ", line):
            above = number > 0 and lines[number - 1].startswith("#")
            end = number
            while end + 1 < len(lines) and lines[end + 1].startswith((" ", ")", "]", "}")):
                end += 1
            below = end + 1 < len(lines) and lines[end + 1].startswith('"""')
            if above or below or "  # " in line:
                return True
    return False


def source_of(face: str) -> str:
    """Return the text of all files that a face's constants may come from."""
    folder = PACKAGE.joinpath(*face.split(".")[1:])
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    return "\n".join(path.read_text("utf-8") for path in sorted(files))


@pytest.mark.parametrize("face", FACES)
def test_all_is_a_list_of_names_that_exist(face: str) -> None:
    module = importlib.import_module(face)
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert [name for name in module.__all__ if name.startswith("_") and name != "__version__"] == []


@pytest.mark.parametrize("face", FACES)
def test_every_name_is_documented(face: str) -> None:
    module = importlib.import_module(face)
    source = source_of(face)
    values = {name: getattr(module, name) for name in module.__all__}
    assert [name for name, value in values.items() if not is_documented(value, name, source)] == []


def test_explanation_is_looked_for_where_people_write_it() -> None:
    assert is_explained("A", "# why\nA = 1")
    assert is_explained("A", 'A = 1\n"""What."""')
    assert is_explained("A", 'A: Mapping[str, int] = {\n    "x": 1,\n}\n"""What."""')
    assert is_explained("A", "A = 1  # what")
    assert not is_explained("A", "A = 1\nB = 2  # what")
    assert not is_explained("A", "")


def test_generated_docstrings_do_not_count() -> None:
    class Plain:
        """Plain(x: int)"""

    assert not is_documented(Plain, "Plain", "")
