"""What a restore fills, as one participant sees it, and what is decided for each component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stepseal.components import (
    MADE_ANEW,
    Conversion,
    RNGComponent,
    can_convert,
    changed_world,
    entries_left,
    leave_out,
    range_problem,
    reshard_saved,
    unsaved_buffers,
)
from stepseal.errors import CheckpointError, InvalidInput, ParticipantFailed, StateMismatch
from stepseal.layout import can_read

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from stepseal.components import (
        Component,
        RangeScan,
        RestorePlan,
        SavedComponent,
        SavedPayloads,
        Taken,
        Topology,
    )
    from stepseal.layout import AnySharing
    from stepseal.session._policies import Choice, Policy
    from stepseal.session._reports import Restored

__all__ = ["Decisions", "SavedStep", "Targets", "apply_all", "listed"]

_NAMED = 10
"""Differences, or buffers, that a text names before it counts the others."""


@dataclass(frozen=True, slots=True)
class SavedStep:
    """What a step offers to live state."""

    step: int
    names: Collection[str]
    """Its components."""
    nums_holders: Mapping[str, int]
    """Component to how many participants saved it; empty where nobody knows (a foreign folder)."""
    expected_here: Collection[str]
    """The components that this participant must have added, or leave out by a policy."""
    seed: str
    """What fresh random streams derive from: a digest that names exactly this step."""
    open: Callable[[Component], SavedComponent]
    """Returns what the step holds for a live component."""
    note: str = ""
    """Stands in the report of each component that is restored."""
    sharings: Mapping[str, AnySharing] = field(default_factory=dict)
    """Component to the sharing that it was saved with; empty where nobody knows."""
    payloads: Callable[[str], SavedPayloads | None] = lambda _name: None
    """Returns all payloads of a component; None where it has no trees."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Component that the save left out, as it was not required, to the reason."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What is done with each component; making them touched nothing."""

    plans: tuple[tuple[Component, RestorePlan], ...]
    """How live state takes what is restored, and how fresh streams begin; the RNG comes last."""
    report: Mapping[str, str]
    """Component to what was, or would be, done with it; the same on all participants."""
    fresh: Mapping[str, Mapping[str, object]]
    """Component that begins anew to what is recorded of it."""

    def taken(self) -> dict[str, Taken]:
        """Return, per component whose ranks hold different keys, what this one takes."""
        found = {component.name: getattr(plan, "taken", None) for component, plan in self.plans}
        return {name: taken for name, taken in found.items() if taken is not None}

    def left(self) -> dict[str, str]:
        """Return what this participant leaves to others, per component, as bits in hex."""
        return {name: taken.left() for name, taken in self.taken().items()}

    def nobody_takes(self, left: Mapping[str, str]) -> tuple[str, ...]:
        """Return a problem for each entry that all participants leave; none for other roles."""
        taken = self.taken()
        return tuple(
            f"component {name}: {entry}: unexpected in the checkpoint: no rank takes it"
            for name, bits in left.items()
            if name in taken
            for entry in entries_left(taken[name], bits)
        )

    def scans(self) -> Iterator[tuple[str, str, RangeScan]]:
        """Yield component, saved key, and what looks at its elements before anything changes."""
        for component, plan in self.plans:
            for key, scan in plan.scans.items():
                yield component.name, key, scan


def apply_all(
    plans: Iterable[tuple[Component, RestorePlan]], check_cancelled: Callable[[], None]
) -> None:
    """Finish each component after all sinks were filled; changes live state.

    Raises:
        CheckpointError: from a component, as it is.
        ParticipantFailed: a component raised anything else; that exception is the cause.
    """
    for component, plan in plans:
        check_cancelled()
        try:
            plan.apply()
        except CheckpointError:
            raise
        except Exception as error:
            text = (
                f"component {component.name} could not be restored: it raised "
                f"{type(error).__name__}: {error}. Add an object that takes the saved state; "
                f"{leave_out(component.name)} leaves it as it is now"
            )
            raise ParticipantFailed(text, component=component.name) from error


@dataclass(frozen=True, slots=True)
class Targets:
    """The live state that a restore fills, and what was chosen for it."""

    components: Sequence[Component]
    choice: Choice
    topology: Topology
    go_by: Callable[[str, AnySharing], None] = lambda _name, _saved: None
    """Lets a component whose sharing is a function go by what was recorded at the save."""
    has_other_roles: bool = False
    """Participants of other roles hold the other components of a step."""

    def decide(self, saved: SavedStep) -> Decisions:
        """Decide for each component, and plan how live state takes it; touch nothing.

        Raises:
            InvalidInput: a policy of a component that is neither added here nor in the step.
            StateMismatch: saved and live state differ; `.problems` lists every difference.
        """
        self._check_names(saved)
        problems, report = self._not_added(saved), self._left_out(saved)
        fresh: dict[str, dict[str, object]] = {}
        plans: list[tuple[Component, RestorePlan]] = []
        for component in self.components:
            name = component.name
            if name in saved.sharings:
                self.go_by(name, saved.sharings[name])
            policy, why = self._policy_of(component, saved)
            if policy == "fresh":
                fresh[name] = {"step": saved.step}
                report[name] = f"fresh: left as it was{why}"
                if isinstance(component, RNGComponent):
                    fresh[name]["seed"] = saved.seed
                    anew = component.restart(saved.seed, saved.step, self.topology)
                    plans.append((component, anew))
                    report[name] = f"fresh: streams from seed {saved.seed}, step and rank{why}"
            elif policy == "skip":
                report[name] = "left as it was (skip)"
            elif name in saved.names:
                try:
                    conversion = self.choice.conversions.get(name)
                    opened, note = self._open(component, saved)
                    found = replace(opened, conversion=conversion)
                    plan = component.plan(found, self.topology)
                    plans.append((component, plan))
                    report[name] = _restored(component, found, plan, note)
                except StateMismatch as error:
                    listed = error.problems or (str(error),)
                    problems += [f"component {name}: {problem}" for problem in listed]
            elif policy == "if-present":
                why = saved.left_out.get(name, "")
                why = f"; the save left it out: {why}" if why else ""
                report[name] = f"left as it was (if-present, and not in the step{why})"
            else:
                problems.append(
                    f"component {name}: added here, but not in the step; {leave_out(name)} leaves "
                    "it as it is now, and add(..., on_restore='if-present') restores it from later "
                    "steps"
                )
        self._refuse(problems, saved.step)
        plans.sort(key=lambda plan: isinstance(plan[0], RNGComponent))
        return Decisions(tuple(plans), report, fresh)

    def check_ranges(self, decisions: Decisions, step: int) -> None:
        """Refuse casts that lose elements, once all scans have seen theirs.

        Raises:
            StateMismatch: an element is outside the range of its live dtype; `.problems` lists all.
        """
        problems = [
            f"component {name}: {problem}"
            for name, _, scan in decisions.scans()
            for problem in range_problem(scan.name, scan.live, scan.found)
        ]
        self._refuse(problems, step)

    def way_on(self, problems: Sequence[str]) -> str:
        """Return what to do where saved and live state differ; each text names its component."""
        others = [text for text in problems if MADE_ANEW not in text]
        differing = {text.partition(":")[0].removeprefix("component ") for text in others}
        live = [one for one in self.components if one.name in differing]
        converted = [one.name for one in live if one.name in self.choice.conversions]
        modules = [one.name for one in live if can_convert(one) and one.name not in converted]
        texts = [
            f"Correct convert[{name!r}]{_entries(name, problems, ' ({})')}, or leave it out"
            for name in converted
        ]
        if len(others) < len(problems):
            texts.append("Let the function return a state like those that it gets")
        if others and (len(converted) < len(live) or not live):
            texts.append("Build the objects as they were at the save")
        if modules:
            entries = _entries(modules[0], problems) or "..."
            texts.append(
                "names and dtypes of a module may change: "
                f"convert={{{modules[0]!r}: ss.Conversion({entries})}}"
            )
        if self.choice.conversions:
            texts += [
                f"if {one.name} belongs to a converted module, {fresh_once(one.name)}"
                for one in live
                if not can_convert(one)
            ]
        return "; ".join(texts)

    def check_conversions(self) -> None:
        """Refuse conversions of what cannot be converted, or is not restored.

        Raises:
            InvalidInput: what is wrong; `.problems` lists all.
        """
        given: object = self.choice.conversions
        if not isinstance(given, Mapping):
            raise InvalidInput(
                f"convert: expected a dict, name to ss.Conversion, found {given!r:.80}"
            )
        problems = [
            f"convert[{name!r}]: {problem}"
            for name, conversion in given.items()
            if (problem := self._conversion_problem(name, conversion))
        ]
        if problems:
            raise InvalidInput(f"{'; '.join(problems)}.", problems=tuple(problems))

    def _conversion_problem(self, name: str, conversion: object) -> str | None:
        live = {component.name: component for component in self.components}
        policy = self.choice.policies.get(name)
        if not isinstance(conversion, Conversion):
            return f"expected ss.Conversion(...), found {conversion!r:.80}"
        if name not in live:
            return f"no such component was added; added: {', '.join(live) or 'none'}"
        if not can_convert(live[name]):
            return f"only a module can be converted, which {name} is not; {fresh_once(name)}"
        if policy not in ("require", "if-present"):
            return f"this call does not restore the component ({policy})"
        return None

    def restored(self, found: Restored | None) -> list[Component]:
        """Return the components that took what was saved; `found` is what the restore returned."""
        left = {} if found is None else found.fresh
        return [
            component
            for component in self.components
            if component.name not in left and self.choice.policies[component.name] != "skip"
        ]

    def _policy_of(self, component: Component, saved: SavedStep) -> tuple[Policy, str]:
        """Return the policy of a live component for this step, and why it is not the chosen one."""
        name, policy = component.name, self.choice.policies[component.name]
        if policy == "skip" or name not in self.choice.by_world:
            return policy, ""
        change = self._change(component, saved)
        return ("fresh", f" ({change})") if change else (policy, "")

    def _change(self, component: Component, saved: SavedStep) -> str:
        """Return in what the ranks of the save differ, if those of now cannot read; else nothing.

        It is empty for another sharing, too: the plan says in which they differ.
        """
        live, before = self._sharings(component, saved)
        num_before = saved.nums_holders.get(component.name)
        if num_before is None or not can_read(live, before, component.kind):
            return ""
        return changed_world(live, self.topology.world_size, before, num_before)

    def _sharings(self, component: Component, saved: SavedStep) -> tuple[AnySharing, AnySharing]:
        """Return the sharing of a component now, and that of the save."""
        live = component.sharing(self.topology)
        return live, saved.sharings.get(component.name, live)

    def _open(self, component: Component, saved: SavedStep) -> tuple[SavedComponent, str]:
        """Return what a step holds for a component, resharded if need be, and a note about that."""
        reshard = self.choice.reshards.get(component.name)
        change, payloads = "", None
        if reshard is not None:
            live, before = self._sharings(component, saved)
            is_read = can_read(live, before, "tree")
            other = "" if is_read else f"saved {before.value}, now {live.value}"
            change = other or self._change(component, saved)
            payloads = saved.payloads(component.name) if change else None
        if reshard is None or payloads is None:
            return saved.open(component), saved.note
        found = reshard_saved(component, reshard, payloads, self.topology)
        return found, f"{saved.note}, resharded: {change}"

    def _check_names(self, saved: SavedStep) -> None:
        live = {component.name for component in self.components}
        unknown = sorted(set(self.choice.policies) - live - set(saved.names))
        if unknown:
            problems = [
                f"policies: component {name}: neither added here nor in step {saved.step}"
                for name in unknown
            ]
            raise InvalidInput(
                f"restore: {'; '.join(problems)}; the step has {', '.join(sorted(saved.names))}.",
                step=saved.step,
                problems=tuple(problems),
            )

    def _others(self, saved: SavedStep) -> list[str]:
        return sorted(set(saved.expected_here) - {one.name for one in self.components})

    def _not_added(self, saved: SavedStep) -> list[str]:
        if self.choice.only:
            return []
        return [
            f"component {name}: in the step, but not added here; {leave_out(name)} leaves it out"
            for name in self._others(saved)
            if name not in self.choice.policies
        ]

    def _left_out(self, saved: SavedStep) -> dict[str, str]:
        return dict.fromkeys(self._others(saved), "left out (skip): not added here")

    def _refuse(self, problems: list[str], step: int) -> None:
        if problems:
            raise StateMismatch(
                f"saved and live state differ: {listed(problems, '; ')}. {self.way_on(problems)}",
                step=step,
                participant=self.topology.me,
                problems=tuple(problems),
            )


def fresh_once(name: str) -> str:
    """Return the call that begins a component anew, at one start."""
    return f"restore(policies={{{name!r}: 'fresh'}}) begins it anew, at this start only"


def _entries(name: str, problems: Sequence[str], form: str = "{}") -> str:
    """Return the entries of a conversion that can take such differences away; empty for none."""
    mine = [text for text in problems if text.startswith(f"component {name}:")]
    entry_of = {": missing in": "keep=...", ": unexpected in": "drop=...", ": dtype: ": "cast=..."}
    found = [entry for word, entry in entry_of.items() if any(word in text for text in mine)]
    if {"keep=...", "drop=..."} <= set(found):
        found.insert(0, "rename=...")
    return form.format(", ".join(found)) if found else ""


def _restored(component: Component, saved: SavedComponent, plan: RestorePlan, note: str) -> str:
    size = f", {len(saved.tensors)} tensors" if saved.tensors else ""
    how = getattr(plan, "note", "")
    unsaved = unsaved_buffers(component)
    left = f"; buffers that nobody saves, left as they are: {listed(unsaved)}" if unsaved else ""
    return f"restored{note} ({component.kind}{size}{how and f', {how}'}){left}"


def listed(texts: Sequence[str], comma: str = ", ") -> str:
    """Return the first texts, and the number of the others."""
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return f"{comma.join(texts[:_NAMED])}{more}"
