from __future__ import annotations

import mmap

import pytest
import torch

from stepseal.components._frames import frame_for
from stepseal.components._sinks import DenseSink
from stepseal.components._staging import Arena, byte_view, copy_out, tensor_over
from stepseal.errors import InvalidInput
from stepseal.layout import whole


def address(view: memoryview) -> int:
    return tensor_over(view, torch.uint8).data_ptr()


def test_slices_are_aligned_private_and_writable() -> None:
    arena = Arena()
    first, second = arena.take(3), arena.take(100)
    assert (first.format, first.ndim, first.nbytes) == ("B", 1, 3)
    assert not first.readonly
    assert address(first) % mmap.PAGESIZE == 0
    assert address(second) % 64 == 0
    first[:] = b"abc"
    assert bytes(second) == bytes(100)


def test_reset_hands_the_same_memory_out_again() -> None:
    arena = Arena()
    before = address(arena.take(1000))
    held = arena.held_bytes
    arena.reset()
    assert address(arena.take(1000)) == before
    assert arena.held_bytes == held


def test_growing_keeps_older_slices_and_reset_joins_the_blocks() -> None:
    arena = Arena()
    old = arena.take(5)
    old[:] = b"older"
    arena.reserve(17 << 20)
    big = arena.take(17 << 20)
    big[-1] = 7
    assert bytes(old) == b"older"
    arena.reset()
    held = arena.held_bytes
    arena.take(5)
    arena.take(17 << 20)
    assert arena.held_bytes == held


def test_release_frees_nothing_that_is_still_held() -> None:
    arena = Arena()
    view = arena.take(4)
    view[:] = b"kept"
    arena.release()
    assert arena.held_bytes == 0
    assert bytes(view) == b"kept"


def test_the_limit_is_an_error_that_names_it() -> None:
    arena = Arena(max_staging_bytes=1 << 20)
    arena.take(1 << 19)
    with pytest.raises(InvalidInput, match="max_staging_bytes") as caught:
        arena.take(1 << 20)
    assert caught.value.expected == 1 << 20
    assert arena.held_bytes <= 1 << 20


def odd_tensors() -> list[torch.Tensor]:
    matrix = torch.arange(12.0).view(3, 4)
    complex_row = torch.tensor([1 + 2j, 3 - 4j])
    return [
        matrix,
        matrix.t(),
        matrix[:, 1:3],
        matrix[1:].requires_grad_(),
        torch.tensor(2.5),
        torch.empty(0, 3),
        torch.ones(2, dtype=torch.bfloat16).expand(3, 2),
        complex_row.conj(),
        complex_row.conj().imag,  # carries the neg bit
        torch.arange(300_000, dtype=torch.int64),
        torch.arange(600_000, dtype=torch.int64)[::2],
    ]


@pytest.mark.parametrize("staged", [True, False])
def test_copies_have_the_elements_in_c_order(staged: bool) -> None:
    tensors = odd_tensors()
    views = copy_out(tensors, Arena() if staged else None)
    for tensor, view in zip(tensors, views, strict=True):
        assert (view.format, view.ndim) == ("B", 1)
        found = tensor_over(view, tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor.detach())


def test_staged_copies_do_not_follow_the_live_tensor() -> None:
    live = torch.zeros(4)
    (view,) = copy_out([live], Arena())
    live.fill_(1.0)
    assert bytes(view) == bytes(16)


def test_without_staging_a_contiguous_tensor_is_viewed_in_place() -> None:
    live = torch.zeros(4)
    (view,) = copy_out([live], None)
    live.fill_(1.0)
    assert bytes(view) == bytes(byte_view(live))


def test_a_byte_view_keeps_the_tensor_alive() -> None:
    view = byte_view(torch.full((1 << 16,), 3, dtype=torch.uint8))
    torch.zeros(1 << 16, dtype=torch.uint8)
    assert set(view) == {3}


def test_a_tensor_over_read_only_memory_is_a_copy() -> None:
    data = b"\x01\x02\x03\x04"
    tensor = tensor_over(memoryview(data), torch.uint8)
    tensor.zero_()
    assert data == b"\x01\x02\x03\x04"


def test_copying_leaves_autograd_and_rng_alone() -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * weight).sum()
    version, rng = weight._version, torch.get_rng_state()
    copy_out([weight], Arena())
    assert weight._version == version
    assert torch.equal(torch.get_rng_state(), rng)
    loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None


def test_a_default_device_does_not_matter() -> None:
    tensors = odd_tensors()
    with torch.device("meta"):
        views = copy_out(tensors, Arena())
        plain = copy_out(tensors, None)
        frame = frame_for(torch.float64, (31, 7))
        sink = DenseSink(torch.zeros(4, device="cpu"), whole((4,)), torch.float32)
        sink.write(whole((4,)), 0, memoryview(bytearray(16)))
    assert [bytes(view) for view in views] == [bytes(view) for view in plain]
    assert frame == frame_for(torch.float64, (31, 7))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_are_copied_through_pinned_memory() -> None:
    tensors = [tensor.detach().cuda() for tensor in odd_tensors()]
    arena = Arena()
    views = copy_out(tensors, arena)
    assert tensor_over(views[0], torch.uint8).is_pinned()
    for tensor, view in zip(tensors, views, strict=True):
        assert torch.equal(tensor_over(view, tensor.dtype, tensor.shape), tensor.cpu())
