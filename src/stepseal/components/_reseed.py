"""Random streams that begin anew: derived from a seed that is recorded, the step and the rank.

Ranks never share a stream, and the same seed, step and rank begin the same streams again.
"""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

__all__ = ["Streams", "reseed"]


@dataclass(frozen=True, slots=True)
class Streams:
    """Where the seeds of one rank come from."""

    seed: str
    step: int
    rank: int

    def seed_of(self, stream: str) -> int:
        """Return the seed of a stream, from 0 to 2^63 - 1.

        Seeds of neighbouring ranks differ by one. Torch's CPU generator keeps the low 32 bits of a
        seed: two hashes could meet there, two ranks cannot.
        """
        digest = hashlib.sha256(f"{self.seed}/{self.step}/{stream}".encode()).digest()
        return (int.from_bytes(digest[:8], "big") + self.rank) % 2**63


def reseed(
    streams: Streams, numpy_generators: Iterable[Any], torch_generators: Iterable[torch.Generator]
) -> None:
    """Begin all streams of this process anew; those that are not in use are left alone.

    Args:
        streams: where the seeds come from.
        numpy_generators: generators of the user, NumPy's.
        torch_generators: the same, torch's.
    """
    import torch

    random.seed(streams.seed_of("python"))
    torch.manual_seed(streams.seed_of("torch"))  # CUDA's, too, also if it comes to life later
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index, generator in enumerate(torch.cuda.default_generators):
            generator.manual_seed(streams.seed_of(f"cuda:{index}"))
    if "numpy.random" in sys.modules:
        _reseed_global(streams.seed_of("numpy"))
    for index, one in enumerate(numpy_generators):
        _reseed_numpy(one, streams.seed_of(f"numpy:{index}"))
    for index, generator in enumerate(torch_generators):
        generator.manual_seed(streams.seed_of(f"torch:{index}"))


def _reseed_global(seed: int) -> None:
    import numpy as np

    module: Any = np.random
    bits = type(module.get_bit_generator())
    module.set_state(np.random.RandomState(bits(seed)).get_state(legacy=False))


def _reseed_numpy(live: Any, seed: int) -> None:  # noqa: ANN401 - Generator or RandomState
    import numpy as np

    if isinstance(live, np.random.Generator):
        live.bit_generator.state = type(live.bit_generator)(seed).state
    else:
        bits = type(live._bit_generator)
        live.set_state(np.random.RandomState(bits(seed)).get_state(legacy=False))
