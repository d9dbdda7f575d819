from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepseal.errors import InvalidInput
from stepseal.protocol import _wire
from stepseal.protocol._wire import Address, MessageReader, pack_message, prove


def all_of(reader: MessageReader) -> list[bytes]:
    return list(iter(reader.take, None))


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 9))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    bodies: list[bytes], size: int
) -> None:
    stream = b"".join(pack_message(body) for body in bodies)
    reader = MessageReader(100)
    found = []
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
        found += all_of(reader)
    assert found == bodies


@pytest.mark.parametrize("size_bytes", [101, 1 << 31, (1 << 32) - 1])
def test_announced_length_is_checked_before_the_bytes_come(size_bytes: int) -> None:
    reader = MessageReader(100)
    reader.feed(struct.pack(">I", size_bytes))
    with pytest.raises(InvalidInput) as caught:
        reader.take()
    assert (caught.value.expected, caught.value.found) == (100, size_bytes)


def test_limit_may_be_raised_between_two_frames_of_one_piece() -> None:
    reader = MessageReader(10)
    reader.feed(pack_message(b"short") + pack_message(b"x" * 50))
    assert reader.take() == b"short"
    reader.max_bytes = 100
    assert reader.take() == b"x" * 50
    assert reader.take() is None


def test_frame_that_nobody_would_take_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wire, "MAX_MESSAGE_BYTES", 10)
    assert pack_message(b"x" * 10)
    with pytest.raises(InvalidInput):
        pack_message(b"x" * 11)


def test_a_proof_depends_on_token_and_nonce_and_gives_no_token_away() -> None:
    proofs = {prove(token, nonce) for token in ("token-1", "token-2") for nonce in ("n", "m")}
    assert len(proofs) == 4
    assert not any("token" in proof for proof in proofs)


def test_address_does_not_show_its_token() -> None:
    assert "secret" not in repr(Address("host", 1, "secret"))
