"""One job on 4, then 2, then 3 processes, each life killed: samples, draws, and a replay buffer.

Every life writes down what it did, and only what was done before its last step counts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import stepseal as ss
from stepseal.testing import RanksFailed, run_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.slow

NUM_SAMPLES, BATCH_SIZE = 53, 2
LIVES = [(4, 3, 5), (2, 8, 9), (3, 14, 15)]
"""Ranks of each life, the step that it saves, and the step after which it is killed."""


def deal(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
    """Deal out all items anew."""
    items = [item for state in states for item in state["items"]]
    return {"items": items[new.index :: new.world_size]}


def live(rank: int, root: str, log: str, save: int, last: int) -> None:
    """Train up to a step, write down each step, and die."""
    torch.manual_seed(rank)
    random.seed(rank)
    np.random.seed(rank)
    sampler = ss.GlobalSampler(NUM_SAMPLES, BATCH_SIZE, seed=5)
    samples: Any = torch.arange(NUM_SAMPLES)
    loader: DataLoader[Any] = DataLoader(samples, batch_sampler=sampler)
    replay: dict[str, list[Any]] = {"items": []}
    lines = []
    ckpt = ss.Checkpointer(root)
    ckpt.add("data", sampler)
    ckpt.add("rng", ss.RNG(), on_world_change="fresh")
    ckpt.add("replay", replay, sharing=ss.PER_RANK, on_world_change=deal)
    restored = ckpt.restore()
    step = restored.step if restored else 0
    held = list(replay["items"])
    while step < last:
        for batch in ckpt.batches(loader):
            step += 1
            ids = batch.tolist()
            drawn = [random.random(), np.random.random()]
            drawn.append(torch.rand(1, dtype=torch.float64).item())
            replay["items"] += [[sampler.epoch, one] for one in ids]
            lines.append({"step": step, "epoch": sampler.epoch, "ids": ids, "drawn": drawn})
            if step == save:
                ckpt.save(step).wait()
            if step == last:
                break
    report = dict(restored.report) if restored else {}
    Path(log, f"{rank}.json").write_text(json.dumps([held, report, lines]))
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def told(folder: Path, num_ranks: int) -> list[Any]:
    """Return per rank what it held at first, the report, and its steps."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_ranks)]


def kill_after(root: Path, log: Path, life: tuple[int, int, int]) -> list[Any]:
    num_ranks, save, last = life
    log.mkdir()
    with pytest.raises(RanksFailed, match="died without a report"):
        run_ranks(num_ranks, live, str(root), str(log), save, last)
    return told(log, num_ranks)


def test_a_job_that_shrinks_and_grows_trains_on_each_sample_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = kill_after(root, tmp_path / "0", LIVES[0])
    shutil.copytree(root, tmp_path / "again")
    second = kill_after(root, tmp_path / "1", LIVES[1])
    assert kill_after(tmp_path / "again", tmp_path / "2", LIVES[1]) == second  # draws included
    third = kill_after(root, tmp_path / "3", LIVES[2])

    counts: Counter[tuple[int, int]] = Counter()
    draws: Counter[float] = Counter()
    for (_, save, _), ranks in zip(LIVES, (first, second, third), strict=True):
        for _, _, lines in ranks:
            for line in lines:
                draws.update(line["drawn"])
                if line["step"] <= save:
                    counts.update((line["epoch"], one) for one in line["ids"])
        following = {3: second, 8: third}.get(save, [])
        held = Counter((epoch, one) for items, _, _ in following for epoch, one in items)
        assert not following or held == counts  # the buffer holds what was trained on by then
    assert set(counts.values()) == {1}
    assert {epoch for epoch, _ in counts} == {0, 1}
    num_trained = sum(1 for epoch, _ in counts if epoch == 0)
    assert num_trained == 3 * 8 + 5 * 4 + 6  # the 3 that are left fill no global batch of 6
    assert set(draws.values()) == {1}
    for ranks, text in ((second, "4 participants at the save, now 2"), (third, "2 participants")):
        assert {json.dumps(report, sort_keys=True) for _, report, _ in ranks} == {
            json.dumps(ranks[0][1], sort_keys=True)
        }
        assert f"resharded: {text}" in ranks[0][1]["replay"]
        assert "fresh: streams from seed" in ranks[0][1]["rng"]
