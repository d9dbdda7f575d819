"""Fuzzing of every decoder of hostile bytes.

    python -m tests.campaigns.fuzz.run --size fast|nightly|release

Fast: the kept corpus again, then inputs that hypothesis builds by editing good ones. Longer sizes
add hours of atheris, guided by coverage, one process per decoder. Decoders from which one check was
taken must be noticed.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from unittest.mock import patch

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from tests.campaigns.fuzz._targets import TARGETS, Target, command_for
from tests.campaigns.harness._programs import print_row, row_of
from tests.campaigns.harness._sizes import Row, Size, main
from tests.security._cost import peak_bytes, reset_peak

from stepseal.errors import Corrupt
from stepseal.layout import StepRef, _container, _documents, _index, _names, _sealed
from stepseal.layout._documents import Outline
from stepseal.protocol import _messages, _wire
from stepseal.steps import _claims

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["VARIANTS", "guided", "run"]

MAX_EXTRA_BYTES = 200_000_000
"""Of one target with all its inputs, over what the process had before."""
_ATHERIS_EXTRA_MB = 300
"""The same with what libFuzzer keeps: its corpus, its counters of coverage."""
_ATHERIS_TIMEOUT_S = 6
"""Of the wall's clock, for one input; `Target.check` judges the 2 s of processor time."""
_EXAMPLES = {"fast": 200, "nightly": 20_000, "release": 200_000}
_ATHERIS_S = {"fast": 0, "nightly": 1800, "release": 6 * 3600}
_VARIANT_EXAMPLES = 3_000

_STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 0.0, 1.5,
    1e308, "", "a", "..", "../../x", "/etc/passwd", "a\0b", "\x1b[2J", "ab" * 16, "AB" * 32,
    "nan", "x" * 300, [], {}, [[]], {"a": {}}, {"$int": "1"}, {"$object": {"type": "os.system"}},
]  # fmt: skip
_NUMBERS = [0, 1, 2, 7, 8, 64, 255, 2**16, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_QUIRKS = [b" ", b"\n", b"\t", b"\0", b"\xff", b'"', b"\\", b"[", b"{", b",", b"NaN", b"1e9", b"-0"]


def _edit_json(random_: random.Random, value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a value with one place changed, somewhere."""
    if isinstance(value, (dict, list)) and value and random_.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key: Any = random_.choice(keys)
        copied: Any = value.copy()
        action = random_.randrange(6)
        if action == 0:
            del copied[key]
        elif action == 1 and isinstance(copied, dict):
            copied[str(random_.choice(_STRANGE))] = copied[key]
        elif action == 1:
            copied.insert(key, copied[key])
        else:
            copied[key] = _edit_json(random_, copied[key])
        return copied
    if isinstance(value, int) and random_.random() < 0.5:
        return value + random_.choice([-1, 1, 2**62, -value, value])
    if isinstance(value, str) and random_.random() < 0.5:
        place = random_.randint(0, len(value))
        return value[:place] + str(random_.choice(_STRANGE)) + value[place:]
    return random_.choice(_STRANGE)


def _edit_bytes(random_: random.Random, data: bytes, other: bytes) -> bytes:
    """Return bytes with one place changed, or spliced with others."""
    place = random_.randint(0, len(data))
    length = random_.choice([1, 2, 4, 8, 64, len(data) // 3 + 1])
    action = random_.randrange(8)
    if action == 0:
        return data[:place]
    if action == 1:
        return data[:place] + data[place + length :]
    if action == 2:
        return data[: place + length] + data[place:]
    if action == 3:
        return data[:place] + other[random_.randint(0, len(other)) :]
    if action == 4:
        quirk: bytes = random_.choice(_QUIRKS)
        return data[:place] + quirk + data[place + random_.randint(0, 1) :]
    if action == 5:
        place -= place % 8
        width = random_.choice([4, 8])
        number = random_.choice(_NUMBERS) % 2 ** (8 * width)
        order: Literal["little", "big"] = random_.choice(("little", "big"))
        return bytes(data[:place] + number.to_bytes(width, order) + data[place + width :])
    flipped = bytearray(data or b"\0")
    flipped[place % len(flipped)] ^= 1 << random_.randrange(8)
    return bytes(flipped)


def _built(target: Target, seeds: list[bytes], random_: random.Random, num_edits: int) -> bytes:
    """Return an input made from a seed."""
    data = random_.choice(seeds)
    if target.is_json and random_.random() < 0.8:
        try:
            value = msgspec.json.decode(data)
            for _ in range(num_edits):
                value = _edit_json(random_, value)
            text = json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
            spelled: bytes = msgspec.json.format(text, indent=1)
            return spelled + b"\n"
        except (ValueError, RecursionError):  # a seed that is no JSON: its bytes are edited
            pass
    for _ in range(num_edits):
        data = _edit_bytes(random_, data, random_.choice(seeds))
    return data


@dataclass
class _Tally:
    """What was checked so far."""

    cases: int = 0
    violations: list[str] = field(default_factory=list)
    grown_bytes: int = 0
    """Most memory that one target took."""

    def take(self, target: Target, data: bytes) -> str | None:
        self.cases += 1
        return target.check(data)


class _Broken(Exception):
    """A promise that an input breaks."""


def _replay(target: Target, tally: _Tally) -> bytes | None:
    return next((data for data in target.all_seeds() if tally.take(target, data)), None)


def _explore(target: Target, tally: _Tally, num_examples: int, seed: int) -> bytes | None:
    """Return an input that breaks a promise, as small as hypothesis can make it, or None."""
    seeds = target.all_seeds()
    worst: list[bytes] = []

    @seeded(seed)
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.integers(0, 2**32), st.integers(1, 4))
    def examine(number: int, num_edits: int) -> None:
        data = _built(target, seeds, random.Random(number), num_edits)
        if problem := tally.take(target, data):
            worst.append(data)
            raise _Broken(problem)

    try:
        examine()
    except Exception:  # hypothesis joins several findings in a group, which 3.10 does not know
        if not worst:
            raise
        return min(worst, key=len)
    return None


# -- decoders from which one check was taken ------------------------------------------------------


def _parse_without_tiling(data: bytes, *, what: str, file_size: int) -> Any:  # noqa: ANN401
    size_bytes = _container.header_size(data, what=what, file_size=file_size)
    header = _container._decode(bytes(data[8:size_bytes]), what)
    header.pop("__metadata__", None)
    parsed = [_container._parse_entry(name, value, size_bytes) for name, value in header.items()]
    entries = [entry for entry in parsed if isinstance(entry, _container.ContainerEntry)]
    return _container.ContainerHeader(tuple(entries), {}, size_bytes)


def _index_without_form(data: bytes, *, what: str = "index") -> Any:  # noqa: ANN401
    return _index._Columns(memoryview(data), what).read()


def _index_without_checks(data: bytes, *, what: str = "index") -> Any:  # noqa: ANN401
    found = _index_without_form(data, what=what)
    if _index._pack(found) != data:
        raise Corrupt(what)
    return found


def _unsealed(data: bytes, **rules: Any) -> Any:  # noqa: ANN401
    document: Any = _documents.decode_document(data, **rules)
    return document["body"]


def _hoarding() -> Callable[[str], str | None]:
    """Return a check of paths that once takes memory that no input is worth, for a moment."""
    real, sizes = _names.path_problem, [2 * MAX_EXTRA_BYTES]

    def problem(path: str) -> str | None:
        if sizes:
            bytearray(sizes.pop())
        return real(path)

    return problem


def _loose_messages(target: Any) -> Any:  # noqa: ANN401
    """Return a decoder that ignores unknown fields, as msgspec does by default."""
    kinds = {kind.__name__: kind.__struct_fields__ for kind in target.__args__}

    class Loose:
        def decode(self, data: bytes) -> Any:  # noqa: ANN401
            value = msgspec.json.decode(data)
            if isinstance(value, dict) and value.get("type") in kinds:
                known = {"type", *kinds[value["type"]]}
                value = {key: child for key, child in value.items() if key in known}
            return msgspec.convert(value, target)

    return Loose()


VARIANTS: dict[str, tuple[str, dict[tuple[Any, str], Any]]] = {
    "any-spelling": ("document", {(_documents, "_is_canonical"): lambda text, value: True}),
    "nesting-unbounded": (
        "document", {(_documents, "outline"): lambda text, limits: Outline(1, 0, 0)}),
    "seal-not-compared": (
        "manifest",
        {(_sealed, "unseal"): _unsealed},
    ),
    "arrays-may-overlap": ("header", {(_container, "parse_header"): _parse_without_tiling}),
    "shapes-unbounded": ("header", {(_container, "shape_problem"): lambda shape, size: None}),
    "index-in-any-form": ("index", {(_index, "decode_index"): _index_without_form}),
    "index-unchecked": (
        "index",
        {(_index, "decode_index"): _index_without_checks},
    ),
    "frames-of-any-length": ("frames", {(_wire, "_check_size"): lambda size, limit: None}),
    "unknown-fields-in-messages": (
        "message",
        {(_messages, "_participant_decoder"): _loose_messages(_messages.FromParticipant)},
    ),
    "paths-unchecked": ("path", {(_names, "path_problem"): lambda path: None}),
    "paths-by-prefix-only": (
        "path",
        {(_names, "path_problem"): lambda path: "bad" if path.startswith(("/", "..")) else None},
    ),
    "memory-unbounded": ("path", {(_names, "path_problem"): _hoarding()}),
    "claims-unchecked": (
        "claim-body",
        {(_claims, "_lineage_of"): lambda parent: StepRef(
            parent["step"], parent["manifest_sha256"], parent["incarnation"])},
    ),
}  # fmt: skip
"""Name to the target that must notice, and what is patched."""


@contextmanager
def broken(name: str) -> Iterator[Target]:
    """Take one check away, and yield the target that is to notice."""
    target, patches = VARIANTS[name]
    with ExitStack() as stack:
        for (module, attribute), replacement in patches.items():
            stack.enter_context(patch.object(module, attribute, replacement))
        yield TARGETS[target]


def _notices(name: str) -> bool:
    tally = _Tally()
    with broken(name) as target:
        return bool(_judge(target, tally, _VARIANT_EXAMPLES, seed=0))


def _judge(target: Target, tally: _Tally, num_examples: int, seed: int) -> str:
    """Replay and explore a target; return the command that shows what is wrong, or nothing."""
    before = reset_peak()
    bad = _replay(target, tally)
    if bad is None:
        bad = _explore(target, tally, num_examples, seed)
    if bad is not None:
        return command_for(target.name, bad)
    grown = peak_bytes() - before
    tally.grown_bytes = max(tally.grown_bytes, grown)
    return f"{target.name}: {grown:,} bytes of memory more" if grown > MAX_EXTRA_BYTES else ""


# -- atheris --------------------------------------------------------------------------------------


def guided(target: Target, seconds: int, folder: Path) -> tuple[int, list[str]]:
    """Fuzz one target in a process of its own; return cases and violations."""
    grown = folder / target.name
    grown.mkdir()
    for number, data in enumerate(target.all_seeds()):
        (grown / f"seed-{number}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.fuzz._atheris", target.name, str(grown),
         f"-max_total_time={seconds}", "-max_len=65536", f"-timeout={_ATHERIS_TIMEOUT_S}",
         f"-artifact_prefix={folder}/{target.name}-", "-print_final_stats=1",
         f"-extra_mb={_ATHERIS_EXTRA_MB}"],
        capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    found = re.search(r"number_of_executed_units: +(\d+)", done.stderr)
    artefacts = folder.glob(f"{target.name}-*-*")
    violations = [command_for(target.name, path.read_bytes()) for path in artefacts]
    if done.returncode and not violations:
        violations.append(f"{' '.join(done.args)}: {done.stderr[-500:]!r}")
    return int(found[1]) if found else 0, violations


def run(size: Size) -> Row:
    """Run the campaign as a program of its own: memory is that of a process."""
    return row_of("tests.campaigns.fuzz.run", "--apart", size, anew=True)


def _fuzz(size: Size) -> Row:
    """Fuzz every target, then every broken decoder."""
    begun, tally = time.monotonic(), _Tally()
    notes: list[str] = []
    for target in TARGETS.values():
        bad = _judge(target, tally, _EXAMPLES[size], seed=len(target.name))
        tally.violations += [bad] if bad else []
    grown = f"at most {tally.grown_bytes:,} bytes of memory more for one decoder"
    notes.append(f"hypothesis and kept corpus: {tally.cases:,} inputs, {grown}")
    seconds = _ATHERIS_S[size] // len(TARGETS)
    if seconds and find_spec("atheris") is None:
        notes.append("atheris is not installed: nothing was guided by coverage")
    elif seconds:
        with tempfile.TemporaryDirectory() as folder:
            for target in TARGETS.values():
                cases, violations = guided(target, seconds, Path(folder))
                tally.cases += cases
                tally.violations += violations
                notes.append(f"atheris, {target.name}: {cases:,} inputs in {seconds} s")
    caught = {name: _notices(name) for name in VARIANTS}
    return Row(
        campaign="fuzzing",
        unit="inputs",
        cases=tally.cases,
        violations=tuple(tally.violations),
        caught=tuple(name for name, noticed in caught.items() if noticed),
        missed=tuple(name for name, noticed in caught.items() if not noticed),
        seconds=time.monotonic() - begun,
        notes=tuple(notes),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--apart"]:
        print_row(_fuzz(cast("Size", sys.argv[2])))
    else:
        raise SystemExit(main(run))
