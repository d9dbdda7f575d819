"""The command line: `stepseal ls`, `show`, `verify`, `doctor`.

Reads metadata without torch; data on stdout, progress on stderr.
"""

from stepseal.cli._main import main

__all__ = ["main"]
