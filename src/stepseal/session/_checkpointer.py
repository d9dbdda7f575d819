"""The facade of a training job: one object per process saves and restores all components.

It holds no protocol logic: the coordinator decides, `_saving` and `_restoring` move bytes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from stepseal.layout import check_step
from stepseal.protocol import Deadlines
from stepseal.retention import as_retention, check_publish_keep
from stepseal.session._annotations import check_annotations, check_published
from stepseal.session._announcing import as_functions
from stepseal.session._closing import Closing, end_all
from stepseal.session._exit import close_at_exit, closed
from stepseal.session._inflight import InFlight
from stepseal.session._loop import Loop, Looping
from stepseal.session._nodes import node_text
from stepseal.session._points import Points, timing_of
from stepseal.session._restoring import check_choice
from stepseal.session._rules import SaveRule, Trigger, check_mode, when_of
from stepseal.session._saving import capture_all
from stepseal.session._share import Share
from stepseal.session._termination import Termination
from stepseal.session._wiring import JobOptions, join_process_group
from stepseal.steps import locate_root
from stepseal.storage import Access

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from stepseal.components import Conversion, DeclaredSharing, Reshard, Validation
    from stepseal.retention import KeepRule, Retention
    from stepseal.session._annotations import Annotations
    from stepseal.session._announcing import OnCommit
    from stepseal.session._pending import PendingSave
    from stepseal.session._policies import Policy
    from stepseal.session._reports import Restored
    from stepseal.session._wiring import Join

__all__ = ["Checkpointer"]


class Checkpointer(Looping, Closing):
    """Saves and restores everything a job needs to go on exactly where it was, as one step per cut.

    In an SPMD job (a default process group exists) every rank makes one, adds the same components
    and makes the same calls in the same order; rank 0 hosts the coordinator. Without a process
    group it stands alone. Use it as a context manager: leaving the block waits for the save in
    flight and raises what failed.

    Args:
        root: directory of the run's steps; made by the coordinator if it is missing.
        save: when `step` saves, for example `every(steps=500) | on_signal("SIGTERM")`; None leaves
            saving to `save`. Of triggers, rank 0's count, but for signals.
        keep: which steps stay, for example `latest(3)`; the others are pruned after each commit.
            None keeps all. Rank 0's counts.
        on_commit: function, or list of functions, that rank 0 calls with a `Commit` of each durable
            step, in order, on a thread of its own: for uploads, trackers and pointer files. What it
            raises is logged; `close` waits for it, at most `deadlines.close_s`.
        publish_keep: how many publications stay, besides those that are being read.
        mode: `async` copies the state and writes it behind; `sync` returns when the step is
            committed.
        deadlines: how long anybody waits for anybody.
        role: first part of the participant ids of this job, `trainer` in `trainer/3`.
        max_staging_bytes: bound of this process's private memory for asynchronous saves; None for
            no bound.
        access: modes of what is made, and whether a root that others can change is accepted; None
            makes files for the owner alone, and refuses such roots.
        control_host: address or name of rank 0 for the control plane; None offers all its
            addresses, or loopback where all ranks are on one host. Rank 0's counts.
        control_port: port of rank 0, or a `range` of them, for firewalls. Rank 0's counts.
        node: name of this process's node, for `PER_NODE`; None takes torchrun's GROUP_RANK, or else
            the machine's boot id.
        alone: this process is a job by itself, although its launcher set WORLD_SIZE above 1.
        progress: whether rank 0 shows on a terminal how far a save or restore is that takes over
            2 s, and what each cost. Never with CI or NO_COLOR in the environment.

    Raises:
        InvalidInput: an argument is wrong, the root is a file or a DCP folder itself, or others can
            write there.
        IncompatibleFormat: the root was made by a newer format version.
        StorageUnavailable: the root cannot be made or written.
        CoordinatorLost: the ranks did not find each other within `deadlines.connect_s`; `problems`
            lists the addresses that were tried.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        save: SaveRule | Trigger | None = None,
        keep: KeepRule | Retention | None = None,
        on_commit: OnCommit | Iterable[OnCommit] | None = None,
        publish_keep: int = 2,
        mode: Literal["async", "sync"] = "async",
        deadlines: Deadlines | None = None,
        role: str = "trainer",
        max_staging_bytes: int | None = None,
        access: Access | None = None,
        control_host: str | None = None,
        control_port: int | range | None = None,
        node: str | int | None = None,
        alone: bool = False,
        progress: bool = True,
        _join: Join | None = None,
    ) -> None:
        check_mode(mode)
        when = when_of(save)
        self._root = locate_root(root)
        self._rule = when.rule
        self._mode = mode
        rules = (as_retention(keep), access or Access())
        control = (control_host, control_port)
        told, kept = as_functions(on_commit), check_publish_keep(publish_keep)
        limits, timing = deadlines or Deadlines(), timing_of(when)
        options = JobOptions(limits, *rules, *control, told, (), kept, timing, progress)
        self._flight = InFlight(max_staging_bytes)
        join = _join or partial(join_process_group, role, node=node_text(node), alone=alone)
        self._topology, self._wiring = join(self._root, options)
        self._share = Share(self._topology, self._flight)
        self._registry = self._share.registry
        self._policies, self._progress = self._share.policies, self._share.progress
        self._loop = Loop(self._registry, self._topology)
        self._points = Points(when, self._share, self._wiring, self._loop)
        self._termination = Termination(self._flight)
        watches = (self._points, self._termination)
        self._end = partial(end_all, self._flight, self._wiring, watches)
        close_at_exit(self, self._end, self._flight.title)

    def add(
        self,
        name: str,
        state: object,
        *,
        sharing: DeclaredSharing | None = None,
        kind: Literal["tensors", "tree"] | None = None,
        on_restore: Policy = "require",
        on_world_change: Literal["fresh"] | Reshard | None = None,
        validate: Validation | None = None,
        exclude: Sequence[str] = (),
        required: bool = True,
    ) -> None:
        """Make `state` part of every step, under `name`.

        Every rank adds the same names. Accepted are an `nn.Module`, an `Optimizer`, an LR
        scheduler, `RNG()`, anything with `state_dict()` and `load_state_dict()`, a `(get, set)`
        pair, and a dict or list of plain values or tensors (restored in place).

        Args:
            name: component name, for example `model`.
            state: the live object.
            sharing: how it relates across ranks, or a function that returns this at each save (a
                restore then goes by what was saved); None takes the default where there is one.
            kind: `tensors` stores a `state_dict()` as DCP payload; None decides by type.
            on_restore: `require`: a step must have it. `if-present`: restored where a step has it.
                `skip`: never touched. `fresh`: the same, recorded as a restart; `RNG()` then begins
                streams that derive from a recorded seed, the step and the rank.
            on_world_change: for state of each rank, set or node where these are not as at the save:
                `fresh`, or a function `(states, old, new)` that returns this rank's state.
            validate: how each save compares what several ranks hold: `none`; `warn` logs that it
                differs; `quick` fails; `tensor` also says where; `full` also by how much, and reads
                back what was written. None: `tensor` for modules under DDP or of DTensors, `warn`
                for others of no declared sharing, `quick` for other state.
            exclude: patterns of paths that are not compared, such as `state.*.exp_avg`.
            required: False lets a save go on without it where it fails or differs, with a warning.

        Raises:
            InvalidInput: the name is taken or not usable, the type is not known, the sharing must
                be declared, or the first save or restore has already happened.
        """
        self._check_open()
        self._share.add(
            name,
            state,
            sharing=sharing,
            kind=kind,
            on_restore=on_restore,
            on_world_change=on_world_change,
            validate=validate,
            exclude=exclude,
            required=required,
        )

    def restore(
        self,
        step: int | None = None,
        *,
        fresh: bool = False,
        policies: Mapping[str, Policy] | None = None,
        only: Collection[str] | None = None,
        convert: Mapping[str, Conversion] | None = None,
        unverified: bool = False,
        check_only: bool = False,
    ) -> Restored | None:
        """Bring all components back from one committed step, on all ranks alike.

        Every rank calls it, before training. Blocks. Only bytes whose digest matched reach live
        state. Without a number it takes the newest resumable step of the job's lineage; if that one
        is damaged, all ranks fall back together to the next older one, which overwrites everything,
        and `skipped` says why.

        Args:
            step: restore exactly this step and never another.
            fresh: start anew beside the steps that are there.
            policies: component to policy, before those of `add`; `skip` also leaves out what is in
                the step and was not added.
            only: restore these and skip all others, added or not.
            convert: name of a module to how its saved keys and dtypes become the live ones.
            unverified: take a foreign DCP folder `step-N`, which no digest covers: the newest one
                if the root has no step of stepseal, or the one that `step` names.
            check_only: return what a restore would do, or raise as it would; touch and claim
                nothing.

        Returns:
            What was restored, with the load report, or None when the root has no step of stepseal
            at all, or `fresh` was asked for. Checkpoints of somebody else beside a fresh start are
            named in a warning.

        Raises:
            NoResumableStep: there are steps, but none can be resumed; `.reasons` says why for each.
            StepNotFound: `step` is not there; or `unverified`, and there is nothing to take.
            Corrupt: `step` is damaged.
            StateMismatch: saved and live state differ, or ranks chose differently; `.problems`
                lists all differences, nothing was changed.
            InvalidInput: arguments exclude each other, or a name is neither added nor in the step.
            ParticipantFailed: a rank failed or did not answer; if live state was touched, `save`
                and `step` refuse until a restore succeeds.
        """
        self._check_open()
        step = check_choice(step, fresh=fresh, unverified=unverified)
        sets = self._registry.declared_sets(self._topology)
        choice = self._policies.choose(policies, only, convert, sets)
        self._settle_previous()
        self._registry.check_savable(self._topology)
        self._loop.restoring()
        self._progress.started = self._progress.started or not check_only
        targets = self._share.targets(choice)
        number = self._wiring.driver.new_call()
        call = choice.call(number, step, fresh=fresh, unverified=unverified, check_only=check_only)
        restored = self._share.restore(self._wiring, self._root, call, targets).run()
        if not check_only:
            self._loop.restored(restored, targets.restored(restored))
        return restored

    def step(self, step: int, *, metrics: Mapping[str, float] | None = None) -> PendingSave | None:
        """Tell that a training step is done: save if it is time, raise what failed behind.

        Every rank calls it once per training step, with the same number. Here all ranks hear of a
        trigger, at the same step: they save, and `should_stop` may become True.

        Args:
            step: number of the training step.
            metrics: facts for the manifest, used when this step is saved; rank 0's count.

        Returns:
            The save that was started, if any.

        Raises:
            ParticipantFailed: an earlier save failed in the background; all ranks raise it at the
            same step.
        """
        step = check_step(step)
        self._check_open()
        self._progress.check_not_tainted()
        self._loop.begin()
        self._progress.told(step)
        self._share.look_ahead(self._wiring, self._mode)
        if self._points.pass_one(step) or (self._rule is not None and self._rule.due(step)):
            return self._save(step, check_annotations(metrics, (), None))
        self._registry.check_savable(self._topology, first_step=True)
        return None

    def save(
        self,
        step: int,
        *,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
        cut: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> PendingSave:
        """Save all components as `step`, on all ranks alike.

        Every rank calls it. Returns when all ranks hold a private copy of their state and agreed on
        the cut (`async`), or when the step is committed and durable (`sync`). Waits for the
        previous save first. The newest step, if the loop is still there, is not saved again: its
        handle comes back.

        Args:
            step: training step, above every step that this job restored or committed.
            metrics: facts for the manifest; rank 0's count.
            tags: words for the manifest; rank 0's count.
            cut: point in the job's own history, for example `{"version": 7}`; equal on all ranks.

        Raises:
            InvalidInput: `step` is no step number, or metrics, tags or cut are not plain.
            StepExists: `step` is already committed, or not above the newest step of this job.
            NotRestored: the root has steps and `restore` was not called.
            StorageUnavailable: there is no memory for the copy of an asynchronous save.
            UnsupportedState: a component holds a value that no codec knows.
            ParticipantFailed: a rank failed (now or behind an earlier call); nothing was committed.
            StateMismatch: ranks hold different state under one name; nothing was committed.
            CommitTimeout: a rank did not answer in time.
        """
        step = check_step(step)
        notes = check_annotations(metrics, tags, cut)
        self._check_open()
        self._progress.check_not_tainted()
        self._loop.begin()
        self._points.pass_one(step)  # whatever is due: it saves here
        return self._save(step, notes)

    def _save(self, step: int, notes: Annotations) -> PendingSave:
        self._policies.check_any()
        self._registry.check_complete()
        self._settle_previous()
        if (found := self._progress.saved_already(step)) is not None:
            self._points.tell_saved_already(step, notes)
            return found
        self._progress.check_grows(step)
        self._loop.saving(step)
        call = self._wiring.driver.new_call()
        with self._termination.off(step):
            return self._share.save(self._wiring, call, step, self._root, self._mode, notes)

    def publish(
        self,
        version: int,
        *,
        components: Collection[str],
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
        cut: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> PendingSave:
        """Publish some components for readers as `version`, on all ranks alike.

        Every rank calls it. As `save`, but into `published/v-<version>`: no restore ever takes it,
        and `latest` stays. Waits for the previous save or publication first. `ss.open(root)` reads.

        Args:
            version: above every version that was published in this root.
            components: their names, for example `["model"]`.
            metrics: see `save`.
            tags: see `save`.
            cut: see `save`.

        Raises:
            InvalidInput: a component was not added, or an argument is wrong.
            StepExists: the version does not grow.
            CheckpointError: see `save`.
        """
        version = check_step(version, "version")
        notes = check_annotations(metrics, tags, cut)
        self._check_open()
        names = check_published(components, self._registry.names())
        self._progress.check_not_tainted()
        self._settle_previous()
        call = self._wiring.driver.new_call()
        return self._share.save(self._wiring, call, version, self._root, self._mode, notes, names)

    def prewarm(self) -> int:
        """Allocate and touch the private memory of asynchronous saves; return its bytes.

        Optional: without it the first save pays for fresh memory. Optimizer state that does not
        exist yet is not counted.

        Raises:
            InvalidInput, StorageUnavailable: the memory is not allowed, or not there.
        """
        self._check_open()
        self._settle_previous()
        staging = self._flight.staging(self._topology.num_on_node)
        components, rules = self._registry.components(), self._registry.rules()
        capture_all(components, self._topology, staging, 0, rules=rules, digests=False)
        return staging.held_bytes

    def close(self) -> None:
        """Wait for the save in flight, say goodbye to the others, and free everything. Idempotent.

        Raises:
            ParticipantFailed: the save in flight failed, and nobody saw it yet; everything is freed
            nevertheless.
        """
        if self._closed or not self._wiring.home.is_here:
            return
        self._closed = True
        closed(self)
        self._loop.end()
        self._end()

    def _settle_previous(self) -> None:
        """Wait for the save in flight; raise its failure unless it was seen."""
        try:
            self._share.settle()
        finally:
            self._termination.end()
