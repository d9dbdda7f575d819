"""Codecs of random generators, through their states; taking a state never moves the stream.

A generator comes back as a new object of a fixed list of kinds. Its state is checked first, because
some libraries index memory with the numbers that they are given.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any, TypeVar

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
    "numpy_kind",
    "seed_sequence_of",
    "set_numpy",
    "set_or_corrupt",
]

T = TypeVar("T")

_MAX_POOL = 1024
_MAX_SEED_BITS = 1 << 16


_BIT_GENERATORS = frozenset({"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"})
_INT_ENDS: Mapping[str, int] = {
    "pos": 625,
    "buffer_pos": 5,
    "has_uint32": 2,
    "has_gauss": 2,
    "uinteger": 2**32,
    "state": 2**128,
    "inc": 2**128,
}
"""Name of an int in a state to the first value that is too large for the C code that takes it."""


def bit_state_problem(state: object, *, legacy: bool = False) -> str | None:
    """Return what is wrong with the state of a NumPy bit generator, None where it is safe.

    Args:
        state: as `BitGenerator.state` or, when `legacy`, as `RandomState.get_state(legacy=False)`.
        legacy: whether the fields of the legacy Gaussian are there too.
    """
    import numpy as np

    name = state.get("bit_generator") if isinstance(state, dict) else None
    if not isinstance(name, str) or name not in _BIT_GENERATORS:
        return f"expected the state of one of {sorted(_BIT_GENERATORS)}"
    fresh = getattr(np.random, name)(0)
    wanted = np.random.RandomState(fresh).get_state(legacy=False) if legacy else fresh.state
    return _difference("state", state, wanted)


def _difference(name: str, found: Any, wanted: Any) -> str | None:  # noqa: ANN401 - any field
    """Return how a field differs in form from that of a fresh generator."""
    if type(found) is not type(wanted):
        return f"expected {name} of type {type(wanted).__name__}"
    if isinstance(found, dict):
        if set(found) != set(wanted):
            return f"expected the fields {sorted(wanted)}"
        return next(filter(None, (_difference(k, found[k], wanted[k]) for k in wanted)), None)
    if isinstance(found, int):
        end = _INT_ENDS.get(name, 0)
        return None if 0 <= found < end else f"expected {name} in [0, {end})"
    if isinstance(found, (str, float)) or (found.shape, found.dtype) == (
        wanted.shape,
        wanted.dtype,
    ):
        return None
    return f"expected {name} to be {' x '.join(map(str, wanted.shape))} x {wanted.dtype}"


def seed_sequence_of(bit_generator: np.random.BitGenerator) -> np.random.SeedSequence | None:
    """Return the SeedSequence that `spawn` uses, None where there is none of that very class."""
    import numpy as np

    found = getattr(bit_generator, "seed_seq", None)
    return found if type(found) is np.random.SeedSequence else None


def numpy_kind(generator: Any) -> str | None:  # noqa: ANN401 - whatever was handed in
    """Return class and bit generator of a NumPy generator, None for anything else."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return None
    if type(generator) is numpy_random.Generator:
        return f"Generator({type(generator.bit_generator).__name__})"
    if type(generator) is numpy_random.RandomState:
        return f"RandomState({generator.get_state(legacy=False)['bit_generator']})"
    return None


def set_numpy(live: Any, saved: Any) -> None:  # noqa: ANN401 - two classes, checked by kind
    """Let a NumPy generator go on where `saved` is; both are of one `numpy_kind`."""
    if hasattr(live, "bit_generator"):
        live.bit_generator.state = saved.bit_generator.state
        _catch_up_spawns(live.bit_generator, saved.bit_generator)
    else:
        live.set_state(saved.get_state(legacy=False))


def _catch_up_spawns(live: np.random.BitGenerator, saved: np.random.BitGenerator) -> None:
    """Let `spawn` go on where the saved generator was, if both started from the same seed.

    NumPy cannot replace the SeedSequence of a generator, only advance its count.
    """
    ours, theirs = seed_sequence_of(live), seed_sequence_of(saved)
    if ours is None or theirs is None:
        return
    same_seed = str(ours.entropy) == str(theirs.entropy) and ours.spawn_key == theirs.spawn_key
    missing = theirs.n_children_spawned - ours.n_children_spawned
    if same_seed and missing > 0:
        ours.spawn(missing)


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
            f"a bit generator of {sorted(_BIT_GENERATORS)}",
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
    kinds = {"entropy": object, "spawn_key": tuple, "pool_size": int, "n_children_spawned": int}
    fields = decoder.fields(seed, kinds)
    if (
        not all(map(_is_seed, fields["spawn_key"]))
        or not 4 <= fields["pool_size"] <= _MAX_POOL
        or not 0 <= fields["n_children_spawned"] < 2**32
    ):
        raise decoder.corrupt("a spawn key of ints, a pool size and a count", seed)
    try:
        return np.random.SeedSequence(**fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise decoder.corrupt("the state of a SeedSequence", f"{seed}: {error}") from None


def _is_seed(value: object) -> bool:
    return type(value) is int and value >= 0 and value.bit_length() <= _MAX_SEED_BITS


def _decode_python_random(decoder: Decoder, payload: object) -> random.Random:
    generator = random.Random(0)
    state = decoder.child(payload, (".", "state"))
    return set_or_corrupt(decoder, generator, generator.setstate, state)


def set_or_corrupt(
    decoder: Decoder, generator: T, put: Callable[[Any], object], state: object
) -> T:
    """Return a generator that took a state, which may be hostile."""
    try:
        put(state)
    except (RuntimeError, TypeError, ValueError, OverflowError, LookupError) as error:
        raise decoder.corrupt("the state of a generator", str(error)) from None
    return generator


NUMPY_GENERATOR = Codec("$numpy_generator", (), _encode_numpy_generator, _decode_numpy_generator)
NUMPY_RANDOM_STATE = Codec("$numpy_random_state", (), _encode_random_state, _decode_random_state)
GENERATORS: tuple[Codec, ...] = (
    Codec(
        "$random",
        (random.Random,),
        lambda encoder, value: {"$random": encoder.child(value.getstate(), (".", "state"))},
        _decode_python_random,
    ),
)
