"""What people see on a terminal: drawn late, erased before anything else, off if asked."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pty
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from stepseal.protocol import View
from stepseal.session._display import Display, open_display

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30
ERASED = "\r\x1b[2K"
SRC = Path(__file__).resolve().parent.parent.parent / "src"


class Screen:
    """A display on a recorded terminal, with a clock that stands still."""

    def __init__(self, width: int = 100) -> None:
        self.file = io.StringIO()
        self.now_s = 1000.0
        console = Console(file=self.file, width=width, force_terminal=True, color_system=None)
        self.display = Display(console, lambda: self.now_s)

    def shows(self, *views: View, after_s: float) -> str:
        """Return what is written for calls that began some seconds ago."""
        self.file.truncate(0)
        self.file.seek(0)
        self.now_s = 1000.0 + after_s
        self.display.calls(views)
        self.display.draw()
        return self.file.getvalue()


def save(size_bytes: int = 2 * GIB, of_bytes: int = 5 * GIB, phase: str = "write") -> View:
    return View("save of step 500", phase, size_bytes, of_bytes, "8 ranks", 1000.0)


def test_a_save_is_shown_once_it_takes_two_seconds() -> None:
    screen = Screen()
    assert screen.shows(save(), after_s=1.9) == ""
    text = screen.shows(save(), after_s=2.0)
    assert "save of step 500: writing, 2.0 GiB of 5.0 GiB, 8 ranks, 2 s" in text
    assert "\n" not in text


def test_the_line_is_drawn_in_place_and_erased_when_the_save_has_ended() -> None:
    screen = Screen()
    screen.shows(save(), after_s=3.0)
    assert screen.shows(save(3 * GIB), after_s=4.0).startswith(ERASED)
    assert screen.shows(after_s=5.0) == ERASED
    assert screen.shows(after_s=6.0) == ""


def test_a_restore_shows_what_was_read() -> None:
    view = View("restore", "apply", GIB, 0, "1 rank", 1000.0)
    assert "restore: reading, 1.0 GiB, 1 rank, 9 s" in Screen().shows(view, after_s=9.0)


def test_a_line_never_wraps_as_it_could_not_be_erased() -> None:
    text = Screen(width=40).shows(save(), after_s=3.0)
    assert 0 < len(text) < 40
    assert "\n" not in text


def test_other_messages_begin_a_line_of_their_own() -> None:
    screen = Screen()
    screen.shows(save(), after_s=3.0)
    screen.display.hide()
    assert screen.file.getvalue().endswith(ERASED)
    screen.display.draw()
    screen.display.close()
    assert screen.file.getvalue().endswith(ERASED)


def test_what_a_save_cost_is_printed_where_no_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    screen = Screen()
    with caplog.at_level(logging.WARNING, logger="stepseal"):
        screen.display.line("step 500: 5.0 GiB")
    assert screen.file.getvalue() == "stepseal: step 500: 5.0 GiB\n"
    with caplog.at_level(logging.INFO, logger="stepseal"):
        screen.display.line("step 600: 5.0 GiB")
    assert "600" not in screen.file.getvalue()


def test_a_terminal_that_is_gone_ends_the_display_and_nothing_else() -> None:
    screen = Screen()
    screen.shows(save(), after_s=3.0)
    screen.file.close()
    screen.display.hide()
    screen.display.draw()
    screen.display.line("step 500: 5.0 GiB")
    screen.display.close()


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let stderr be a terminal."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        yield
    os.close(master)


XTERM = {"TERM": "xterm"}


@pytest.mark.parametrize(
    ("environ", "progress"),
    [
        ({**XTERM, "CI": "true"}, True),
        ({**XTERM, "NO_COLOR": "1"}, True),
        ({"TERM": "dumb"}, True),
        (XTERM, False),
    ],
)
def test_it_is_off_where_it_was_asked_to(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, progress: bool
) -> None:
    with terminal(monkeypatch):
        assert open_display(progress=progress, environ=environ) is None


def test_it_is_on_at_a_terminal_and_off_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch):
        display = open_display(progress=True, environ=XTERM)
        assert display is not None
        display.close()

        def no_more(_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", no_more)
        assert open_display(progress=True, environ=XTERM) is None


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_it_is_off_without_a_terminal(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert open_display(progress=True, environ={}) is None


JOB = """
    import sys, threading, torch, stepseal as ss
    from stepseal.session import _display
    from stepseal.transfer import _blocks

    _display._AFTER_S = 0.0  # what is drawn at once is drawn on a machine of any speed
    drawn = threading.Event()
    real = _display.Display.draw

    def draw(self):
        real(self)
        if self._is_drawn:
            drawn.set()

    _display.Display.draw = draw
    write = _blocks.FileWriter._write

    def held(self, block):
        assert drawn.wait(60)  # the save goes on once its line was seen
        write(self, block)

    _blocks.FileWriter._write = held
    with ss.Checkpointer(sys.argv[1]{arguments}) as ckpt:
        ckpt.add("model", {{"w": torch.ones(1 << 22)}})
        {before}
        ckpt.save(1).wait()
"""


def on_a_terminal(root: Path, arguments: str = "", before: str = "pass") -> str:
    """Run a job of two lines on a terminal of its own; return what people see there."""
    master, slave = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")}
    environ |= {"TERM": "xterm", "PYTHONPATH": str(SRC)}
    script = textwrap.dedent(JOB).format(arguments=arguments, before=before)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(root)], stderr=slave, stdout=slave, env=environ
    ) as job:
        os.close(slave)
        shown = b""
        while chunk := _read(master):
            shown += chunk
        assert job.wait(120) == 0, shown.decode()
    os.close(master)
    return shown.decode()


def _read(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:  # EIO: nobody has the other end any more
        return b""


@pytest.mark.slow
def test_two_lines_show_a_save_on_a_terminal(tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path)
    assert "save of step 1: " in shown
    assert ERASED in shown
    line = r"stepseal: step 1: 16\.0 MiB from 1 rank, blocked [\d.]+ s, committed after [\d.]+ s"
    assert re.search(line, shown)
    assert "\x1b[?25l" not in shown  # the cursor stays where the user can see it


@pytest.mark.slow
def test_without_progress_a_terminal_shows_nothing(tmp_path: Path) -> None:
    assert on_a_terminal(tmp_path, ", progress=False", "drawn.set()") == ""
