"""An attempt with the folder of an engine, and the parts that list what is in it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tests.transfer._steps import ATTEMPT, KEY, STEP, contents, manifest_of, not_cancelled

from stepseal.layout import MANIFEST, ComponentEntry, Manifest, encode_manifest
from stepseal.storage import create_durable
from stepseal.transfer import write_part
from stepseal.transfer._external import Inventory

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout import DocumentRef, FileEntry
    from stepseal.storage import Storage


def take(
    storage: Storage,
    share: tuple[int, int] = (0, 1),
    check_cancelled: Callable[[], None] = not_cancelled,
) -> list[FileEntry]:
    found = Inventory(storage, KEY, "engine", share, check_cancelled)
    entries = found.take()
    found.look_again()
    return entries


def write_parts(storage: Storage, num: int = 2) -> Manifest:
    """Write parts that share what an engine wrote, and the manifest."""
    references: dict[str, DocumentRef] = {}
    names = tuple(f"trainer/{number}" for number in range(num))
    for ordinal, name in enumerate(names):
        references[name] = write_part(
            storage,
            KEY,
            step=STEP,
            attempt=ATTEMPT,
            participant=name,
            ordinal=ordinal,
            contents=contents(),
            check_cancelled=not_cancelled,
            external=["engine"],
            share=(ordinal, num),
        )
    bare = manifest_of(references, dict.fromkeys(names, contents()))
    entry = ComponentEntry("engine", "external", "sharded", {}, True, {})
    manifest = manifest_with(bare, entry)
    create_durable(storage, f"{KEY}/{MANIFEST}", encode_manifest(manifest))
    return manifest


def manifest_with(bare: Manifest, *components: ComponentEntry) -> Manifest:

    return dataclasses.replace(bare, components=components)
