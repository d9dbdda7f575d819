"""The coordinator's own share of a step, on parts that `transfer` wrote."""

from __future__ import annotations

from tests.transfer._steps import KEY, contents, small_parts, tree, write_step

from stepseal.layout import DCP_INDEX
from stepseal.session._indexer import DcpIndexer
from stepseal.storage import exists
from stepseal.testing import MemoryStorage

NUM_ITEMS = sum(len(p.tensors) + len(p.bytes_copies) for p in small_parts().values())


def test_index_for_stock_readers_is_written_and_listed_up_to_the_limit() -> None:
    storage = MemoryStorage()
    draft = write_step(storage, small_parts())
    made = DcpIndexer(NUM_ITEMS).write_index(storage, KEY, draft)
    assert [(entry.path, entry.role) for entry in made.files] == [(DCP_INDEX, "dcp-index")]
    assert exists(storage, f"{KEY}/{DCP_INDEX}")


def test_index_for_stock_readers_is_left_out_above_the_limit_and_the_step_is_whole() -> None:
    storage = MemoryStorage()
    draft = write_step(storage, small_parts())
    indexer = DcpIndexer(NUM_ITEMS - 1)
    assert indexer.write_index(storage, KEY, draft) == draft
    assert not exists(storage, f"{KEY}/{DCP_INDEX}")
    assert indexer.inspect(storage, KEY, draft, exact=True) == []


def test_step_without_items_has_no_index_for_stock_readers() -> None:
    storage = MemoryStorage()
    draft = write_step(storage, {"trainer/0": contents(trees=[tree("rng", "trainer/0", {})])})
    assert DcpIndexer().write_index(storage, KEY, draft) == draft
    assert not exists(storage, f"{KEY}/{DCP_INDEX}")
