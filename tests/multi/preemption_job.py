"""A rank of a job that is told to save, and at last to end, by signals; under torchrun.

Usage: preemption_job.py ROOT FOLDER. The test writes `round-N` with a kind of moment. Rank 0 then
comes to a moment of that kind, says so (`at-N`), and stays there until the coordinator has asked
for its safe point. So the signal was noticed while ranks were in the middle of something, or else
rank 0 gives up, and says that.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

import stepseal as ss

if TYPE_CHECKING:
    from stepseal.protocol import Coordinator

LIMIT_S = 120.0


class Moments:
    """The moments of one rank.

    Args:
        folder: shared with the test.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._number = 0
        self.coordinator: Coordinator | None = None
        """On rank 0."""
        self.kind = ""
        """What the test waits for; empty for nothing."""

    def look(self) -> None:
        """Look whether the test wants a moment."""
        found = self._folder / f"round-{self._number + 1}"
        if self._rank == 0 and not self.kind and found.exists() and not self._is_asking():
            self._number += 1
            self.kind = found.read_text()

    def at(self, kind: str) -> None:
        """Stay here until all were asked, if this is the moment that the test wants."""
        if self.kind != kind:
            return
        self.kind = ""
        assert self.coordinator is not None
        points = self.coordinator._points
        before = points._request
        (self._folder / f"at-{self._number}").touch()
        end = time.monotonic() + LIMIT_S
        while points._request == before:
            if time.monotonic() > end:
                (self._folder / "not-noticed").write_text(kind)
                return
            time.sleep(0.01)

    def _is_asking(self) -> bool:
        """Tell whether something is due, or ranks were asked for it."""
        assert self.coordinator is not None
        return self.coordinator._triggers.is_due or self.coordinator._points.is_open


def main(root: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    moments = Moments(folder, rank)
    fsync = os.fsync

    def held_fsync(descriptor: int) -> None:
        moments.at("save")
        fsync(descriptor)

    os.fsync = held_fsync  # type: ignore[assignment]
    weights = torch.zeros(1000)

    def get() -> dict[str, torch.Tensor]:
        moments.at("capture")
        return {"weights": weights}

    rule = ss.every(steps=20) | ss.on_signal("SIGUSR1", stop=False)
    ckpt = ss.Checkpointer(root, save=rule | ss.on_signal("SIGTERM", grace_s=60), keep=ss.latest(2))
    if ckpt._wiring.coordinator is not None:
        moments.coordinator = ckpt._wiring.coordinator._protocol
    ckpt.add("weights", (get, weights.copy_), sharing=ss.REPLICATED, kind="tree")
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    last = 0
    with ckpt, (folder / f"history-{rank}").open("w") as history:
        ckpt.restore()
        for step in ckpt.steps(10**9):
            moments.look()
            moments.at("collective")
            dist.all_reduce(weights)
            weights.fill_(step)
            if ckpt.step(step) is not None:
                print(json.dumps(step), file=history, flush=True)
            moments.at("training")
            last = step
        print(json.dumps({"stopped": last, "size": size}), file=history, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
