"""What people see of saves and restores on a terminal: one line while they run, one when they end.

Rich's `Live` would hide the cursor, and would take over `sys.stdout` from a thread that the user's
program knows nothing of. So this draws one line, and erases it before anything else of ours is
printed. Invariants: it draws only on a terminal; nothing that happens here fails or delays a save.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO

from stepseal.layout import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from stepseal.protocol import View

__all__ = ["Display", "open_display"]

_log = logging.getLogger("stepseal")
_AFTER_S = 2.0
"""How long a call takes before it is shown."""
_EVERY_S = 0.25
_JOIN_S = 2.0
_BAR_COLUMNS = 24
_WORDS = {
    "capture": "capturing",
    "staging": "preparing",
    "write": "writing",
    "engines": "writing",
    "compare": "comparing",
    "publish": "committing",
    "join": "waiting for all",
    "select": "choosing",
    "check": "checking",
    "apply": "reading",
    "claim": "claiming",
}


def open_display(*, progress: bool, environ: Mapping[str, str] = os.environ) -> Display | None:
    """Return what shows people how far calls are; None where nobody would look, or may be asked.

    Args:
        progress: whether the user wants it.
        environ: `CI` and `NO_COLOR` switch it off.
    """
    off = not progress or environ.get("CI") or environ.get("NO_COLOR")
    if off or environ.get("TERM") == "dumb" or not _is_terminal(sys.stderr):
        return None
    from rich.console import Console

    display = Display(Console(stderr=True))
    return display if display.start() else None


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


class Display:
    """Draws the line of the oldest call on a thread of its own.

    Args:
        console: of the terminal.
        clock: monotonic time.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._changed = threading.Condition()
        self._views: tuple[View, ...] = ()
        self._is_drawn = self._closed = False
        self._thread = threading.Thread(target=self._run, name="stepseal-display", daemon=True)

    def start(self) -> bool:
        """Begin to draw; False where no thread can be had."""
        try:
            self._thread.start()
        except RuntimeError as error:
            _log.debug("stepseal: no progress line: %s", error)
            return False
        return True

    def calls(self, views: tuple[View, ...]) -> None:
        """Take note of the calls that are open now; see `protocol.Show`."""
        with self._changed:
            if not views:
                self._erase()
            if bool(views) != bool(self._views):
                self._changed.notify()
            self._views = views

    def line(self, text: str) -> None:
        """Print a line, unless the log of the user says it already."""
        if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
            return
        with self._changed:
            self._erase()
            self._write(f"stepseal: {text}\n")

    def hide(self) -> None:
        """Erase the line until it is drawn again."""
        with self._changed:
            self._erase()

    def close(self) -> None:
        """Erase the line, and stop. Idempotent."""
        with self._changed:
            self._closed = True
            self._erase()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def draw(self) -> None:
        """Draw the line of the call that takes longest, if one takes long."""
        with self._changed:
            view = min(self._views, key=lambda one: one.called_at_s, default=None)
            if view is None or self._closed:
                return
            took_s = self._clock() - view.called_at_s
            if took_s >= _AFTER_S:
                self._erase()
                self._is_drawn = True
                self._write(self._rendered(view, took_s))

    def _rendered(self, view: View, took_s: float) -> str:
        """Return the text of one line, which does not wrap: else it could not be erased."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        text = Text(_text(view, took_s), no_wrap=True)
        if view.of_bytes:
            grid.add_row(ProgressBar(view.of_bytes, view.size_bytes, width=_BAR_COLUMNS), text)
        else:
            grid.add_row("", text)
        with self._console.capture() as captured:
            self._console.print(grid, width=max(1, self._console.width - 2))
        return captured.get().rstrip("\n") + " "  # what somebody else prints begins after it

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._views)
                if self._closed:
                    return
            self.draw()
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _EVERY_S)

    def _erase(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            self._write("\r\x1b[2K")

    def _write(self, text: str) -> None:
        """Write to the terminal; one that is gone is no reason to fail."""
        try:
            self._console.file.write(text)
            self._console.file.flush()
        except (OSError, ValueError) as error:
            self._closed = True
            _log.debug("stepseal: no progress line: %s", error)


def _text(view: View, took_s: float) -> str:
    word = _WORDS.get(view.phase, view.phase)
    size = size_text(view.size_bytes) if view.size_bytes or view.of_bytes else ""
    total = f" of {size_text(view.of_bytes)}" if view.of_bytes else ""
    told = f", {size}{total}" if size else ""
    return f"{view.what}: {word}{told}, {view.who}, {took_s:.0f} s"
