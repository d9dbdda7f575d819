"""A process that loads roots in every way there is, and notes what Python did meanwhile.

    python -m tests.security._loader FOLDER       (prints one JSON document)

Each root below FOLDER is opened, listed, read, verified, restored from and shown by the CLI. First
all of that happens to a sound root, so that lazy imports are over; then an audit hook watches.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tests.compat.make_v1 import PARTICIPANTS, Job
from tests.security._forge import NEWEST

import stepseal as ss
from stepseal.cli import main
from stepseal.errors import CheckpointError
from stepseal.storage import LocalStorage
from stepseal.testing import World

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from stepseal.session import Restored, Run

QUICK = ss.Deadlines(
    connect_s=20, capture_s=20, write_s=20, commit_s=20, check_s=20, apply_s=20, close_s=5
)
FORBIDDEN = re.compile(
    r"exec|compile|import|marshal\.loads?|pickle\.find_class|code\.__new__|function\.__new__"
    r"|os\.(system|exec|posix_spawn|fork|forkpty|spawn|startfile|putenv|chdir|symlink)"
    r"|subprocess\.Popen|socket\.(?!gethostname).*|ctypes\.(dlopen|dlsym|call_function)|pty\.spawn"
    r"|webbrowser\.open|urllib\.Request|shutil\..*|tempfile\..*"
)
HARMLESS_PATHS = (
    "/proc/self/fdinfo/",
    f"/proc/{os.getpid()}/stat",
    "/proc/self/mountinfo",
    "/proc/sys/kernel/random/boot_id",
    str(Path(torch.__file__).parent),
)
"""Mount numbers; when this process began; the identity of the machine; torch's own source, which it
quotes in warnings."""


NOT_IN_DCP = ("counters", "loader", "rng")
"""Components that stock tools do not see in a step."""


class Watch:
    """What happened since `begin`, and what of it nobody may do while loading."""

    def __init__(self, inside: str) -> None:
        self.inside = inside
        self.bad: list[str] = []
        self.num_events = 0
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.num_events += 1
        if FORBIDDEN.fullmatch(event):
            self.bad.append(f"{event} {arguments!r:.200}")
        elif event == "open" and not self._may_open(arguments[0]):
            self.bad.append(f"open {arguments[0]!r}")

    def _may_open(self, path: object) -> bool:
        if isinstance(path, int):
            return True
        name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if os.path.isabs(name):
            known = (self.inside, *HARMLESS_PATHS)
            return os.path.normpath(name) == name and name.startswith(known)
        # Below the root everything is opened one name at a time, relative to a directory.
        return "/" not in name and name != ".."


def read_all(run: Run) -> None:
    """Read everything that a step has."""
    run.entries(), run.foreign(), run.latest(), run.best("loss")
    for number in run.steps():
        step = run.step(number)
        attempt(step.verify)
        attempt(step.tensor_names)
        attempt(step.tensors)
        for entry in step.manifest.components:
            if entry.kind == "tree":
                for owner in entry.payloads:
                    attempt(functools.partial(step.value, entry.name, owner))


def restore(
    root: Path, *, unverified: bool = False, skip: Collection[str] = ()
) -> list[int | None]:
    """Restore on both ranks; return the steps."""
    jobs = [Job(rank) for rank in range(len(PARTICIPANTS))]

    def one(rank: int, checkpointer: ss.Checkpointer) -> Restored | None:
        with checkpointer:
            jobs[rank].add_to(checkpointer)
            return checkpointer.restore(unverified=unverified, policies=dict.fromkeys(skip, "skip"))

    world = World(len(PARTICIPANTS), lambda _: LocalStorage.create(root), deadlines=QUICK)
    return [None if found is None else found.step for found in world.run(one)]


def command(*arguments: str) -> None:
    """Run a verb of the command line."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        with contextlib.suppress(SystemExit):
            main.main(list(arguments), standalone_mode=False)
        assert "\x1b" not in quiet.getvalue(), f"an escape reached the terminal: {arguments}"


defects: list[str] = []
"""What was raised that is not of the tree of errors."""
said: list[str] = []
"""Messages of typed errors."""
place = ""


def attempt(call: Callable[[], object]) -> object:
    """Return what a call returned, or its typed error; anything else is a defect."""
    try:
        return call()
    except CheckpointError as error:
        said.append(str(error))
        return f"{type(error).__name__}: {error}"
    except BaseException:
        defects.append(f"{place}: {traceback.format_exc()}")
        return None


def load(root: Path) -> object:
    """Load a root in every way there is; return what a restore of it came to."""
    torch.manual_seed(0)
    text = str(root)
    if root.name.startswith("tree--") and not root.name.endswith("-object"):  # there are hundreds
        return attempt(lambda: ss.open(root).step(NEWEST).value("loader", PARTICIPANTS[0])) and None
    attempt(lambda: read_all(ss.open(root)))
    for verb in (["ls"], ["show", "--tensors"], ["verify"]):  # all that `show` reads, and more
        for more in ([], ["--json"]):
            attempt(functools.partial(command, *verb, text, *more))
    attempt(lambda: command("show", text, "7"))
    came_to = attempt(lambda: restore(root))
    copy = foreign_copy(root)
    attempt(lambda: ss.import_dcp(copy / "step-9", copy / "imported", step=1, skip_bytes=True))
    attempt(lambda: restore(copy, unverified=True, skip=NOT_IN_DCP))
    attempt(lambda: command("prune", text, "--keep-latest", "1"))
    return came_to


def foreign_copy(root: Path) -> Path:
    """Return the root in which the newest step stands as a folder of stock DCP."""
    return root.parent / ".foreign" / root.name


def make_foreign_copy(root: Path) -> None:
    """Copy the newest step without all that is stepseal's; nothing is loaded."""
    copy = foreign_copy(root)
    copy.mkdir(parents=True, mode=0o700)
    shutil.copytree(root / f"step-{NEWEST}", copy / "step-9")
    (copy / "step-9" / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(copy / "step-9" / "parts")


def run(folder: Path) -> dict[str, Any]:
    """Load the roots below a folder; the one named `0-warm` first."""
    global place
    roots = sorted(path for path in folder.iterdir() if path.is_dir())
    for root in roots:
        make_foreign_copy(root)
    watch = Watch(str(folder))
    "\x1b".encode("unicode_escape")  # a codec that Python imports when it is first used
    came_to = {}
    for number, root in enumerate(roots):
        watch.on = number > 0
        place = root.name
        before = len(watch.bad)
        came_to[root.name] = load(root)
        watch.bad[before:] = [f"{root.name}: {found}" for found in watch.bad[before:]]
    watch.on = False
    return {
        "bad": watch.bad,
        "defects": defects,
        "said": said,
        "came_to": came_to,
        "num_events": watch.num_events,
        "in_cwd": sorted(os.listdir()),
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]).resolve())))
