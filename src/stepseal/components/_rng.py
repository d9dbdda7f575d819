"""The random streams of a process as one component. Capturing reads states and moves no stream."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from stepseal.components._codecs_random import bit_state_problem, numpy_kind, set_numpy
from stepseal.components._codecs_words import qualified
from stepseal.components._reseed import Streams, reseed
from stepseal.components._torch_in_use import class_of, torch_in_use
from stepseal.components._trees import TreeComponent, TreePlan
from stepseal.components._types import AnySharing, Sharing, Topology
from stepseal.errors import InvalidInput
from stepseal.layout import Division, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    import torch

__all__ = ["RNG", "RNGComponent"]

_STREAMS = frozenset({"python", "numpy", "torch", "cuda", "numpy_generators", "torch_generators"})


@dataclass(frozen=True, slots=True)
class RNG:
    """Stands for the random streams of this process: `ckpt.add("rng", RNG())`.

    Always: Python's `random`, torch's CPU stream, the stream of every CUDA device once CUDA is in
        use, and NumPy's global stream once NumPy is imported. Generators of your own are restored
        in place.
    """

    numpy: Sequence[np.random.Generator | np.random.RandomState] = ()
    """Generators to save as well; at a restore as many, of the same kinds, in the same order."""
    torch: Sequence[torch.Generator] = ()
    """Generators to save as well; at a restore as many, on the same kinds of device, in order."""


class RNGComponent(TreeComponent):
    """All random streams of a participant; PER_RANK unless declared."""

    default_sharing: ClassVar[Sharing | None] = Sharing.PER_RANK

    def __init__(self, name: str, rng: RNG, declared: AnySharing | None = None) -> None:
        super().__init__(name, declared)
        self._numpy, self._torch = tuple(rng.numpy), tuple(rng.torch)
        self._restored: object = None
        of_torch = class_of("torch", "Generator")
        wrong: list[object] = [one for one in self._torch if not isinstance(one, of_torch)]
        wrong += [one for one in self._numpy if numpy_kind(one) is None]
        if wrong:
            raise InvalidInput(
                f"component {name!r}: expected numpy generators in RNG(numpy=[...]) and torch "
                f"generators in RNG(torch=[...]), found {[qualified(type(one)) for one in wrong]}.",
                component=name,
            )

    def read_state(self) -> object:
        """Return the states of all streams that are in use; torch's CPU stream always is."""
        return self._states(_torch_states())

    def _states(self, of_torch: Mapping[str, object]) -> dict[str, object]:
        """Return the states of all streams, those of torch as they are given."""
        state: dict[str, object] = {"python": random.getstate(), **of_torch}
        if "numpy.random" in sys.modules:  # unused otherwise; a save must not import it
            state["numpy"] = _numpy_global().get_state(legacy=False)
        if self._numpy:
            state["numpy_generators"] = list(self._numpy)
        if self._torch:
            state["torch_generators"] = [
                {"device": one.device.type, "state": one.get_state()} for one in self._torch
            ]
        return state

    def restart(self, seed: str, step: int, topology: Topology) -> TreePlan:
        """Plan to begin all streams anew, each rank with streams of its own; change nothing.

        Ranks that share one state begin alike, by the lowest of them.

        Args:
            seed: what the new streams derive from, with `step` and the rank; any text.
            step: number of the step that is restored.
            topology: who takes part.
        """
        sharing, rank = self.sharing(topology), topology.rank
        if isinstance(sharing, Division):
            rank = sharing.ranks_at(sharing.coordinates()[rank])[0]
        elif rule_of(sharing).any_world:
            rank = 0
        streams = Streams(seed, step, rank)
        return TreePlan(lambda: self._restart(streams))

    def _restart(self, streams: Streams) -> None:
        reseed(streams, self._numpy, self._torch)
        self._restored = copy.deepcopy(self.read_state())

    def state_problems(self, value: object) -> list[str]:
        """Try each state on a scratch generator, and name all that cannot be restored here."""
        import torch

        if not isinstance(value, dict) or not {"python", "torch"} <= set(value) <= _STREAMS:
            return [f"expected the streams {sorted(_STREAMS)}, found {_names(value)}"]
        problems = _tried("python", random.Random(0).setstate, value["python"])
        problems += _tried("torch", torch.Generator().set_state, value["torch"])
        if "numpy" in value:
            problems += _numpy_global_problems(value["numpy"])
        problems += _cuda_problems(value.get("cuda", []))
        problems += self._numpy_problems(value.get("numpy_generators", []))
        problems += self._torch_problems(value.get("torch_generators", []))
        return problems

    def write_state(self, value: object) -> None:
        """Set exactly the streams that were saved, and keep their states for `put_back`."""
        self._set_streams(value)
        self._restored = value

    def put_back(self) -> None:
        """Set the streams once more to what the last restore set."""
        if self._restored is not None:
            self._set_streams(self._restored)
            self._restored = None

    def forget(self) -> None:
        """Let `put_back` do nothing until the next restore."""
        self._restored = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Leave the streams after the block as they were before it; never loads torch."""
        before = copy.deepcopy(self._states(_torch_states() if torch_in_use() else {}))
        try:
            yield
        finally:
            self._set_streams(before)

    def holds(self, generator: torch.Generator) -> bool:
        """Tell whether `generator` is saved here."""
        return any(one is generator for one in self._torch)

    def _set_streams(self, value: object) -> None:
        streams = cast("dict[str, Any]", value)
        random.setstate(streams["python"])
        if "torch" in streams:
            import torch

            torch.set_rng_state(streams["torch"])
            for index, state in enumerate(streams.get("cuda", [])):
                torch.cuda.set_rng_state(state, index)
        if "numpy" in streams:
            _numpy_global().set_state(streams["numpy"])
        for live, saved in zip(self._numpy, streams.get("numpy_generators", []), strict=True):
            set_numpy(live, saved)
        for generator, saved in zip(self._torch, streams.get("torch_generators", []), strict=True):
            generator.set_state(saved["state"])

    def _numpy_problems(self, saved: object) -> list[str]:
        if not isinstance(saved, list) or len(saved) != len(self._numpy):
            return [f"numpy generators: expected {len(self._numpy)}, found {_count(saved)}"]
        pairs = enumerate(zip(self._numpy, saved, strict=True))
        return [
            f"numpy generators[{index}]: expected {numpy_kind(live)}, found {numpy_kind(one)}"
            for index, (live, one) in pairs
            if numpy_kind(live) != numpy_kind(one)
        ]

    def _torch_problems(self, saved: object) -> list[str]:
        import torch

        if not isinstance(saved, list) or len(saved) != len(self._torch):
            return [f"torch generators: expected {len(self._torch)}, found {_count(saved)}"]
        problems = []
        for index, (live, one) in enumerate(zip(self._torch, saved, strict=True)):
            where = f"torch generators[{index}]"
            if (
                not isinstance(one, dict)
                or set(one) != {"device", "state"}
                or one["device"] != live.device.type
            ):
                found = one.get("device") if isinstance(one, dict) else qualified(type(one))
                problems.append(
                    f"{where}: expected a generator on {live.device.type}, found {found}"
                )
            else:
                problems += _tried(where, torch.Generator(live.device).set_state, one["state"])
        return problems


def _names(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, dict) else qualified(type(value))


def _count(value: object) -> object:
    return len(value) if isinstance(value, list) else qualified(type(value))


def _tried(stream: str, put: Callable[[Any], object], state: object) -> list[str]:
    try:
        put(state)
    except (RuntimeError, TypeError, ValueError, OverflowError, LookupError) as error:
        return [f"{stream}: the saved state does not fit: {error}"]
    return []


def _numpy_global() -> Any:  # noqa: ANN401 - a module
    import numpy as np

    return np.random


def _numpy_global_problems(state: object) -> list[str]:
    problem = bit_state_problem(state, legacy=True)
    if problem is not None:
        return [f"numpy: {problem}"]
    try:
        live = _numpy_global().get_state(legacy=False)
    except ImportError:
        return ["numpy: a saved stream cannot be restored without numpy: install it"]
    saved = cast("Mapping[str, object]", state)["bit_generator"]
    if live["bit_generator"] != saved:
        return [f"numpy: expected the bit generator {live['bit_generator']}, found {saved}"]
    return []


def _torch_states() -> dict[str, object]:
    """Return the states of torch's own streams: the CPU's, and those of CUDA once it is in use."""
    import torch

    states: dict[str, object] = {"torch": torch.get_rng_state()}
    # Asking for a state would bring CUDA to life, and a save must not do that.
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = [torch.cuda.get_rng_state(at) for at in range(torch.cuda.device_count())]
    return states


def _cuda_problems(states: object) -> list[str]:
    import torch

    if not isinstance(states, list):
        return [f"cuda: expected a list of states, found {qualified(type(states))}"]
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(states) > here:
        return [
            f"cuda: saved streams of {len(states)} devices, here {here}: restore where as many "
            "are visible"
        ]
    problems = []
    for index, state in enumerate(states):
        problems += _tried(f"cuda:{index}", torch.Generator(f"cuda:{index}").set_state, state)
    return problems
