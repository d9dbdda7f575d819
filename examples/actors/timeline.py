"""Draws one save across processes: who is captured when, and who writes until when.

    python -m examples.actors.timeline runs/timeline.svg

Two trainers hold a model, a buffer holds 200 MB of samples, and the controller fetches the position
of a dataset. Everything in the picture comes from the log records of the controller (level DEBUG).
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import stepseal as ss

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_CAPTURED = ("BeginSave", "Captured", "capture: the owner waits", "#d95f02")
_WRITTEN = ("Write", "Prepared", "write: the owner works on", "#7570b3")
_LEFT, _WIDTH, _ROW = 120, 720, 34


def own(role: str, rank: int, size: int, num_values: int, pipe: Connection) -> None:
    """Be one process that owns a tensor, until the controller is gone."""
    state = {"values": torch.full((num_values,), float(rank))}
    with ss.Participant(role, rank=rank, size=size) as participant:
        participant.add(f"{role}-state", state, sharing=ss.PER_RANK)
        while ss.serve(participant, pipe):
            pass


class Records(logging.Handler):
    """Keeps who was told or reported what, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of a message."""
        if isinstance(record.args, tuple) and len(record.args) == 2:
            who, message = record.args
            self.found.append((str(who), str(message), record.created))

    def time_of(self, who: str, message: str) -> float:
        """Return when somebody was told or reported it."""
        return next(at for one, kind, at in self.found if (one, kind) == (who, message))


async def save_twice(root: str, records: Records) -> None:
    """Save twice, because the first save takes fresh memory; record the second one."""
    context = multiprocessing.get_context("spawn")
    position = {"index": 0}
    sizes = {("trainer", 0): 20_000_000, ("trainer", 1): 20_000_000, ("buffer", 0): 50_000_000}
    pipes: dict[str, list[Connection]] = {"trainer": [], "buffer": []}
    for (role, rank), num_values in sizes.items():
        mine, theirs = context.Pipe()
        size = 2 if role == "trainer" else 1
        context.Process(
            target=own, args=(role, rank, size, num_values, theirs), daemon=True
        ).start()
        pipes[role].append(mine)
    async with ss.Coordinator(root, order=("trainer", "buffer", "dataset")) as coord:
        for role, held in pipes.items():
            await coord.admit(*ss.processes(role, held))
        coord.add("dataset", ss.fetched(position.copy, position.update))
        await coord.save(1)
        log = logging.getLogger("stepseal")
        log.setLevel(logging.DEBUG)
        log.addHandler(records)
        await coord.save(2)
        log.removeHandler(records)


def draw(records: Records) -> str:
    """Return the picture as SVG."""
    names = list(dict.fromkeys(who for who, _, _ in records.found))
    start = min(at for _, _, at in records.found)
    end = max(at for _, _, at in records.found)
    scale = _WIDTH / (end - start)
    rows, height = [], _ROW * (len(names) + 3)

    def x(at: float) -> float:
        return _LEFT + (at - start) * scale

    for number, name in enumerate(names):
        top = 10 + _ROW * number
        rows.append(f'<text x="{_LEFT - 10}" y="{top + 17}" text-anchor="end">{name}</text>')
        for begin, done, _, colour in (_CAPTURED, _WRITTEN):
            left, right = x(records.time_of(name, begin)), x(records.time_of(name, done))
            rows.append(
                f'<rect x="{left:.1f}" y="{top}" width="{max(1.5, right - left):.1f}" height="24" '
                f'fill="{colour}"/>'
            )
    prepared = max(records.time_of(name, "Prepared") for name in names)
    committed = min(records.time_of(name, "Committed") for name in names)
    top = 10 + _ROW * len(names)
    rows.append(f'<text x="{_LEFT - 10}" y="{top + 17}" text-anchor="end">coordinator</text>')
    rows.append(
        f'<rect x="{x(prepared):.1f}" y="{top}" width="{max(1.5, x(committed) - x(prepared)):.1f}" '
        'height="24" fill="#1b9e77"/>'
    )
    words = [(text, colour) for _, _, text, colour in (_CAPTURED, _WRITTEN)]
    words.append(("publish: the step exists at its end", "#1b9e77"))
    for number, (text, colour) in enumerate(words):
        left, at = _LEFT + 240 * number, top + _ROW + 14
        rows.append(f'<rect x="{left}" y="{at - 10}" width="12" height="12" fill="{colour}"/>')
        rows.append(f'<text x="{left + 18}" y="{at}">{text}</text>')
    rows.append(
        f'<text x="{_LEFT + _WIDTH}" y="{top + 2 * _ROW + 8}" text-anchor="end">'
        f"{1000 * (end - start):.0f} ms</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 40}" height="{height}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(rows)}</svg>\n"
    )


def main(picture: Path) -> None:
    """Save, and draw the picture."""
    records = Records()
    with tempfile.TemporaryDirectory(dir=picture.parent) as root:
        asyncio.run(save_twice(f"{root}/run", records))
    picture.write_text(draw(records))
    print(f"{picture}: {len(records.found)} messages")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "timeline.svg"))
