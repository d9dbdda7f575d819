"""What the system-call campaign must notice: broken protocols, and bytes that go past our layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaigns.kill import _variants

from stepseal.session._indexer import DcpIndexer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """A mistake."""

    patch: Callable[[], None]
    call: str = ""
    """Killed at this call it shows; empty if the calls themselves show it."""
    caught_as: frozenset[str] = frozenset({"damaged", "values", "lost"})


def _write_past_the_layer() -> None:
    """A file is made in the root by other means than the storage."""
    finish = DcpIndexer.write_index

    def finish_and_note(self: DcpIndexer, storage: Any, staging: str, draft: Any) -> Any:  # noqa: ANN401 - as patched
        root = storage._inner._inner._root
        with open(f"{root}/note", "a") as file:
            file.write("done")
        return finish(self, storage, staging, draft)

    DcpIndexer.write_index = finish_and_note  # type: ignore[method-assign]


def _variant(name: str, call: str) -> Variant:
    known = _variants.VARIANTS[name]
    return Variant(known.patch, call, known.caught_as)


VARIANTS = {
    "none": Variant(lambda: None),
    "written-past-the-layer": Variant(_write_past_the_layer),
    "published-file-by-file": _variant("published-file-by-file", "renameat2"),
    "acknowledged-before-commit": _variant("acknowledged-before-commit", "renameat2"),
}
