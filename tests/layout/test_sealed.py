from __future__ import annotations

import pytest

from stepseal.layout import CHUNK_BYTES, FileEntry
from stepseal.layout._sealed import Role, file_problem

DIGEST = "ab" * 16


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("__0_0.distcp", "payload"),
        ("components/rng/trainer/0.json", "tree"),
        ("parts/trainer/0.safetensors", "index"),
        (".metadata", "dcp-index"),
        ("external/engine/a/b.pt", "external"),
    ],
)
def test_role_and_path_belong_together(path: str, role: Role) -> None:
    roles: tuple[Role, ...] = ("payload", "tree", "index", "dcp-index", "external")
    for other in roles:
        digests = () if other == "payload" else (DIGEST,)
        problem = file_problem(FileEntry(path, 5, other, digests))
        assert (problem is None) == (other == role)


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("__0_00.distcp", "payload"),
        ("components/rng", "tree"),
        ("parts/trainer/0.json", "index"),
        ("external/engine", "external"),
        ("manifest.json", "external"),
        ("parts/trainer/0.json", "tree"),
    ],
)
def test_paths_of_other_documents_are_refused(path: str, role: Role) -> None:
    digests = () if role == "payload" else (DIGEST,)
    assert "cannot have the path" in (file_problem(FileEntry(path, 5, role, digests)) or "")


def test_a_path_that_leads_out_is_refused() -> None:
    for path in ("a/.metadata", "../x", "external/a/../b"):
        assert "begins with a dot" in (file_problem(FileEntry(path, 5, "external", ())) or "")


@pytest.mark.parametrize(
    ("size", "number"), [(0, 0), (1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2)]
)
def test_every_chunk_has_a_digest(size: int, number: int) -> None:
    assert file_problem(FileEntry(".metadata", size, "dcp-index", (DIGEST,) * number)) is None
    for wrong in {0, number + 1} - {number}:
        entry = FileEntry(".metadata", size, "dcp-index", (DIGEST,) * wrong)
        assert f"expected {number} digests" in (file_problem(entry) or "")


def test_payload_is_digested_by_its_index() -> None:
    entry = FileEntry("__0_0.distcp", 5, "payload", (DIGEST,))
    assert "expected 0 digests" in (file_problem(entry) or "")
