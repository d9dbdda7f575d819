"""What is left until the nearest limit, in trees of files as the kernel shows them.

Each naive way leaves out one thing that decides; a test shows that some tree tells it apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stepseal.components import _headroom
from stepseal.components._headroom import Headroom, find_headroom, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MB = 1 << 20
V1 = "32 31 0:35 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "32 31 0:35 {top} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
HOST = "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n"


def tree(
    root: Path, cgroup: str, mounts: str, files: Mapping[str, str | int], host: str = HOST
) -> str:
    """Lay out what a process sees; files are named from `sys/fs/cgroup` on."""
    found = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, "proc/meminfo": host}
    found |= {f"sys/fs/cgroup/{name}": str(text) for name, text in files.items()}
    for name, text in found.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def v2(root: Path, files: Mapping[str, str | int], path: str = "/job", top: str = "/") -> int:
    found = find_headroom(tree(root, f"0::{path}\n", V2.format(top=top), files))
    assert found is not None
    return found.left_bytes


def v1(root: Path, files: Mapping[str, str | int], path: str = "/job", top: str = "/") -> int:
    cgroup = f"9:cpu:/other\n4:hugetlb,memory:{path}\n0::/\n"
    found = find_headroom(tree(root, cgroup, V1.format(top=top), files))
    assert found is not None
    return found.left_bytes


def limited(
    folder: str, limit: int | str, used: int, cache: int = 0, high: int | str = "max"
) -> dict[str, str | int]:
    """Return the files of a cgroup v2."""
    stat = f"anon 5\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}\n"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": stat,
        f"{folder}/memory.high": high,
    }


def old(folder: str, limit: int, used: int, cache: int = 0, stat: str = "") -> dict[str, str | int]:
    """Return the files of a cgroup v1, below the mount of memory."""
    return {
        f"memory{folder}/memory.limit_in_bytes": limit,
        f"memory{folder}/memory.usage_in_bytes": used,
        f"memory{folder}/memory.stat": f"active_file 77\ntotal_inactive_file {cache}\n"
        f"total_active_file 0\n{stat}",
    }


def test_the_limit_of_the_own_cgroup_counts(tmp_path: Path) -> None:
    assert v2(tmp_path / "2", limited("job", 900 * MB, 300 * MB)) == 600 * MB
    assert v1(tmp_path / "1", old("/job", 900 * MB, 300 * MB)) == 600 * MB


def test_page_cache_is_no_use_of_memory(tmp_path: Path) -> None:
    assert v2(tmp_path / "2", limited("job", 900 * MB, 800 * MB, 500 * MB)) == 600 * MB
    assert v1(tmp_path / "1", old("/job", 900 * MB, 800 * MB, 500 * MB)) == 600 * MB


def test_a_limit_above_counts_with_all_that_is_used_below_it(tmp_path: Path) -> None:
    inner, outer = limited("pod/job", "max", 1 * MB), limited("pod", 900 * MB, 880 * MB)
    assert v2(tmp_path / "2", {**inner, **outer}, "/pod/job") == 20 * MB
    inner, outer = old("/pod/job", 1 << 63, 1 * MB), old("/pod", 900 * MB, 880 * MB)
    assert v1(tmp_path / "1", {**inner, **outer}, "/pod/job") == 20 * MB


def test_a_limit_above_that_a_container_cannot_see_counts_as_far_as_v1_tells(
    tmp_path: Path,
) -> None:
    files = old("", 1 << 63, 300 * MB, stat=f"hierarchical_memory_limit {900 * MB}\n")
    assert v1(tmp_path, files, "/docker/abc", top="/docker/abc") == 600 * MB


def test_the_lower_of_the_two_limits_of_v2_counts(tmp_path: Path) -> None:
    files = limited("job", 900 * MB, 300 * MB, high=500 * MB)
    assert v2(tmp_path / "lower", files) == 200 * MB
    files = limited("job", 900 * MB, 300 * MB, high=950 * MB)
    assert v2(tmp_path / "higher", files) == 600 * MB


@pytest.mark.parametrize(
    ("path", "top"), [("/docker/abc", "/docker/abc"), ("/host/name", "/elsewhere"), ("/../x", "/")]
)
def test_inside_a_container_the_mount_is_the_own_cgroup(
    tmp_path: Path, path: str, top: str
) -> None:
    files = {name.replace("//", "/"): text for name, text in limited("", 9 * MB, 2 * MB).items()}
    assert v2(tmp_path, files, path, top) == 7 * MB


def test_free_swap_counts_as_far_as_the_cgroup_may_use_it(tmp_path: Path) -> None:
    host = f"{HOST}SwapFree: {500 * 1024} kB\n"

    def left(name: str, **swap: int) -> int:
        files = limited("job", 900 * MB, 800 * MB)
        files |= {f"job/memory.swap.{figure}": size for figure, size in swap.items()}
        found = find_headroom(tree(tmp_path / name, "0::/job\n", V2.format(top="/"), files, host))
        assert found is not None
        return found.left_bytes

    assert left("all") == 600 * MB
    assert left("none", max=0, current=0) == 100 * MB
    assert left("some", max=70 * MB, current=20 * MB) == 150 * MB
    files = old("/job", 900 * MB, 800 * MB)
    files["memory/job/memory.memsw.limit_in_bytes"] = 950 * MB
    files["memory/job/memory.memsw.usage_in_bytes"] = 810 * MB
    cgroup = "4:memory:/job\n"
    found = find_headroom(tree(tmp_path / "v1", cgroup, V1.format(top="/"), files, host))
    assert found is not None
    assert found.left_bytes == 140 * MB


def test_the_host_counts_where_it_has_less(tmp_path: Path) -> None:
    files = limited("job", 900 * MB, 300 * MB)
    host = "MemTotal: 2048 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\nSwapFree: 0 kB\n"
    found = find_headroom(tree(tmp_path, "0::/job\n", V2.format(top="/"), files, host))
    assert found == Headroom(1 * MB, "the memory of this host (2.0 MiB)")


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    assert v2(tmp_path, limited("job", 100 * MB, 130 * MB)) == 0


def test_the_file_that_sets_the_limit_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/job\n", V2.format(top="/"), limited("job", 900 * MB, 300 * MB))
    found = find_headroom(root)
    assert found is not None
    assert found.limit == f"{root}/sys/fs/cgroup/job/memory.max (900.0 MiB)"
    error = out_of_memory(700 * MB, found, "Do this.")
    assert "expected room for 700.0 MiB more, found 600.0 MiB until" in str(error)
    assert str(error).endswith("Do this.")


def test_a_system_that_tells_nothing_has_no_known_limit(tmp_path: Path) -> None:
    assert find_headroom(str(tmp_path)) is None
    assert find_headroom(tree(tmp_path, "0::/job\n", V2.format(top="/"), {}, "")) is None


def test_this_system_tells_something() -> None:
    found = find_headroom()
    assert found is not None
    assert found.left_bytes > 0


# -- naive ways ------------------------------------------------------------------------------------


def only_the_own_cgroup(root: str) -> Iterator[str]:
    yield next(iter(levels(root)))


def no_cgroup(root: str) -> Iterator[str]:
    yield from ()


levels = _headroom._levels
NAIVE = {
    "page cache of v1 counts as used": (("_CACHE_V1", ()), test_page_cache_is_no_use_of_memory),
    "page cache of v2 counts as used": (("_CACHE_V2", ()), test_page_cache_is_no_use_of_memory),
    "limits above are ignored": (
        ("_levels", only_the_own_cgroup),
        test_a_limit_above_counts_with_all_that_is_used_below_it,
    ),
    "the host's memory alone": (("_levels", no_cgroup), test_the_limit_of_the_own_cgroup_counts),
}


@pytest.mark.parametrize("naive", NAIVE)
def test_naive_ways_are_caught(naive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, instead), promise = NAIVE[naive]
    promise(tmp_path / "right")
    monkeypatch.setattr(_headroom, name, instead)
    with pytest.raises(AssertionError):
        promise(tmp_path / "naive")
