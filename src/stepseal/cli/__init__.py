"""The command line: `ls`, `show`, `verify`, `doctor`, `prune`, `pin`, `unpin`, `import`.

Only `import` loads torch. Data goes to stdout, progress and errors to stderr.
"""

from stepseal.cli._main import main

__all__ = ["main"]
