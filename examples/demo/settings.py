"""The two sizes in which the demo runs: what both the job and the conductor must know."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SIZES", "ModelSize", "Settings"]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Shape of the GPT; it reads bytes, so its vocabulary has 256 entries."""

    width: int
    num_layers: int
    num_heads: int
    context: int
    """Longest sequence, in bytes of text."""
    dropout: float = 0.1
    vocabulary: int = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """One size of the demo."""

    model: ModelSize
    batch: int
    """Sequences per rank and step."""
    num_steps: int
    save_every: int
    """Steps between two saves."""
    kill_from: int
    """The job is killed during the save of this step, or of a later one if that was too quick."""
    learning_rate: float
    warmup_steps: int
    seed: int = 20_240_229
    num_ranks: int = 2


SIZES = {
    "full": Settings(
        ModelSize(width=320, num_layers=8, num_heads=8, context=96),
        batch=2,
        num_steps=30,
        save_every=6,
        kill_from=24,
        learning_rate=1e-3,
        warmup_steps=6,
    ),
    "small": Settings(
        ModelSize(width=128, num_layers=2, num_heads=4, context=64),
        batch=2,
        num_steps=16,
        save_every=4,
        kill_from=8,
        learning_rate=3e-3,
        warmup_steps=3,
    ),
}
"""`full` is what a visitor sees, `small` is the same in seconds, for the tests."""
