"""The verbs and their arguments.

Exit codes: 0 ok, 1 failure, 2 usage, 3 damage, 4 nothing matched, 10 no such root.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import click

from stepseal._version import __version__
from stepseal.cli._output import abandon_stdout, finish, print_line, say
from stepseal.errors import CheckpointError

__all__ = ["main"]

# readable=False: an unreadable path is a storage error, not a usage error
_root = click.argument("root", type=click.Path(readable=False))
_allow_shared = click.option(
    "--allow-shared", is_flag=True, help="Accept a root that other users can write to."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


class _Group(click.Group):
    """Prints each error as one message on stderr, and exits with the code of its class."""

    def main(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().main(*args, **extra)
        except OSError as error:  # from printing a help text, or from the process's environment
            say(str(error))
            abandon_stdout()
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except CheckpointError as error:
            say(str(error))
            sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stepseal")
def main() -> None:
    """Inspect, verify and prune checkpoints."""


@main.command()
@_root
@_json
def ls(root: str, *, as_json: bool) -> None:
    """List the steps and publications of ROOT, and saves that are in flight or left over.

    Foreign folders are listed by name only.
    """
    from stepseal.cli._listing import list_root, print_listing

    found = list_root(root)
    is_empty = not found["steps"] and not found["published"]
    finish(found, print_listing, as_json=as_json, code=4 if is_empty else 0)


@main.command()
@_root
@click.argument("step", type=str, required=False)
@click.option("--tensors", is_flag=True, help="List every tensor with dtype, shape and boxes.")
@_json
def show(root: str, step: str | None, *, tensors: bool, as_json: bool) -> None:
    """Show the contents of STEP of ROOT (default: the newest step of the lineage).

    STEP is a number, or v-7 for a publication. ROOT can also be the folder of either, or a copy.
    """
    from stepseal.cli._showing import describe_step, print_step

    found = describe_step(root, step, tensors=tensors)
    finish(found, print_step, as_json=as_json)


@main.command()
@_root
@click.argument("steps", type=str, nargs=-1)
@_json
def verify(root: str, steps: tuple[str, ...], *, as_json: bool) -> None:
    """Check every byte of STEPS of ROOT (default: all, also publications) against its digest.

    A step is a number, or v-7 for a publication. ROOT can also be the folder of either, or a copy.
    Exit code 3: one is damaged.
    """
    from stepseal.cli._verifying import print_report, verify_root

    found = verify_root(root, steps)
    states = {one["state"] for one in [*found["steps"], *found["published"]]}
    code = 3 if "damaged" in states else 1 if "newer" in states else 0 if states else 4
    finish(found, print_report, as_json=as_json, code=code)


@main.command("import")
@click.option("--from", "kind", type=click.Choice(["dcp"]), required=True, help="Format of SOURCE.")
@click.argument("source", type=click.Path(readable=False))
@_root
@click.option("--step", type=int, required=True, help="Number of the new step.")
@click.option("--skip-bytes", is_flag=True, help="Leave out values that are not of plain types.")
@_allow_shared
@_json
def import_(
    kind: str,
    source: str,
    root: str,
    *,
    step: int,
    skip_bytes: bool,
    allow_shared: bool,
    as_json: bool,
) -> None:
    """Store SOURCE as the first step of ROOT; needs torch, never unpickles."""
    from stepseal.cli._importing import import_folder, print_imported

    found = import_folder(
        kind, source, root, step=step, skip_bytes=skip_bytes, allow_shared=allow_shared
    )
    finish(found, print_imported, as_json=as_json)


@main.command()
@_root
@click.option(
    "--keep-latest",
    type=click.IntRange(min=1),
    required=True,
    metavar="K",
    help="Keep the newest K whole, resumable steps.",
)
@click.option(
    "--superseded-grace-h",
    type=click.FloatRange(min=0),
    default=24.0,
    metavar="H",
    show_default=True,
    help="Keep superseded steps, and steps outside the lineage, for H hours.",
)
@click.option(
    "--trash-grace-h",
    type=click.FloatRange(min=0),
    metavar="H",
    help="Keep whole steps in the trash for H hours.  [default: 0 for steps that this prune moves"
    " there, 24 for steps that are there already]",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed, and why.")
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Read every byte of the newest step first; applies to --dry-run, too.",
)
@_allow_shared
@_json
def prune(
    root: str,
    *,
    keep_latest: int,
    superseded_grace_h: float,
    trash_grace_h: float | None,
    dry_run: bool,
    verify: bool,
    allow_shared: bool,
    as_json: bool,
) -> None:
    """Remove old steps of ROOT; keep the last good step, and steps that are pinned or in use."""
    from stepseal.cli._pruning import print_pruned, prune_root

    found = prune_root(
        root,
        keep_latest=keep_latest,
        superseded_grace_s=superseded_grace_h * 3600,
        trash_grace_s=None if trash_grace_h is None else trash_grace_h * 3600,
        dry_run=dry_run,
        verify=verify,
        allow_shared=allow_shared,
    )
    finish(found, print_pruned, as_json=as_json, code=1 if found["failures"] else 0)


@main.command()
@_root
@click.argument("step", type=str)
@click.option("--reason", default="", help="Note for people, stored in the pin.")
@_allow_shared
def pin(root: str, step: str, *, reason: str, allow_shared: bool) -> None:
    """Keep STEP of ROOT until it is unpinned, whatever the keep rules say."""
    from stepseal.cli._pruning import pin_step

    finish(pin_step(root, step, reason, allow_shared=allow_shared), print_line)


@main.command()
@_root
@click.argument("step", type=str)
def unpin(root: str, step: str) -> None:
    """Remove the pin of STEP of ROOT, so that the keep rules apply to it again.

    Exit code 4: the step was not pinned.
    """
    from stepseal.cli._pruning import unpin_step

    was_pinned, text = unpin_step(root, step)
    finish(text, print_line, code=0 if was_pinned else 4)


@main.command()
@_root
@click.option("--meet", metavar="NAME", help="Meet the other hosts under a name never used.")
@click.option(
    "--participants", type=click.IntRange(2, 10_000), help="How many hosts.  [default: 2]"
)
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), default=60, show_default=True)
@_allow_shared
@_json
def doctor(
    root: str,
    *,
    meet: str | None,
    participants: int | None,
    timeout_s: float,
    allow_shared: bool,
    as_json: bool,
) -> None:
    """Test which promises hold on the file system of ROOT, a root or a directory for a new one.

    Tries file system calls in a temporary folder, and removes the folder. With --meet, run it on
    all hosts at the same time. Exit code 1: a promise does not hold.
    """
    from stepseal.cli._doctor import examine, print_judgements

    if not math.isfinite(timeout_s):
        raise click.UsageError(f"--timeout-s needs a number of seconds, found {timeout_s}.")
    if participants is not None and meet is None:
        raise click.UsageError("--participants needs --meet NAME, the same on each host.")
    found = examine(
        root,
        meeting=meet,
        num_participants=participants or 2,
        timeout_s=timeout_s,
        allow_shared=allow_shared,
    )
    broken = any(judgement["state"] == "does not hold" for judgement in found["promises"])
    finish(found, print_judgements, as_json=as_json, code=1 if broken else 0)
