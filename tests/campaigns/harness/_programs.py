"""Campaigns that fork run as programs of their own, whose one thread imported everything once.

The programs start as forks of one server, which has imported torch and stepseal and runs no thread:
a start that imports all of that anew takes seconds.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import asdict
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.campaigns.harness._sizes import Row

from stepseal.testing._ranks import PRELOAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["finish", "print_row", "row_of", "run_program", "run_programs"]

_HOUSE = Path(__file__).parents[3]


def run_program(module: str, *arguments: str) -> str:
    """Run `python -m module`; return what it wrote to stdout.

    Raises:
        subprocess.CalledProcessError: it did not come to its end.
    """
    (text,) = run_programs([[module, *arguments]])
    return text


def run_programs(commands: Iterable[Sequence[str]]) -> list[str]:
    """Run programs, each a module with its arguments, one per core at a time; return what each
    wrote to stdout.

    Raises:
        subprocess.CalledProcessError: one did not come to its end; it ends the others.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    num_lanes = len(os.sched_getaffinity(0))
    outputs: list[Path] = []
    running: dict[int, tuple[Any, Sequence[str], Path]] = {}
    with tempfile.TemporaryDirectory(prefix="stepseal-programs-") as folder:
        try:
            for command in commands:
                if len(running) == num_lanes:
                    _wait_for_one(running)
                outputs.append(Path(folder, str(len(outputs))))
                process = context.Process(target=_be_program, args=(command, outputs[-1]))
                process.start()
                running[process.sentinel] = (process, command, outputs[-1])
            while running:
                _wait_for_one(running)
        finally:
            for process, _, _ in running.values():
                process.kill()
                process.join()
        return [output.read_text("utf-8") for output in outputs]


def _wait_for_one(running: dict[int, tuple[Any, Sequence[str], Path]]) -> None:
    """Wait until one of the programs has ended well."""
    sentinel, *_ = connection.wait(list(running))
    assert isinstance(sentinel, int)
    process, command, output = running.pop(sentinel)
    process.join()
    print(_errors(output).read_text("utf-8"), end="", file=sys.stderr)
    if process.exitcode:
        raise subprocess.CalledProcessError(process.exitcode, [*command])


def _errors(output: Path) -> Path:
    return output.with_suffix(".errors")


def _be_program(command: Sequence[str], output: Path) -> None:
    for path, descriptor in ((output, 1), (_errors(output), 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(_HOUSE)
    os.environ["PYTHONPATH"] = _path()
    mp.set_start_method(None, force=True)  # the server left its own
    module, *sys.argv[1:] = command
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _path() -> str:
    return os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])


def _run_anew(module: str, *arguments: str) -> str:
    """Do the same in a process that nothing was imported in before."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=_HOUSE,
        env={**os.environ, "PYTHONPATH": _path()},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout


def row_of(module: str, *arguments: str, anew: bool = False) -> Row:
    """Run a campaign program; return what it reports.

    Args:
        module: the program.
        arguments: of its command line.
        anew: it needs a process that nothing was imported in before.

    Raises:
        subprocess.CalledProcessError: it did not come to its end.
    """
    text = _run_anew(module, *arguments) if anew else run_program(module, *arguments)
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in found.items()
    }
    return Row(**values)


def print_row(row: Row) -> None:
    """Report to `row_of`."""
    print(json.dumps(asdict(row)), flush=True)


def finish(row: Row, *, as_json: bool) -> int:
    """Print the result of a campaign; return the exit code of its program."""
    if as_json:
        print_row(row)
        return 0
    print(row.text())
    for note in row.notes:
        print(f"  {note}")
    for name in row.missed:
        print(f"  MISSED VARIANT: {name}")
    for violation in row.violations:
        print(f"  VIOLATION: {violation}")
    return 1 if row.violations or row.missed else 0
