"""One target under atheris, guided by coverage of the decoders; started by `run`.

python -m tests.campaigns.fuzz._atheris TARGET FOLDER [libFuzzer options] -extra_mb=N

`-extra_mb` is how much memory it may take over what it has when it begins.
"""

from __future__ import annotations

import sys
from importlib import import_module

atheris = import_module("atheris")
with atheris.instrument_imports(include=["stepseal"]):
    from tests.campaigns.fuzz._targets import TARGETS
    from tests.security._cost import reset_peak


def main() -> None:
    """Fuzz until the time is over or a promise is broken."""
    target = TARGETS[sys.argv.pop(1)]
    extra_mb = int(sys.argv.pop().removeprefix("-extra_mb="))
    sys.argv.append(f"-rss_limit_mb={(reset_peak() >> 20) + extra_mb}")

    def examine(data: bytes) -> None:
        if problem := target.check(data):
            raise AssertionError(problem)

    atheris.Setup(sys.argv, examine)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
