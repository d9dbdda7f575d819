"""How live tensors and torch's generators take saved ones in place. Loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stepseal.components._codecs_words import Step

__all__ = ["TensorPlaces", "place_generator", "run_fills", "same_memory", "to_device_of"]


class TensorPlaces:
    """The tensors of a live value that take saved elements."""

    def __init__(self) -> None:
        self._all: list[tuple[torch.Tensor, torch.Tensor, tuple[Step, ...]]] = []

    def place(
        self, saved: torch.Tensor, live: torch.Tensor, steps: Sequence[Step]
    ) -> tuple[object, Callable[[], None] | None]:
        """Return what stands where `live` stood, and what fills it if it stays."""
        if not _takes(live, saved):
            return to_device_of(live, saved), None
        self._all.append((live, saved, tuple(steps)))

        def fill() -> None:
            live.copy_(saved)
            live.requires_grad_(saved.requires_grad)

        return live, fill

    def overlaps(self) -> Iterator[tuple[Sequence[Step], Sequence[Step]]]:
        """Yield tensors that overlap in memory, and could not all hold what was saved for them."""
        groups: dict[tuple[torch.device, int], list[int]] = {}
        for number, (live, _, _) in enumerate(self._all):
            if live.numel():
                place = (live.device, live.untyped_storage().data_ptr())
                groups.setdefault(place, []).append(number)
        for numbers in groups.values():
            if len(numbers) > 1:
                yield from _overlaps([self._all[number] for number in numbers])


def _overlaps(
    group: Sequence[tuple[torch.Tensor, torch.Tensor, tuple[Step, ...]]],
) -> Iterator[tuple[Sequence[Step], Sequence[Step]]]:
    with torch.no_grad():
        scratch = group[0][0].untyped_storage().clone()  # type: ignore[no-untyped-call]
        views = []
        for live, saved, _ in group:
            view = torch.empty(0, dtype=live.dtype, device=live.device)
            view.set_(scratch, live.storage_offset(), live.shape, live.stride())
            views.append(view.copy_(saved))
        differ = [
            not torch.equal(_bits(view), _bits(saved))
            for view, (_, saved, _) in zip(views, group, strict=True)
        ]
    for (_, _, steps), is_lost in zip(group, differ, strict=True):
        if is_lost:
            yield group[-1][2], steps


def run_fills(fills: Sequence[Callable[[], None]]) -> None:
    """Fill live objects, whatever the caller's modes are."""
    with torch.inference_mode(False), torch.no_grad():
        for fill in fills:
            fill()


def place_generator(
    saved: torch.Generator, live: torch.Generator
) -> tuple[object, Callable[[], None] | None]:
    """Return what stands where a live generator stood, and what sets it if it stays."""
    if live.device != saved.device:
        return saved, None
    return live, lambda: _set_generator(live, saved)


def same_memory(live: torch.Tensor) -> object:
    """Return what two tensors of one memory have in common; None for tensors without elements."""
    if live.is_meta or not live.numel():
        return None
    return (live.device, live.data_ptr(), live.dtype, live.shape, live.stride())


def to_device_of(live: object, saved: torch.Tensor) -> torch.Tensor:
    """Return a saved tensor on the device of the one that it replaces."""
    if not isinstance(live, torch.Tensor) or live.device == saved.device:
        return saved
    moved = saved.detach().to(live.device).requires_grad_(saved.requires_grad)
    if isinstance(saved, torch.nn.Parameter):
        return torch.nn.Parameter(moved, saved.requires_grad)
    return moved


def _set_generator(live: torch.Generator, saved: torch.Generator) -> None:
    live.set_state(saved.get_state())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _takes(live: torch.Tensor, saved: torch.Tensor) -> bool:
    """Return whether an ordinary tensor can be filled with the saved bits."""
    return (
        type(live) in (torch.Tensor, torch.nn.Parameter)
        and (live.dtype, live.shape, live.layout) == (saved.dtype, saved.shape, saved.layout)
        and live.grad_fn is None
        and not (live.is_meta or live.is_inference() or live.is_conj() or live.is_neg())
        and not any(
            step == 0 and size > 1 for step, size in zip(live.stride(), live.shape, strict=True)
        )
    )
