from __future__ import annotations

import math

import pytest
from tests.steps._kit import TWO, Root, captured, component

from stepseal.errors import InvalidInput
from stepseal.layout import StepRef, decode_manifest, encode_manifest
from stepseal.testing import MemoryStorage


def root() -> Root:
    found = Root(MemoryStorage())
    found.claim(StepRef(5, "a" * 64, 1))
    return found


def test_draft_round_trips_as_a_manifest() -> None:
    _, manifest = root().prepare(
        10,
        components=[component("rng", sharing="per_rank"), component("model", kind="tensors")],
        metrics={"loss": "nan", "lr": 1e-3, "best": "-inf"},
        cut={"policy": 7},
        tags=["release"],
    )
    found = decode_manifest(encode_manifest(manifest))
    assert [c.name for c in found.components] == ["model", "rng"]
    assert math.isnan(found.metrics.pop("loss"))
    assert found.metrics == {"lr": 1e-3, "best": -math.inf}
    assert (found.cut, found.tags) == ({"policy": 7}, ("release",))
    assert found.parent == StepRef(5, "a" * 64, 1)
    assert found.resumable


def test_facts_of_the_first_participant_count() -> None:
    _, manifest = root().prepare(10, metrics={"loss": 1.0})
    assert manifest.metrics == captured(metrics={"loss": 1.0}).metrics
    assert manifest.participants == TWO


def test_kinds_that_no_reader_knows_are_refused_when_the_manifest_is_made() -> None:
    _, manifest = root().prepare(10, components=[component(kind="magic")])
    with pytest.raises(InvalidInput, match="magic"):
        encode_manifest(manifest)
