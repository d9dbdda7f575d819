"""What a pickle may take while it is parsed: memory in proportion to its bytes, and no second look.

`tests/foreign/test_hostile_dcp.py` says what is refused, and that nothing is run.
"""

from __future__ import annotations

import tracemalloc

import pytest
from tests.foreign._hostile_pickles import GADGETS, INERT

from stepseal.errors import Corrupt, UnsupportedState
from stepseal.foreign import read_metadata

SPARE_BYTES, PER_BYTE = 10 << 20, 32
KEPT = 200_000
"""Opcodes of one byte each; more of them only takes longer."""


def cut(data: bytes) -> bytes:
    return data[:KEPT] + data[-2:] if len(data) > KEPT else data


@pytest.mark.parametrize("name", [*GADGETS, *INERT])
def test_memory_is_in_proportion_to_the_bytes(name: str) -> None:
    data = cut({**GADGETS, **INERT}[name])
    tracemalloc.start()
    try:
        with pytest.raises((Corrupt, UnsupportedState)):
            read_metadata(data, ".metadata")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < SPARE_BYTES + PER_BYTE * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04N\x940\x94.",  # a memo of nothing
        b"\x80\x04Nq\x05.",  # a place out of order
        b"\x80\x04h\x00.",  # a place that was never filled
        b"\x80\x06N.",  # a newer protocol
        b"\x80\x04(N.",  # a mark is left
        b"\x80\x04N(NNu.",  # items for no dict
        b"\x80\x04}(Nu.",  # a key without a value
        b"\x80\x04N}b.",  # state for no object
        b"\x80\x04ctorch\nfloat\\q32\n.",  # an escape that Python warns of
        b"\x80\x04ctorch\nSize a\n.",  # a name of three words
    ],
)
def test_a_broken_pickle_is_damage(data: bytes) -> None:
    with pytest.raises((Corrupt, UnsupportedState)):
        read_metadata(data, ".metadata")
