"""One process: every component is GLOBAL, which is the default there, and the streams PER_RANK."""

from __future__ import annotations

from torch import nn

import stepseal as ss
from examples.trainers.common import BATCH, Samples, network, optimizing, seed_all, start

__all__ = ["train"]


def train(root: str, num_steps: int) -> list[float]:
    """Train from the newest step in `root`, or from scratch; return the loss of each step."""
    model, samples, losses = nn.Sequential(*network()), Samples(seed=0), []
    optimizer, scheduler = optimizing(model)
    counts = {"samples": 0}
    seed_all(0)
    with ss.Checkpointer(root, save=ss.every(steps=2)) as ckpt:
        ckpt.add("model", model, sharing=ss.GLOBAL)
        ckpt.add("optimizer", optimizer, sharing=ss.GLOBAL)
        ckpt.add("scheduler", scheduler, sharing=ss.GLOBAL)
        ckpt.add("trainer", counts, sharing=ss.GLOBAL)
        ckpt.add("dataset", samples, sharing=ss.GLOBAL)
        ckpt.add("rng", ss.RNG(), sharing=ss.PER_RANK)
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            loss = model(samples.read(BATCH)).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            counts["samples"] += BATCH
            losses.append(loss.item())
            ckpt.step(step)
    return losses


if __name__ == "__main__":
    start(train)
