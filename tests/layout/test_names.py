from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepseal import layout
from stepseal.errors import InvalidInput
from stepseal.layout import _names

BAD_PATHS: list[object] = [
    "", "/", ".", "..", "./a", "../a", "a/.", "a/..", "a/../b", "a/./b", "a//b", "/a", "a/", "//a",
    "/etc/passwd", "..\\a", "a\\b", "C:", "C:/a", "c:a", "a:b", "~", "~/a", "a b", " a", "a ",
    "a\n",
    "\na", "a\t", "a\0", "\0", "a\0.json", "a\r", "a\x1b[31m", "a\x7f", "\u00e9", "e\u0301",
    "\u2024",
    "\u2025", "\uff0e\uff0e/a", "\uff0f", "\u2215", "a\u200b", "\u202ea", "\ud800", "a\udcff",
    "\U0001f600",
    "\u0130", "\u017f", "\u212a", "\u0661", ".hidden", "a/.hidden", ".metadata/a", "a/.metadata",
    "parts/.metadata", "external/.metadata", "external/a/.metadata/b", "external/a/.stepseal",
    ".stepseal",
    ".stepseal/x", "...", "a/...", ".METADATA", "..metadata", "%2e%2e/a", "a*", "a?", "a|b", "<a>",
    '"a"',
    "'a'", "$a", "`a`", "a;b", "a&b", "a(b", "{a}", "a#b", "a@b", "a,b", "a+b", "a=b", "!", "[a]",
    "file://a", "a" * 256, "b/" + "a" * 256, "/".join(["a" * 200] * 6), "a/" * 513,
    "a/" * 512 + "a", "a.", "a./b", "external/a/b.", "...",
    None, 3, b"a", ["a"], 1 << 20000,
]  # fmt: skip
GOOD_PATHS = [
    "manifest.json", ".metadata", "__0_0.distcp", "parts/trainer/3.json",
    "components/rng/trainer/3.1.safetensors",
    "external/a/b", "external/a/.metadata", "external/a/b/c/.metadata", "a", "A", "0", "-", "_",
    "a..b", "-rf", "CON", "a" * 255, "/".join(["a" * 200] * 5) + "/" + "a" * 19,
]  # fmt: skip
BAD_COMPONENTS: list[object] = [
    "", ".", "..", ".a", "-a", "a.", "a/b", "a b", "a\n", "\u00e9", "a" * 65, "a\0", "a:b",
    None, 1, b"a",
]  # fmt: skip
BAD_PARTICIPANTS: list[object] = [
    "", "/", "a/", "/a", "a//b", "a/b/c/d", ".", "..", "a/..", ".a", "a.b", "node1.cluster/0",
    "-a", "a/-b",
    "a b", "a\n", "a/b\n", "\u00e9", "a" * 65, "a/" + "b" * 65, "a\\b", "a:0", None, 3, b"a",
    "a/" * 100000,
]  # fmt: skip


def label(value: object) -> str:
    return "huge" if isinstance(value, int) and value > 1 << 99 else ascii(value)[:30]


def test_table_of_bad_paths_is_long() -> None:
    assert len(BAD_PATHS) >= 60


@pytest.mark.parametrize("path", BAD_PATHS, ids=label)
def test_bad_path_is_refused_with_a_short_reason(path: object) -> None:
    problem = layout.path_problem(path)
    assert problem is not None
    assert len(problem) < 200


@pytest.mark.parametrize("path", GOOD_PATHS)
def test_good_path_is_safe(path: str) -> None:
    assert layout.path_problem(path) is None


@given(st.text(alphabet="ab./\\-_~ \0\u00e9A0", max_size=12))
def test_safe_paths_keep_the_rules(path: str) -> None:
    segments = path.split("/")
    rules = all(
        re.fullmatch(r"[A-Za-z0-9_-]([A-Za-z0-9._-]*[A-Za-z0-9_-])?", segment)
        for segment in segments
    )
    assert (layout.path_problem(path) is None) == rules


@pytest.mark.parametrize("name", BAD_COMPONENTS)
def test_bad_component_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidInput, match="component name is not usable"):
        layout.check_component_name(name)


@pytest.mark.parametrize("name", ["model", "_", "0", "lr_scheduler", "a.b-c", "A" * 64])
def test_good_component_name_is_returned(name: str) -> None:
    assert layout.check_component_name(name) == name


@pytest.mark.parametrize("participant", BAD_PARTICIPANTS, ids=label)
def test_bad_participant_is_refused(participant: object) -> None:
    with pytest.raises(InvalidInput, match="participant is not usable") as caught:
        layout.check_participant(participant)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "participant", ["trainer/3", "main", "a/b/c", "_", "pool-1/node_2/3", "a" * 64]
)
def test_good_participant_is_returned(participant: str) -> None:
    assert layout.check_participant(participant) == participant


@pytest.mark.parametrize("step", [-1, 2**53, True, False, 1.0, "1", None, 10**6000], ids=label)
def test_bad_step_is_refused(step: object) -> None:
    with pytest.raises(InvalidInput, match="step is not usable"):
        layout.check_step(step)


@given(st.integers(0, layout.MAX_STEP))
def test_step_names_round_trip(step: int) -> None:
    assert layout.parse_step_name(layout.step_name(step)) == step


@pytest.mark.parametrize(
    "name",
    ["step-", "step-01", "step--1", "step-+1", "step-1 ", " step-1", "step-1\n", "Step-1",
    "step-1.0", "step_1",
     "xstep-1", "step-\u0661", "step-9007199254740992", "step-" + "9" * 100, "step-1_0",
     "step-1.2.abc", ""],
)  # fmt: skip
def test_only_canonical_step_names_count(name: str) -> None:
    assert layout.parse_step_name(name) is None


@pytest.mark.parametrize(
    "name",
    ["__01_0.distcp", "__0_0.distcp\n", "__0_.distcp", "a/__0_0.distcp", "__\u0661_0.distcp"],
)
def test_only_canonical_payload_paths_count(name: str) -> None:
    assert layout.parse_payload_path(name) is None


def test_payload_paths_round_trip() -> None:
    assert layout.payload_path(3) == "__3_0.distcp"
    assert layout.parse_payload_path(layout.payload_path(12, 7)) == (12, 7)


def test_paths_are_spelled_as_the_format_says() -> None:
    assert layout.part_document_path("trainer/3") == "parts/trainer/3.json"
    assert layout.part_index_path("trainer/3") == "parts/trainer/3.safetensors"
    assert layout.tree_document_path("rng", "trainer/3") == "components/rng/trainer/3.json"
    assert layout.tree_segment_path("rng", "trainer/3", 0) == "components/rng/trainer/3.safetensors"
    assert (
        layout.tree_segment_path("rng", "trainer/3", 1) == "components/rng/trainer/3.1.safetensors"
    )


def test_dcp_names_keep_the_model_bare() -> None:
    assert layout.dcp_fqn("model", "a.b") == "a.b"
    assert layout.dcp_fqn("optimizer", "state.a") == "optimizer.state.a"
    assert layout.dcp_path("model", "a.b") == ("a.b",)
    assert layout.dcp_path("optimizer", "state.a") == ("optimizer", "state.a")


def test_paths_that_cannot_both_exist_are_named() -> None:
    assert layout.path_set_problems(["a/b", "a/c", "b", "ab"]) == []
    assert layout.path_set_problems(["a/b", "A/b"]) == ["'A/b' and 'a/b' are the same file"]
    assert layout.path_set_problems(["a.b", "a", "a-b", "a/b"]) == [
        "'a' is a file and the folder of 'a/b'"
    ]
    twice = "a/b"
    assert len(layout.path_set_problems([twice, twice])) == 1
    assert layout.path_set_problems(["a/b/c", "A"]) == ["'A' is a file and the folder of 'a/b/c'"]
    assert layout.path_set_problems(["a/b/c", "a/b"]) == [
        "'a/b' is a file and the folder of 'a/b/c'"
    ]


_segment = st.text(alphabet="aB0_-", min_size=1, max_size=2).filter(lambda s: s[0] != "-")
_participant = st.lists(_segment, min_size=1, max_size=3).map("/".join)


@pytest.mark.slow
@given(st.lists(_participant, min_size=2, max_size=5, unique_by=str.casefold), st.integers(0, 3))
def test_no_two_participants_share_a_path(participants: list[str], number: int) -> None:
    paths = [
        path
        for participant in participants
        for path in (
            layout.part_document_path(layout.check_participant(participant)),
            layout.part_index_path(participant),
            layout.tree_document_path("rng", participant),
            *(layout.tree_segment_path("rng", participant, k) for k in range(number + 1)),
        )
    ]
    assert layout.path_set_problems(paths) == []
    assert not any(map(layout.path_problem, paths))


def test_names_are_exported() -> None:
    hidden = {"component_problem", "participant_problem"}
    assert set(_names.__all__) - hidden <= set(layout.__all__)
