"""One process: nothing is declared, and nothing depends on the number of ranks."""

from __future__ import annotations

import sys

from examples.parallel.common import Mlp, Parallel, train

__all__ = ["build"]


def build() -> Parallel:
    """Return the model as it is."""
    return Parallel(Mlp())


if __name__ == "__main__":
    print(*train(sys.argv[1], int(sys.argv[2]), build()), sep="\n", flush=True)
