from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import TWO, Root, attempt_id, captured, component, part_report

from stepseal.errors import InvalidInput
from stepseal.layout import (
    Sharing,
    StepRef,
    decode_manifest,
    encode_manifest,
    payload_report,
    sets_option,
)
from stepseal.protocol._actions import Publish
from stepseal.protocol._draft import JobInfo, Origin, draft_manifest
from stepseal.protocol._opening import Opening
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from stepseal.protocol._messages import ComponentReport


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
    metrics = dict(found.metrics)
    assert math.isnan(metrics.pop("loss"))
    assert metrics == {"lr": 1e-3, "best": -math.inf}
    assert (found.cut, found.tags) == ({"policy": 7}, ("release",))
    assert found.parent == StepRef(5, "a" * 64, 1)
    assert found.resumable


def test_owners_are_put_together_from_what_each_participant_reports() -> None:
    sharings = {"model": "replicated", "rng": "per_rank", "none": "replicated"}

    def facts(rank: int) -> list[ComponentReport]:
        reports = {
            name: payload_report(Sharing(sharing), rank, TWO)
            for name, sharing in sharings.items()
            if name != "none"
        }
        return [
            component(
                name,
                sharing=sharing,
                payload=reports[name].coordinate if name in reports else None,
                writes=name in reports and reports[name].writes,
            )
            for name, sharing in sharings.items()
        ]

    publish = Publish(
        1,
        10,
        attempt_id(1),
        "staging",
        {name: captured(components=facts(rank)) for rank, name in enumerate(TWO)},
        {name: part_report(name) for name in TWO},
        0.0,
    )
    origin = Origin("a" * 32, 1, None, "fsync")
    found = draft_manifest(publish, origin, JobInfo(), now_s=0.0)
    assert {entry.name: entry.payloads for entry in found.components} == {
        "model": {TWO[0]: TWO[0], TWO[1]: TWO[0]},
        "rng": {TWO[0]: TWO[0], TWO[1]: TWO[1]},
        "none": {},
    }


def test_the_owner_of_each_set_is_recorded_with_its_coordinate() -> None:
    def facts(rank: int) -> ComponentReport:
        own = f"tp={rank}"
        return component(
            sharing="per_group", payload=own, writes=True, axes={"tp": 2}, sets="tp=0: 0; tp=1: 1",
            options={"mine": 1},
        )  # fmt: skip

    reports = {name: captured(components=[facts(rank)]) for rank, name in enumerate(TWO)}
    parts = {name: part_report(name) for name in TWO}
    publish = Publish(1, 10, attempt_id(1), "staging", reports, parts, 0.0)
    origin = Origin("a" * 32, 1, None, "fsync")
    (entry,) = draft_manifest(publish, origin, JobInfo(), now_s=0.0).components
    assert entry.payloads == {name: name for name in TWO}
    assert entry.options == {"mine": 1} | sets_option({"tp": 2}, {TWO[0]: "tp=0", TWO[1]: "tp=1"})


def test_what_was_left_out_is_listed_with_the_reason_and_is_no_component() -> None:
    reports = [component("rng", required=False), component("model")]
    _, whole = root().prepare(10, components=reports)
    assert {c.name: c.required for c in whole.components} == {"rng": False, "model": True}
    report = captured(components=reports)
    parts = {name: part_report(name) for name in TWO}
    publish = Publish(
        1, 10, attempt_id(1), "", dict.fromkeys(TWO, report), parts, 0.0, {"rng": "it raised"}
    )
    origin = Origin("0" * 32, 1, None, "fsync")
    manifest = draft_manifest(publish, origin, JobInfo(), now_s=0.0)
    assert [c.name for c in manifest.components] == ["model"]
    assert decode_manifest(encode_manifest(manifest)).left_out == {"rng": "it raised"}


def test_facts_of_the_first_participant_count() -> None:
    _, manifest = root().prepare(10, metrics={"loss": 1.0})
    assert manifest.metrics == captured(metrics={"loss": 1.0}).metrics
    assert manifest.participants == TWO


def test_each_component_is_recorded_with_its_role() -> None:
    reports = {
        "trainer/0": captured(components=[component("model")], cut={"watermark": 2}),
        "buffer/0": captured(components=[component("samples")], cut={"position": 3}),
    }
    parts = {name: part_report(name) for name in reports}
    opening = Opening("save", 10, cut={"version": 1}, metrics={"reward": 0.5}, tags=("best",))
    publish = Publish(1, 10, attempt_id(1), "staging", reports, parts, 0.0, opening=opening)
    found = draft_manifest(publish, Origin("a" * 32, 1, None, "fsync"), JobInfo(), now_s=0.0)
    assert [(entry.name, entry.role) for entry in found.components] == [
        ("model", "trainer"),
        ("samples", "buffer"),
    ]
    assert found.participants == ("trainer/0", "buffer/0")
    assert found.cut == {"version": 1, "watermark": 2, "position": 3}
    assert (found.metrics, found.tags) == ({"reward": 0.5}, ("best",))
    assert found.topology == {"world_size": 2}


def test_kinds_that_no_reader_knows_are_refused_when_the_manifest_is_made() -> None:
    _, manifest = root().prepare(10, components=[component(kind="magic")])
    with pytest.raises(InvalidInput, match="magic"):
        encode_manifest(manifest)
