"""One target under atheris, guided by coverage of the decoders; started by `_fuzz`.

python -m tests.campaigns._fuzz_atheris TARGET FOLDER [libFuzzer options]
"""

from __future__ import annotations

import sys
from importlib import import_module

atheris = import_module("atheris")
with atheris.instrument_imports(include=["stepseal"]):
    from tests.campaigns._fuzz_targets import TARGETS


def main() -> None:
    """Fuzz until the time is over or a promise is broken."""
    target = TARGETS[sys.argv.pop(1)]

    def examine(data: bytes) -> None:
        if problem := target.check(data):
            raise AssertionError(problem)

    atheris.Setup(sys.argv, examine)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
