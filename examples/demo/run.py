"""Trains, kills, resumes, damages, compares: all numbers are measured, all claims are checked.

python -m examples.demo.run [--small] [--folder runs/demo]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import stepseal as ss
from examples.demo.compare import component_digest, leaf_digests
from examples.demo.jobs import DemoFailed, Life, Torn, check, run_job
from examples.demo.readers import compare_converted, compare_stock_load, loss_on_one_process
from examples.demo.screen import Screen
from examples.demo.settings import SIZES

_MARKER = ".stepseal-demo"
_DAMAGED_EXIT_CODE = 3
_MAX_TRIES = 3


def main() -> None:
    """Run the demo; exit code 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny model, for tests")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="made anew")
    arguments = parser.parse_args()
    screen = Screen()
    try:
        folder = make_folder(arguments.folder)
        Demo(screen, folder, "small" if arguments.small else "full").run()
    except DemoFailed as error:
        screen.failed(str(error))
        sys.exit(1)


def make_folder(folder: Path) -> Path:
    """Empty the folder of an earlier demo, or make one; refuse any other folder."""
    if folder.exists() and any(folder.iterdir()):
        check((folder / _MARKER).exists(), f"{folder} is not empty and not of an earlier demo")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    return folder


def flip_bit(path: Path) -> int:
    """Flip one bit in the middle of a file; return the offset of its byte."""
    offset = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    return offset


@dataclass(slots=True)
class Demo:
    """The story, stage by stage."""

    screen: Screen
    folder: Path
    size: str

    def run(self) -> None:
        """Tell all of it."""
        started = time.perf_counter()
        self._introduce()
        steady = self._train_undisturbed()
        torn, first, second = self._kill_and_resume()
        self._compare(steady, torn, first, second)
        self._look_at_the_root()
        fallback = self._damage()
        num_stock = self._read_with_stock_tools()
        self._close(steady, torn, second, fallback, num_stock)
        self.screen.say(
            f"Took {time.perf_counter() - started:.0f} s. Look around: "
            f"{os.path.relpath(sys.executable)} -m stepseal show {self.folder / 'killed'}"
        )

    def _introduce(self) -> None:
        settings = SIZES[self.size]
        self.screen.say(
            "[bold]stepseal[/]: a checkpoint is one step of the whole job, complete and verified, "
            "or it does not exist.\n"
            f"This demo trains a GPT on the sources of your Python's library: "
            f"{settings.num_ranks} ranks, FSDP2, AdamW, a save every {settings.save_every} steps "
            "behind the training loop."
        )

    def _train_undisturbed(self) -> Life:
        self.screen.stage("A run that nothing disturbs, to compare with")
        life = self._job("undisturbed")
        settings = SIZES[self.size]
        check(life.resumed is None, "a fresh root was resumed")
        wanted = list(range(1, settings.num_steps + 1))
        check(list(life.losses) == wanted, f"expected steps 1..{wanted[-1]}, found {life.losses}")
        step = self._step("undisturbed")
        num_parameters = sum(
            t.numel() for name, t in step.tensors().items() if not name.startswith("optimizer.")
        )
        size_bytes = _payload_bytes(Path(step.path))
        self.screen.proven(
            f"{len(life.losses)} steps; {num_parameters / 1e6:.1f} M parameters, "
            f"{_mib(size_bytes)} per saved step. A step took "
            f"{statistics.median(life.step_s) * 1e3:.0f} ms, and a save kept it waiting for "
            f"{statistics.median(life.blocked_s) * 1e3:.0f} ms (medians)."
        )
        return life

    def _kill_and_resume(self) -> tuple[Torn, Life, Life]:
        self.screen.stage("The same run, killed in the middle of a save")
        torn, first = self._kill()
        root = self.folder / "killed"
        committed = ss.open(root).steps()
        check(torn.step not in committed, f"step {torn.step} is committed")
        check(not (root / f"step-{torn.step}").exists(), f"step-{torn.step} is visible")
        check((torn.folder).is_dir(), "no torn staging folder was left")
        whole_bytes = _payload_bytes(root / f"step-{committed[-1]}")
        left_bytes = _payload_bytes(torn.folder)
        self.screen.proven(
            f"rank 0, which hosts the coordinator, got SIGKILL while step {torn.step} was written: "
            f"{_mib(left_bytes)} of {_mib(whole_bytes)} lie in .stepseal/staging, without a "
            f"manifest, and there is no step-{torn.step}. torchrun ended the other rank. "
            f"Committed steps: {', '.join(map(str, committed))}."
        )
        second = self._job("killed", "resumed")
        check(second.resumed == committed[-1], f"resumed from {second.resumed}")
        check(not second.skipped, f"skipped {second.skipped}")
        check(not torn.folder.exists(), "the torn staging folder was not swept")
        self.screen.proven(
            f"started again: resumed from step {second.resumed} in {second.restore_s:.1f} s, "
            f"trained to step {max(second.losses)}; the torn folder was swept."
        )
        return torn, first, second

    def _kill(self) -> tuple[Torn, Life]:
        """Kill the job in a save; a save that was quicker than the signal is tried again."""
        settings = SIZES[self.size]
        root = self.folder / "killed"
        for _ in range(_MAX_TRIES):
            life = self._job("killed", kill_from=settings.kill_from)
            torn = life.killed_in
            check(torn is not None, "no save was seen while it was written")
            assert torn is not None
            check(life.exit_code != 0, "the job survived the loss of a rank")
            if torn.step not in ss.open(root).steps():
                return torn, life
            shutil.rmtree(root)
        raise DemoFailed(f"{_MAX_TRIES} times the save was committed before the signal arrived")

    def _compare(self, steady: Life, torn: Torn, first: Life, second: Life) -> None:
        self.screen.stage("Is it the same run?")
        resumed = second.resumed or 0
        self.screen.curves(
            {
                "undisturbed": (1, list(steady.losses.values())),
                f"killed saving {torn.step}": (1, list(first.losses.values())),
                f"resumed from {resumed}": (resumed + 1, list(second.losses.values())),
            }
        )
        for life in (first, second):
            for step, loss in life.losses.items():
                same = loss == steady.losses[step]
                check(same, f"loss of step {step}: {loss!r}, undisturbed {steady.losses[step]!r}")
        check(max(second.losses) == max(steady.losses), "the resumed run ended early")
        repeated = len(first.losses) + len(second.losses)
        self.screen.proven(f"all {repeated} losses of both lives are equal as floats")
        self._compare_components("killed")

    def _compare_components(self, name: str) -> None:
        steady, other = self._step("undisturbed"), self._step(name)
        ours, theirs = leaf_digests(steady), leaf_digests(other)
        rows = []
        for entry in steady.manifest.components:
            one, two = ours[entry.name], theirs.get(entry.name, {})
            num_owners = len(set(entry.payloads.values()))
            what = f"{len(one)} leaves" + (f", {num_owners} ranks" if num_owners > 1 else "")
            digests = component_digest(one)[:12], component_digest(two)[:12]
            rows.append((entry.name, entry.sharing, what, *digests))
        self.screen.table(("component", "sharing", "compared", "undisturbed", name), rows)
        differing = [
            path
            for component in ours.keys() | theirs.keys()
            for path in ours.get(component, {}).keys() | theirs.get(component, {}).keys()
            if ours.get(component, {}).get(path) != theirs.get(component, {}).get(path)
        ]
        check(not differing, f"step {other.step} differs in {sorted(differing)[:10]}")
        num_leaves = sum(map(len, ours.values()))
        self.screen.proven(f"step {steady.step}: all {num_leaves} leaves are equal to the last bit")

    def _look_at_the_root(self) -> None:
        self.screen.stage("What is on disk, by the command line")
        root = self.folder / "killed"
        for arguments in (["ls", str(root)], ["show", str(root)], ["verify", str(root)]):
            self._cli(arguments, 0)

    def _damage(self) -> Life:
        self.screen.stage("One flipped bit")
        root = self.folder / "damaged"
        steps = ss.open(self.folder / "killed").steps()
        older = [f"step-{step}" for step in steps[:-2]]
        shutil.copytree(self.folder / "killed", root, ignore=shutil.ignore_patterns(*older))
        payload = root / f"step-{steps[-1]}" / "__1_0.distcp"
        offset = flip_bit(payload)
        self.screen.say(
            f"In a copy of the newest two steps, one bit of byte {offset} of "
            f"{payload.relative_to(self.folder)} is flipped."
        )
        self._cli(["verify", str(root), str(steps[-1])], _DAMAGED_EXIT_CODE)
        self.screen.proven(f"verify found it: exit code {_DAMAGED_EXIT_CODE}")
        self._read_on_one_process(root, steps)
        life = self._job("damaged")
        check(life.resumed == steps[-2], f"resumed from {life.resumed}, expected {steps[-2]}")
        check(list(life.skipped) == [f"step-{steps[-1]}"], f"skipped {life.skipped}")
        self.screen.proven(f"the job on that root fell back to step {life.resumed}, because of")
        for name, reason in life.skipped.items():
            self.screen.verbatim(f"{name}: {reason}")
        self.screen.say("It trained on from there, and made the lost step again:")
        self._compare_components("damaged")
        return life

    def _read_on_one_process(self, root: Path, steps: tuple[int, ...]) -> None:
        """Read on one process what two ranks saved: only the step that is whole."""
        run = ss.open(root)
        try:
            loss_on_one_process(run.step(steps[-1]), SIZES[self.size].model)
        except ss.errors.Corrupt as error:
            self.screen.proven("a reader on one process gets no byte of it into a model:")
            self.screen.verbatim(f"{type(error).__name__}: {error}")
        else:
            raise DemoFailed("a damaged step was read without an error")
        loss = loss_on_one_process(run.step(steps[-2]), SIZES[self.size].model)
        same = loss_on_one_process(
            ss.open(self.folder / "undisturbed").step(steps[-2]), SIZES[self.size].model
        )
        check(loss == same, f"step {steps[-2]} gives loss {loss!r} here, {same!r} undisturbed")
        self.screen.proven(
            f"step {steps[-2]}, saved by 2 ranks, loads into a plain module: loss {loss:.4f}"
        )

    def _read_with_stock_tools(self) -> int:
        self.screen.stage("Without stepseal: stock PyTorch reads the same folder")
        step = self._step("killed")
        num_loaded = compare_stock_load(step)
        self.screen.proven(f"torch.distributed.checkpoint.load: {num_loaded} tensors, equal")
        target = self.folder / "converted.pt"
        line, num_converted = compare_converted(step, target)
        self.screen.command(line, "")
        self.screen.proven(
            f"an ordinary file of torch.save, {_mib(target.stat().st_size)}: "
            f"all {num_converted} tensors equal"
        )
        target.unlink()
        check(num_loaded == num_converted, "the two stock readers found different tensors")
        return num_loaded

    def _close(
        self, steady: Life, torn: Torn, second: Life, fallback: Life, num_stock: int
    ) -> None:
        num_components = len(self._step("killed").manifest.components)
        blocked_s = statistics.median(steady.blocked_s)
        self.screen.closing(
            "stepseal: everything held",
            [
                f"Killed while saving step {torn.step}: the half-written step never became "
                f"visible, and the job resumed from step {second.resumed}.",
                f"Exact: all {len(steady.losses)} losses and all {num_components} components are "
                "bit-identical to a run that was never killed.",
                "Verified: one flipped bit was found and refused, and the job fell back to step "
                f"{fallback.resumed} by itself.",
                f"Plain: stock PyTorch reads the same folder, {num_stock} tensors, bit for bit.",
                f"Behind the training loop: a save kept it waiting for {blocked_s * 1e3:.0f} ms; "
                f"a step takes {statistics.median(steady.step_s) * 1e3:.0f} ms.",
            ],
        )

    def _step(self, name: str) -> ss.Step:
        step = ss.open(self.folder / name).latest()
        check(step is not None, f"{name}: no step")
        assert step is not None
        last = SIZES[self.size].num_steps
        check(step.step == last, f"{name}: newest step is {step.step}, expected {last}")
        return step

    def _job(self, root: str, name: str | None = None, kill_from: int | None = None) -> Life:
        history = self.folder / f"{name or root}.jsonl"
        history.unlink(missing_ok=True)
        with self.screen.progress(name or root, SIZES[self.size].num_steps) as on_step:
            return run_job(self.folder / root, history, self.size, on_step, kill_from=kill_from)

    def _cli(self, arguments: list[str], exit_code: int) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "stepseal", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "NO_COLOR": "1"},
        )
        line = f"stepseal {' '.join(arguments)}"
        self.screen.command(line, done.stdout + done.stderr)
        found = done.returncode
        check(found == exit_code, f"{line}: expected exit code {exit_code}, found {found}")


def _payload_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.distcp"))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"


if __name__ == "__main__":
    main()
