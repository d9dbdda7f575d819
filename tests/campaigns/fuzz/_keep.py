"""Fuzzes every target under atheris, and keeps inputs that reached something new.

    python -m tests.campaigns.fuzz._keep SECONDS_PER_TARGET [TARGET ...]

The kept ones, the shortest of them, are checked again by every fast campaign; all together they
stay below 300 KB.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.campaigns.fuzz._targets import FUZZ_CORPUS, TARGETS
from tests.campaigns.fuzz.run import guided

MAX_BYTES = 20_000
"""Kept per target."""


def keep(name: str, seconds: int) -> None:
    """Fuzz one target and replace what is kept of it."""
    with tempfile.TemporaryDirectory() as folder:
        cases, violations = guided(TARGETS[name], seconds, Path(folder))
        print(f"{name}: {cases:,} inputs", *violations, sep="\n  ", flush=True)
        kept = FUZZ_CORPUS / name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        size = 0
        for path in sorted(
            (path for path in (Path(folder) / name).iterdir() if not path.name.startswith("seed-")),
            key=lambda path: (path.stat().st_size, path.name),
        ):
            size += path.stat().st_size
            if size > MAX_BYTES:
                break
            shutil.copy(path, kept / path.name[:16])


def main() -> None:
    """Keep inputs of the named targets, or of all."""
    seconds, *names = sys.argv[1:]
    for name in names or TARGETS:
        keep(name, int(seconds))


if __name__ == "__main__":
    main()
