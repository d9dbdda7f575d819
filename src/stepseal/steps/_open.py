"""Chooses the step store for a root, by its path or URI."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput
from stepseal.steps._posix import PosixSteps
from stepseal.storage import Access, LocalStorage, root_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

__all__ = ["locate_root", "open_store"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def locate_root(root: str | os.PathLike[str], what: str = "root") -> str:
    """Return the absolute path of a root; `~` is expanded.

    Args:
        root: path of a directory.
        what: name of the argument, for messages.

    Raises:
        InvalidInput: the root is not a path, is a URI with an unsupported scheme, or contains a
            shell variable.
    """
    try:
        text: object = os.fspath(root)
    except TypeError as error:
        found = type(root).__name__
        raise InvalidInput(f"{what} {root!r}: expected a path, found {found}") from error
    if isinstance(text, str):
        scheme, variable = _SCHEME.match(text), _VARIABLE.match(text)
        if scheme is not None:
            raise InvalidInput(
                f"{what} {text!r}: expected the path of a directory, found a URI of scheme "
                f"{scheme[1]!r}. Roots lie on mounted file systems so far: pass a path.",
                path=text,
                found=scheme[1],
            )
        if variable is not None:
            raise InvalidInput(
                f"{what} {text!r}: expected a path, found the shell variable {variable[0]}, which "
                "Python does not expand. Pass os.path.expandvars(...).",
                path=text,
                found=variable[0],
            )
        root = os.path.expanduser(text)
    return root_path(root, what)


def open_store(
    root: str | os.PathLike[str], *, access: Access | None = None, create: bool = False
) -> PosixSteps:
    """Return the step store of a root.

    Args:
        root: path of the root.
        access: modes of new files, and whether shared directories are accepted.
        create: create the directory if it is missing.

    Raises:
        InvalidInput: `root` is not a path, or is a URI with an unknown scheme.
        RootNotFound: the directory does not exist, and `create` is false.
        StorageUnavailable: the directory cannot be opened or created.
    """
    path = locate_root(root)
    opened = LocalStorage.create if create else LocalStorage.open
    storage = opened(path, access=access or Access())
    return PosixSteps(
        storage,
        path,
        writable_problem=storage.writable_problem,
        is_layered=lambda: (mount := storage.mount()) is not None and mount.is_layered,
        reopen=functools.partial(_reopen, storage),
    )


def _reopen(storage: LocalStorage, check: Callable[[Storage], None]) -> None:
    """Open the path of a root once more; use what is there from now on unless `check` raises."""
    with LocalStorage.open(storage.root) as found:
        check(found)
        storage.take_over(found)
