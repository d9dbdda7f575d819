"""Codecs of random generators, through their states; taking a state never moves the stream.

A generator comes back as a new object of a fixed list of kinds. Its state is checked first, because
some libraries index memory with the numbers that they are given.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from stepseal.components._codecs_arrays import decode_device
from stepseal.components._codecs_core import Codec, Decoder, Encoder
from stepseal.components._codecs_numpy import require_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

__all__ = [
    "GENERATORS",
    "NUMPY_GENERATOR",
    "NUMPY_RANDOM_STATE",
    "bit_state_problem",
    "seed_sequence_of",
]

T = TypeVar("T")

_MAX_POOL = 1024
_MAX_SEED_BITS = 1 << 16


@dataclass(frozen=True, slots=True)
class _BitState:
    """Shape of the state of one bit generator; the bounds are what its C code relies on."""

    arrays: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Name in `state` to dtype and length."""
    ints: Mapping[str, int] = field(default_factory=dict)
    """Name in `state` to the first int that is too large."""
    outer_arrays: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    outer_ints: Mapping[str, int] = field(default_factory=dict)


_HALF = {"has_uint32": 2, "uinteger": 2**32}
_PCG = _BitState(ints={"state": 2**128, "inc": 2**128}, outer_ints=_HALF)
_BIT_STATES: Mapping[str, _BitState] = {
    "MT19937": _BitState({"key": ("uint32", 624)}, {"pos": 625}),
    "PCG64": _PCG,
    "PCG64DXSM": _PCG,
    "Philox": _BitState(
        {"counter": ("uint64", 4), "key": ("uint64", 2)},
        {},
        {"buffer": ("uint64", 4)},
        {"buffer_pos": 5, **_HALF},
    ),
    "SFC64": _BitState({"state": ("uint64", 4)}, {}, {}, _HALF),
}
_LEGACY = {"has_gauss": 2}


def bit_state_problem(state: object, *, legacy: bool = False) -> str | None:
    """Return what is wrong with the state of a NumPy bit generator, None where it is safe.

    Args:
        state: as `BitGenerator.state` or, when `legacy`, as `RandomState.get_state(legacy=False)`.
        legacy: whether the fields of the legacy Gaussian are there too.
    """
    name = state.get("bit_generator") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(name, str) or name not in _BIT_STATES:
        return f"expected the state of one of {sorted(_BIT_STATES)}"
    known = _BIT_STATES[name]
    outer = {key: value for key, value in state.items() if key not in ("bit_generator", "state")}
    gauss = outer.pop("gauss", None) if legacy else 0.0
    if type(gauss) is not float:
        return "expected a float gauss"
    outer_ints = {**known.outer_ints, **_LEGACY} if legacy else known.outer_ints
    return _fields_problem(state.get("state"), known.arrays, known.ints) or _fields_problem(
        outer, known.outer_arrays, outer_ints
    )


def _fields_problem(
    found: object, arrays: Mapping[str, tuple[str, int]], ints: Mapping[str, int]
) -> str | None:
    if not isinstance(found, dict) or set(found) != {*arrays, *ints}:
        return f"expected the fields {sorted([*arrays, *ints])}"
    for name, (dtype, length) in arrays.items():
        array = found[name]
        if getattr(array, "shape", None) != (length,) or str(getattr(array, "dtype", "")) != dtype:
            return f"expected {name} to be {length} x {dtype}"
    for name, end in ints.items():
        if type(found[name]) is not int or not 0 <= found[name] < end:
            return f"expected {name} in [0, {end})"
    return None


def seed_sequence_of(bit_generator: np.random.BitGenerator) -> np.random.SeedSequence | None:
    """Return the SeedSequence that `spawn` uses, None where there is none of that very class."""
    import numpy as np

    found = getattr(bit_generator, "seed_seq", None)
    return found if type(found) is np.random.SeedSequence else None


def _encode_numpy_generator(encoder: Encoder, value: np.random.Generator) -> object:
    bits = value.bit_generator
    state = _checked_state(encoder, dict(bits.state), legacy=False)
    seed = seed_sequence_of(bits)
    node: dict[str, object] = {"state": encoder.child(state, (".", "state"), 2)}
    if seed is not None:
        node["seed"] = encoder.child(dict(seed.state), (".", "seed"), 2)
    return {"$numpy_generator": node}


def _encode_random_state(encoder: Encoder, value: np.random.RandomState) -> object:
    state = _checked_state(encoder, dict(value.get_state(legacy=False)), legacy=True)
    return {"$numpy_random_state": {"state": encoder.child(state, (".", "state"), 2)}}


def _checked_state(encoder: Encoder, state: dict[str, Any], *, legacy: bool) -> dict[str, Any]:
    problem = bit_state_problem(state, legacy=legacy)
    if problem is not None:
        raise encoder.refuse(
            f"a bit generator of {sorted(_BIT_STATES)}",
            str(state.get("bit_generator")),
            f"Save its state yourself ({problem})",
        )
    return state


def _decode_numpy_generator(decoder: Decoder, payload: object) -> object:
    fields = decoder.fields(payload, {"state": object}, {"seed": object})
    np = require_numpy(decoder)
    state = _decode_state(decoder, fields["state"], legacy=False)
    kind = getattr(np.random, state["bit_generator"])
    seed = _decode_seed(decoder, fields["seed"]) if "seed" in fields else 0
    bits = kind(seed)
    bits.state = state
    return np.random.Generator(bits)


def _decode_random_state(decoder: Decoder, payload: object) -> object:
    fields = decoder.fields(payload, {"state": object})
    np = require_numpy(decoder)
    state = _decode_state(decoder, fields["state"], legacy=True)
    generator = np.random.RandomState(getattr(np.random, state["bit_generator"])(0))
    generator.set_state(state)
    return generator


def _decode_state(decoder: Decoder, node: object, *, legacy: bool) -> dict[str, Any]:
    state = decoder.child(node, (".", "state"))
    problem = bit_state_problem(state, legacy=legacy)
    if problem is not None or not isinstance(state, dict):
        raise decoder.corrupt("the state of a bit generator", problem)
    return state


def _decode_seed(decoder: Decoder, node: object) -> object:
    """Return a SeedSequence; its numbers are bounded, because they cost work and memory."""
    np = require_numpy(decoder)
    seed = decoder.child(node, (".", "seed"))
    names = {"entropy", "spawn_key", "pool_size", "n_children_spawned"}
    if not isinstance(seed, dict) or set(seed) != names:
        raise decoder.corrupt(f"the fields {sorted(names)}", seed)
    spawn_key, pool, spawned = seed["spawn_key"], seed["pool_size"], seed["n_children_spawned"]
    numbers_ok = type(spawn_key) is tuple and all(_is_seed(part) for part in spawn_key)
    bounds_ok = (
        type(pool) is int
        and 4 <= pool <= _MAX_POOL
        and type(spawned) is int
        and 0 <= spawned < 2**32
    )
    if not numbers_ok or not bounds_ok:
        raise decoder.corrupt("a spawn key of ints, a pool size and a count", seed)
    try:
        return np.random.SeedSequence(**seed)
    except (TypeError, ValueError, OverflowError) as error:
        raise decoder.corrupt("the state of a SeedSequence", f"{seed}: {error}") from None


def _is_seed(value: object) -> bool:
    return type(value) is int and value >= 0 and value.bit_length() <= _MAX_SEED_BITS


def _encode_torch_generator(encoder: Encoder, value: torch.Generator) -> object:
    state = encoder.child(value.get_state(), (".", "state"), 2)
    return {"$torch_generator": {"device": str(value.device), "state": state}}


def _decode_torch_generator(decoder: Decoder, payload: object) -> torch.Generator:
    fields = decoder.fields(payload, {"device": str, "state": object})
    device = decode_device(decoder, fields["device"])
    state = decoder.child(fields["state"], (".", "state"))
    try:
        generator = torch.Generator(device)
    except (RuntimeError, AssertionError):
        raise decoder.mismatch(
            f"a device {device} for a generator",
            "none on this machine",
            "Restore on such a machine",
        ) from None
    return _set_or_corrupt(decoder, generator, generator.set_state, state)


def _encode_python_random(encoder: Encoder, value: random.Random) -> object:
    return {"$random": encoder.child(value.getstate(), (".", "state"))}


def _decode_python_random(decoder: Decoder, payload: object) -> random.Random:
    generator = random.Random(0)
    state = decoder.child(payload, (".", "state"))
    return _set_or_corrupt(decoder, generator, generator.setstate, state)


def _set_or_corrupt(
    decoder: Decoder, generator: T, put: Callable[[Any], object], state: object
) -> T:
    try:
        put(state)
    except (RuntimeError, TypeError, ValueError, OverflowError, LookupError) as error:
        raise decoder.corrupt("the state of a generator", str(error)) from None
    return generator


NUMPY_GENERATOR = Codec("$numpy_generator", (), _encode_numpy_generator, _decode_numpy_generator)
NUMPY_RANDOM_STATE = Codec("$numpy_random_state", (), _encode_random_state, _decode_random_state)
GENERATORS: tuple[Codec, ...] = (
    Codec("$torch_generator", (torch.Generator,), _encode_torch_generator, _decode_torch_generator),
    Codec("$random", (random.Random,), _encode_python_random, _decode_python_random),
)
