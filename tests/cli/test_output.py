"""The exit code says what was found, whoever reads it: closed, full and broken outputs."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

import pytest
from tests.cli.conftest import save_run

from stepseal.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


EACH = pytest.mark.parametrize("stdout", ["closed", "full", "gone"])


class _Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def _broken_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def _full() -> TextIO:
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


def _code(*arguments: object, stdout: str = "") -> object:
    """Return the exit code of a run whose stdout is closed, full or gone."""
    made: dict[str, Callable[[], TextIO | None]] = {
        "closed": lambda: None,
        "full": _full,
        "gone": _broken_pipe,
    }
    stream = made[stdout]() if stdout else sys.stdout
    with contextlib.redirect_stdout(stream), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    if stdout and stream is not None:
        stream.close()  # raises if something is left that it does not take
    return ended.value.code


@EACH
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("verb", "arguments", "code"),
    [
        ("ls", [], 0),
        ("show", [], 0),
        ("verify", ["30"], 0),
        ("verify", ["20"], 3),
        ("prune", ["--keep-latest", "1", "--dry-run"], 0),
    ],
)
def test_the_exit_code_stands_before_anything_is_printed(
    eventful_root: Path,
    stdout: str,
    verb: str,
    arguments: list[str],
    code: int,
    as_json: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    full = stdout == "full"
    found = _code(verb, eventful_root, *arguments, *(["--json"] if as_json else []), stdout=stdout)
    assert found == (code or 1 if full else code)
    told = capfd.readouterr().err
    assert told.startswith("stepseal: cannot print on stdout: No space") if full else told == ""


@EACH
def test_pins_are_made_and_ended_without_a_reader(tmp_path: Path, stdout: str) -> None:
    save_run(tmp_path, 1)
    printed = 1 if stdout == "full" else 0
    assert _code("pin", tmp_path, 1, stdout=stdout) == printed
    assert os.listdir(tmp_path / ".stepseal" / "pins") == ["step-1.json"]
    assert _code("unpin", tmp_path, 1, stdout=stdout) == printed
    assert _code("unpin", tmp_path, 1, stdout=stdout) == 4
    assert _code("ls", tmp_path / "none", stdout=stdout) == 10


@pytest.mark.parametrize("stdout", ["closed", "full"])  # click sees to the other
def test_help_that_nobody_can_read_is_no_traceback(stdout: str) -> None:
    assert _code("verify", "--help", stdout=stdout) == (0 if stdout == "closed" else 1)


@pytest.mark.parametrize("broken", ["closed", "full"])
def test_a_stderr_that_takes_nothing_changes_no_exit_code(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path / "root")
    monkeypatch.setattr(sys, "stderr", None if broken == "closed" else _Full())
    assert _code("ls", tmp_path / "none") == 10
    assert _code("ls", tmp_path / "root") == 4
    assert _code("verify", tmp_path / "root") == 4


def test_a_terminal_sees_how_far_verify_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    save_run(tmp_path, 1)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert _code("verify", tmp_path) == 0
    assert "verifying step 1" in terminal.getvalue()
    assert "verifying" not in capsys.readouterr().out
