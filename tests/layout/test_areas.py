from __future__ import annotations

import dataclasses

import pytest
from tests.layout._samples import manifest

from stepseal.layout import MAX_STEP, Area, parse_step_name, step_name


def test_steps_are_named_as_ever() -> None:
    assert Area.STEPS.key(200) == step_name(200)
    assert Area.STEPS.parse("step-200") == parse_step_name("step-200") == 200


def test_a_manifest_says_where_it_belongs() -> None:
    full = manifest(step=7)
    assert (full.area, full.key) == (Area.STEPS, "step-7")
    weights = dataclasses.replace(full, kind="weights", resumable=False)
    assert (weights.area, weights.key) == (Area.PUBLISHED, "published/v-7")


@pytest.mark.parametrize("area", Area)
@pytest.mark.parametrize("number", [0, 7, 10, MAX_STEP])
def test_names_are_read_back(area: Area, number: int) -> None:
    assert area.parse(area.folder_name(number)) == number
    assert [other.parse(area.folder_name(number)) for other in Area if other is not area] == [None]


@pytest.mark.parametrize(
    "name", ["v-", "v-07", "v--1", "v-+1", "v-1.0", f"v-{MAX_STEP + 1}", "V-1", "v1", "v-1/", "1"]
)
def test_other_names_are_no_versions(name: str) -> None:
    assert Area.PUBLISHED.parse(name) is None


def test_messages_name_the_call_and_its_number() -> None:
    assert Area.STEPS.title(7) == "save of step 7"
    assert Area.PUBLISHED.title(7) == "publication of version 7"
